"""The HTTP server: the page, signalling, WHIP and WHEP (docs/protocol.md)."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..pipeline.pools import DevicePool
from ..pipeline.stage import StageError
from ..pipeline.watchdog import LoopWatchdog
from . import whip
from .api import Api
from .body import text_of
from .desk import Desk
from .event_bus import EventBus
from .guard import Guard, is_loopback
from .memory import limit_arenas
from .metrics import Metrics
from .sessions import Sessions

log = logging.getLogger(__name__)

MAX_BODY = 128 * 1024  # bytes; a browser's offer has about 8 KiB
WEB = Path(__file__).parent / "web"


class ServeError(StageError):
    """The server cannot start; says what to change."""


class _Offer(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    sdp: str
    type: str = Field(default="offer", pattern="^offer$")
    graph: str | None = None


def token_from_environment() -> str | None:
    """PENSTOCK_TOKEN, or the first line of the file PENSTOCK_TOKEN_FILE. Raises: ServeError."""
    if token := os.environ.get("PENSTOCK_TOKEN", "").strip():
        return token
    if path := os.environ.get("PENSTOCK_TOKEN_FILE"):
        try:
            token = Path(path).read_text().strip().partition("\n")[0]
        except (OSError, UnicodeDecodeError) as e:
            raise ServeError(f"PENSTOCK_TOKEN_FILE {path!r} cannot be read: {e}") from e
        if not token:
            raise ServeError(f"PENSTOCK_TOKEN_FILE {path!r} is empty")
        return token
    return None


def make_app(sessions: Sessions, api: Api, host: str, token: str | None) -> web.Application:
    """All routes. host: what the app will be bound to."""
    pages = {"/": WEB / "index.html"} | {
        f"/{path.relative_to(WEB).as_posix()}": path for path in sorted(WEB.rglob("*")) if path.is_file()
    }
    guard = Guard(host, token, frozenset(pages) | api.open_paths)
    app = web.Application(middlewares=[guard.middleware], client_max_size=MAX_BODY)

    async def page(request: web.Request) -> web.StreamResponse:
        path = pages[request.path]
        if not path.is_file():
            raise web.HTTPNotFound(text="this installation has no page")
        return web.FileResponse(path)

    async def create(request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            raise web.HTTPUnsupportedMediaType(
                text=f"the content type is {request.content_type!r}; application/json is taken"
            )
        try:
            offer = _Offer.model_validate(json.loads(await text_of(request)))
        except ValidationError as e:
            first = e.errors()[0]
            where = ".".join(map(str, first["loc"])) or "body"
            raise web.HTTPBadRequest(text=f"{where}: {first['msg']}") from e
        except (ValueError, RecursionError) as e:
            raise web.HTTPBadRequest(text="the body is not JSON in UTF-8") from e
        live, answer = await sessions.open(offer.graph or sessions.default, offer.sdp, request.remote or "")
        return web.json_response({"session": live.id, "sdp": answer, "type": "answer"})

    async def end(request: web.Request) -> web.Response:
        await sessions.close(request.match_info["id"], "the client ended it")
        return web.json_response({})

    async def stats(request: web.Request) -> web.Response:
        live = sessions.live.get(request.match_info["id"])
        if live is None:
            raise web.HTTPNotFound(text="there is no such session; it may have ended")
        return web.json_response(live.stats())

    for path in pages:
        app.router.add_get(path, page)
    app.router.add_post("/session", create)
    app.router.add_delete("/session/{id}", end)
    app.router.add_get("/session/{id}/stats", stats)
    api.add_routes(app)
    whip.add_routes(app, sessions)
    return app


class Server:
    """A server that can be started and stopped; `serve` is the one for command lines."""

    def __init__(
        self,
        sessions: Sessions,
        host: str,
        port: int,
        token: str | None = None,
        *,
        pools: Callable[[], Mapping[str, DevicePool]] | None = None,
        watchdog: LoopWatchdog | None = None,
        sockets: Sequence[socket.socket] = (),
    ) -> None:
        # what a service manager bound for us counts, not what --host says
        bound = [s.getsockname()[0] for s in sockets if s.family in (socket.AF_INET, socket.AF_INET6)]
        host = next((name for name in bound if not is_loopback(name)), bound[0] if bound else host)
        if not is_loopback(host) and not token:
            raise ServeError(
                f"--host {host} lets other machines in: set PENSTOCK_TOKEN (or PENSTOCK_TOKEN_FILE) to a "
                "secret that clients must send, or stay on 127.0.0.1"
            )
        self.sessions = sessions
        self.host = host
        self.port = port
        self.sockets = sockets  # listening already: opened by the service manager
        self.not_ready = ""  # why no session is taken now, for /health/ready
        self.bus = EventBus(sessions.clock.wall)
        self.desk = Desk(sessions, self.bus)
        self.metrics = Metrics(self.desk, pools or dict, watchdog or LoopWatchdog())
        api = Api(self.desk, self.metrics, lambda: self.not_ready)
        self._runner = web.AppRunner(
            make_app(sessions, api, host, token), access_log=None, handle_signals=False, shutdown_timeout=0.5
        )

    @property
    def url(self) -> str:
        name = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{name}:{self.port}"

    async def start(self) -> None:
        """Bind and listen; port 0 takes a free one. Raises: ServeError."""
        limit_arenas()
        await self._runner.setup()
        try:
            for listening in self.sockets:
                await web.SockSite(self._runner, listening).start()
            if not self.sockets:
                await web.TCPSite(self._runner, self.host, self.port).start()
        except OSError as e:
            await self._runner.cleanup()
            if e.errno == errno.EADDRINUSE:
                raise ServeError(
                    f"port {self.port} of {self.host} is in use; stop the other server or choose --port"
                ) from e
            raise ServeError(f"cannot listen on {self.host} port {self.port}: {e.strerror or e}") from e
        address = self._runner.addresses[0]
        self.port = address[1] if isinstance(address, tuple) else 0  # 0: a Unix socket

    async def stop(self) -> None:
        """Stop listening and end all sessions, within about two seconds."""
        for site in list(self._runner.sites):
            await site.stop()
        self.bus.close()
        await self.desk.close_all()
        await self._runner.cleanup()
