"""A bad network in front of a running server: browsers open the laboratory's port instead of the server's.

HTTP passes through; SDP offers and answers are rewritten so that media takes a relay of its own per session.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web

from ..pipeline.clock import SECOND, Clock, MonotonicClock
from ..pipeline.errors import GraphError
from ..pipeline.faults import Faults
from ..pipeline.stage import StageError
from ..pipeline.yaml_marks import parse
from . import impairment
from .relay import Relay
from .remote import unreachable
from .trickle import SDPFRAG

log = logging.getLogger(__name__)

IDLE = 30 * SECOND  # a relay without a datagram for so long is given up
SWEEP = 5 * SECOND
MAX_BODY = 1 << 20
MAX_RELAYS = 64
LOOK_S = 2  # for a server to answer
_HOP = frozenset(  # RFC 9110 section 7.6.1, and what aiohttp sets itself
    ["connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host", "origin"]
    + ["content-length", "content-encoding", "accept-encoding", "proxy-connection"]
)


def read_file(path: Path) -> Mapping[str, Any]:
    """A network's description in YAML. Raises: GraphError with every fault and its place, StageError."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise StageError(f"network {path}: {e}") from e
    data, marks = parse(text, str(path))
    faults = Faults(marks)
    written = faults.mapping(data, (), "a network")
    impairment.check(written, faults)
    if faults.faults:
        raise GraphError(str(path), faults.faults)
    return written


class Netlab:
    """upstream: the server's URL. written: as `impairment.read` takes it; each session starts its script anew.
    shared: all sessions go through one and the same link, whose script began with the first."""

    def __init__(
        self,
        upstream: str,
        written: Mapping[str, Any],
        clock: Clock,
        *,
        seed: int = 0,
        host: str = "127.0.0.1",
        shared: bool = False,
    ) -> None:
        parts = urlsplit(upstream)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise StageError(f"{upstream!r} is not a server's URL; write http://127.0.0.1:8080")
        impairment.read(written)  # its faults now, not at the first session
        self.upstream = f"{parts.scheme}://{parts.netloc}"
        self.written = written
        self.clock = clock
        self.seed = seed
        self.host = host
        self.shared = shared
        self.relays: list[Relay] = []
        self._sessions = 0
        self._http: aiohttp.ClientSession | None = None

    def is_at(self, host: str, port: int) -> bool:
        """Is its server where it listens itself?"""
        parts = urlsplit(self.upstream)
        theirs = parts.port or (443 if parts.scheme == "https" else 80)
        return theirs == port and parts.hostname in (host, "localhost")

    async def silent(self) -> str:
        """Why its server does not answer, in words; empty when it does."""
        assert self._http is not None
        try:
            async with self._http.get(
                f"{self.upstream}/health/live", timeout=aiohttp.ClientTimeout(total=LOOK_S)
            ):
                return ""
        except TimeoutError:
            return f"nothing came within {LOOK_S} s"
        except aiohttp.ClientError as e:
            return unreachable(e)

    def app(self) -> web.Application:
        app = web.Application(client_max_size=MAX_BODY)
        app.router.add_route("*", "/{path:.*}", self._pass)
        app.cleanup_ctx.append(self._life)
        return app

    async def _life(self, _: web.Application) -> AsyncIterator[None]:
        sweep = asyncio.create_task(self._sweep(), name="netlab/sweep")
        async with aiohttp.ClientSession() as self._http:
            yield
            sweep.cancel()
            await asyncio.gather(sweep, return_exceptions=True)
            for relay in self.relays:
                relay.close()

    async def _sweep(self) -> None:
        while True:
            await self.clock.sleep(SWEEP)
            for relay in [r for r in self.relays if r.is_idle(IDLE)]:
                self.relays.remove(relay)
                relay.close()
                log.info("up %s, down %s", dict(relay.up.counts), dict(relay.down.counts))

    async def _relay(self) -> Relay:
        if len(self.relays) >= MAX_RELAYS:
            raise web.HTTPServiceUnavailable(
                text=f"{MAX_RELAYS} sessions run through this laboratory already"
            )
        first = self.relays[0] if self.shared and self.relays else None
        up, down = (
            (first.up, first.down) if first else impairment.read(self.written, self.seed + self._sessions)
        )
        self._sessions += 1
        relay = await Relay(self.clock, up, down, self.host).start()
        if first is not None:
            relay.started = first.started  # the link's time
        self.relays.append(relay)
        return relay

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        assert self._http is not None
        if request.method == "PATCH" and request.content_type == SDPFRAG:
            return web.Response(status=204)  # candidates that came later would lead past the relay
        body = await request.read()
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP}
        if "Origin" in request.headers:
            headers["Origin"] = self.upstream  # the page came from here, its server checks for itself
        relay: Relay | None = None
        if request.method == "POST" and b"v=0" in body:
            relay = await self._relay()
            body = _map_sdp(request.content_type, body, relay.to_server)
        try:
            async with self._http.request(
                request.method,
                self.upstream + request.path_qs,
                data=body or None,
                headers=headers,
                allow_redirects=False,
            ) as answer:
                content = await answer.read()
                if relay is not None and answer.status < 300:
                    content = _map_sdp(answer.content_type, content, relay.to_client)
                    if not self.shared or relay is self.relays[0]:
                        relay.restart_script()
                kept = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP}
                return web.Response(status=answer.status, body=content, headers=kept)
        except aiohttp.ClientError as e:
            raise web.HTTPBadGateway(text=f"{self.upstream} does not answer: {unreachable(e)}") from e


def _map_sdp(content_type: str, body: bytes, rewrite: Callable[[str], str]) -> bytes:
    """The body with its SDP rewritten: `application/sdp`, or JSON with a member `sdp`."""
    try:
        if content_type == "application/sdp":
            return rewrite(body.decode()).encode()
        message = json.loads(body)
        if isinstance(message, dict) and isinstance(message.get("sdp"), str):
            return json.dumps(message | {"sdp": rewrite(message["sdp"])}).encode()
    except (ValueError, RecursionError):
        pass  # not ours to refuse: the server will
    return body


async def serve(
    upstream: str,
    written: Mapping[str, Any],
    *,
    host: str = "127.0.0.1",
    port: int = 8090,
    seed: int = 0,
    shared: bool = False,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve until cancelled. Raises: StageError."""
    lab = Netlab(upstream, written, MonotonicClock(), seed=seed, host=host, shared=shared)
    if lab.is_at(host, port):
        raise StageError(
            f"--port {port}: {upstream} would be the laboratory itself; choose another port for it"
        )
    runner = web.AppRunner(lab.app(), access_log=None, shutdown_timeout=0.5)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        if why := await lab.silent():
            log.warning("%s does not answer: %s; start a server there", lab.upstream, why)
        on_ready(f"http://{host}:{runner.addresses[0][1]}")
        await asyncio.Event().wait()
    except OSError as e:
        raise StageError(f"cannot listen on {host} port {port}: {e.strerror or e}") from e
    finally:
        await runner.cleanup()
