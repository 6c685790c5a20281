"""WHIP (RFC 9725) and WHEP: sessions for OBS, FFmpeg, GStreamer and players, by plain SDP over HTTP.

Both run a copy of the graph for the one client: a WHIP client sends its media into it, a WHEP client only
receives. Trickle ICE and restarts are not supported: the answer holds all candidates, PATCH gives 405.
"""

from __future__ import annotations

from aiohttp import web

from .body import text_of
from .sessions import Sessions

SDP = "application/sdp"


def add_routes(app: web.Application, sessions: Sessions) -> None:
    async def create(request: web.Request) -> web.Response:
        if request.content_type != SDP:
            raise web.HTTPUnsupportedMediaType(
                text=f"the content type is {request.content_type!r}; {SDP} is taken"
            )
        kind = request.path.split("/")[1]
        live, answer = await sessions.open(
            request.match_info["graph"], await text_of(request), request.remote or ""
        )
        return web.Response(
            status=201,
            text=answer,
            content_type=SDP,
            headers={"Location": f"/{kind}/{live.graph}/{live.id}", "ETag": f'"{live.id}"'},
        )

    async def end(request: web.Request) -> web.Response:
        await sessions.close(request.match_info["id"], "the client ended it")
        return web.Response()

    async def options(_: web.Request) -> web.Response:
        return web.Response(status=204, headers={"Accept-Post": SDP})

    for kind in ("whip", "whep"):
        app.router.add_post(f"/{kind}/{{graph}}", create)
        app.router.add_options(f"/{kind}/{{graph}}", options)
        app.router.add_delete(f"/{kind}/{{graph}}/{{id}}", end)
