"""The HTTP server: the page, signalling, WHIP and WHEP (docs/protocol.md)."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from aiohttp import web

from ..pipeline.clock import SECOND, Clock
from ..pipeline.pools import DevicePool
from ..pipeline.stage import StageError
from ..pipeline.tokens import TokenFile
from ..pipeline.watchdog import LoopWatchdog
from .access import OPEN, Access, is_loopback
from .api import Api
from .desk import Desk
from .event_bus import EventBus
from .guard import Guard
from .ice import NO_ICE, Ice
from .memory import Tidier, limit_arenas
from .metrics import Metrics
from .openapi import Route
from .sessions import Sessions
from .signalling import Signalling
from .viewers import Viewers
from .whip import Whip

log = logging.getLogger(__name__)

MAX_BODY = 128 * 1024  # bytes; a browser's offer has about 8 KiB
SHORT = 16  # characters of a token that somebody might guess
LOOK = 2 * SECOND  # between looks at the token file
WEB = Path(__file__).parent / "web"


class ServeError(StageError):
    """The server cannot start; says what to change."""


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


def make_app(
    host: str, access: Access, clock: Clock, routes: Sequence[Route], refusals: Counter[int]
) -> web.Application:
    """The routes, the page, and the guard before them. host: what the app will be bound to."""
    pages = {"/": WEB / "index.html"} | {
        f"/{path.relative_to(WEB).as_posix()}": path for path in sorted(WEB.rglob("*")) if path.is_file()
    }
    open_paths = frozenset(pages) | {route.path for route in routes if route.open}
    guard = Guard(host, access, clock, routes, open_paths, refusals)
    app = web.Application(middlewares=[guard.middleware], client_max_size=MAX_BODY)
    app.on_response_prepare.append(guard.prepare)

    async def page(request: web.Request) -> web.StreamResponse:
        path = pages[request.path]
        if not path.is_file():
            raise web.HTTPNotFound(text="this installation has no page")
        return web.FileResponse(path)

    for path in pages:
        app.router.add_get(path, page)
    for route in routes:
        app.router.add_route(route.method, route.path, route.handler)
    return app


class Server:
    """A server that can be started and stopped; `serve` is the one for command lines."""

    def __init__(
        self,
        sessions: Sessions,
        host: str,
        port: int,
        access: Access = OPEN,
        *,
        ice: Ice = NO_ICE,
        pools: Callable[[], Mapping[str, DevicePool]] | None = None,
        watchdog: LoopWatchdog | None = None,
        sockets: Sequence[socket.socket] = (),
        uplink_bps: int = 0,
        downlink_bps: int = 0,
    ) -> None:
        """uplink_bps, downlink_bps: of the link that all clients share; 0: no bound but each one's path."""
        # what a service manager bound for us counts, not what --host says
        bound = [s.getsockname()[0] for s in sockets if s.family in (socket.AF_INET, socket.AF_INET6)]
        host = next((name for name in bound if not is_loopback(name)), bound[0] if bound else host)
        public = bool(access.proxies or access.hosts)
        if (not is_loopback(host) or public) and not access.closed:
            what = "a proxy in front" if public else f"--host {host}"
            raise ServeError(
                f"{what} lets other machines in: set PENSTOCK_TOKEN (or PENSTOCK_TOKEN_FILE) to a secret that "
                "clients must send, or give --tokens FILE; or stay on 127.0.0.1"
            )
        if not is_loopback(host) and access.token and len(access.token) < SHORT:
            log.warning(
                "the token has %d characters; `penstock token create` makes one that nobody guesses",
                len(access.token),
            )
        self.sessions = sessions
        self.host = host
        self.port = port
        self.sockets = sockets  # listening already: opened by the service manager
        self.not_ready = ""  # why no session is taken now, for /health/ready
        self.bus = EventBus(sessions.clock.wall)
        self.desk = Desk(sessions, self.bus)
        self.tidier = Tidier(lambda: bool(self.desk.running()))
        self.desk.on_closed.append(lambda live: self.tidier.ended())
        self.viewers = Viewers(
            sessions.clock,
            sessions.make_peer,
            sessions.limits.viewers,
            sessions.limits.per_client,
            lambda name: sum(s.caller.name == name for s in sessions.live.values()),
        )
        self.desk.viewers = self.viewers.of
        self.metrics = Metrics(self.desk, pools or dict, watchdog or LoopWatchdog(), self.viewers)
        self.access = access
        self.budgets = sessions.budgets(uplink_bps, downlink_bps, self.viewers.pictures)
        self._sharing: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        api = Api(self.desk, self.metrics, lambda: self.not_ready, access)
        api.routes += (
            Signalling(sessions, ice).routes + Whip(sessions, ice, self.desk, self.viewers).routes
        )  # described with it
        self.routes = api.routes
        self._runner = web.AppRunner(
            make_app(host, access, sessions.clock, api.routes, self.metrics.refusals),
            access_log=None,
            handle_signals=False,
            shutdown_timeout=0.5,
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
        self._sharing = asyncio.create_task(self.budgets.run(), name="budgets")
        if self.access.tokens is not None:
            self._watching = asyncio.create_task(self._watch_tokens(self.access.tokens), name="tokens")

    async def _watch_tokens(self, tokens: TokenFile) -> None:
        """Follow the file; sessions of a token that was revoked or has expired end."""
        while True:
            await self.sessions.clock.sleep(LOOK)
            tokens.refresh()
            all_live = [*self.sessions.live.values(), *self.viewers.live.values()]
            void = [s for s in all_live if not self.access.is_known(s.caller.name)]
            await asyncio.gather(*(live.close("its token is no longer valid") for live in void))

    async def stop(self) -> None:
        """Stop listening and end all sessions, within about two seconds."""
        for site in list(self._runner.sites):
            await site.stop()
        for task in (self._watching, self._sharing):
            if task is not None:
                task.cancel()
        self.bus.close()
        await asyncio.gather(self.viewers.close_all(), self.desk.close_all())  # each has its own bound
        self.tidier.end()
        await self._runner.cleanup()
