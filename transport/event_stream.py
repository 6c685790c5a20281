"""`GET /events`: server-sent events (WHATWG HTML, section 9.2). Bounded: a slow client loses its oldest."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from aiohttp import web

from .event_bus import EventBus

KEEPALIVE_S = 15  # proxies end connections that are silent for longer


async def stream(request: web.Request, bus: EventBus, allowed: Callable[[], bool]) -> web.StreamResponse:
    """Until the client leaves, is no longer `allowed`, or the daemon stops. Raises: HTTPTooManyRequests.

    `?session=s-…` and `?graph=…` choose; `?name=restart,failed` keeps only events of those names.
    """
    if bus.is_full:
        raise web.HTTPTooManyRequests(text=f"{bus.limit} readers of events are taken; close one first")
    session, graph = request.query.get("session"), request.query.get("graph")
    names = frozenset(filter(None, request.query.get("name", "").split(",")))
    reader = bus.subscribe()
    told = 0
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
    try:
        await response.prepare(request)
        await response.write(b": open\n\n")
        while True:
            try:
                async with asyncio.timeout(KEEPALIVE_S):
                    event = await reader.get()
            except TimeoutError:
                if not allowed():
                    return response
                await response.write(b": alive\n\n")
                continue
            if event is None or not allowed():
                return response
            if reader.lost > told:
                await response.write(b'event: lost\ndata: {"count":%d}\n\n' % (reader.lost - told))
                told = reader.lost
            if (session and event.session != session) or (graph and event.graph != graph):
                continue
            if names and event.name not in names:
                continue
            data = json.dumps(event.as_json(), default=str)
            await response.write(f"event: event\ndata: {data}\n\n".encode())
    except ConnectionError:
        return response  # the client left
    finally:
        bus.unsubscribe(reader)
