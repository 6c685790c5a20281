"""A server's whole life: warm up, say READY, take sessions, reload on SIGHUP, drain on SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from ..pipeline.clock import MS, SECOND, Clock, MonotonicClock
from ..pipeline.errors import one_line
from ..pipeline.graph import Plan
from ..pipeline.notify import Notifier
from ..pipeline.pools import Pools
from ..pipeline.session import Session
from ..pipeline.warm import loaded, warm
from ..pipeline.watchdog import LoopWatchdog
from .autostart import Autostart
from .headless import HeadlessSession
from .live_session import LiveSession, SessionFactory
from .mqtt_bridge import bridges
from .peer import Peer
from .reloader import Reloader
from .server import Server, token_from_environment
from .sessions import Sessions
from .settings import Settings, read_settings
from .sources import Sources
from .traces import FaultTraces

log = logging.getLogger(__name__)

OnReady: TypeAlias = Callable[[str, Mapping[str, str]], None]  # the URL; graphs that cannot start → why

WEDGED = 30 * SECOND  # a stage's call lasts this long although the engine ends hung calls after 10 s
# that graphs of `start` may hold READY up: a camera that is off must not fail the service
STARTING = 10 * SECOND
POLL = 50 * MS  # how often a drain looks whether all have left


class Daemon:
    """sources: the files of the graphs, by graph name, that a reload reads again. drain: ns that running
    sessions get when the daemon is told to stop. sockets: already listening, from the service manager.
    start: names of graphs that run all the time."""

    def __init__(
        self,
        graphs: Mapping[str, Plan],
        host: str = "127.0.0.1",
        port: int = 8080,
        *,
        token: str | None = None,
        settings: Settings | None = None,
        drain: int = 10 * SECOND,
        clock: Clock | None = None,
        session_factory: SessionFactory | None = None,
        sockets: Sequence[socket.socket] = (),
        notifier: Notifier | None = None,
        start: Sequence[str] = (),
    ) -> None:
        self.clock = clock or MonotonicClock()
        self.pools = Pools(clock=self.clock)  # the models of all sessions
        self.watchdog = LoopWatchdog()
        self.notifier = notifier or Notifier()
        self.drain_budget = drain
        self.graphs = dict(graphs)
        factory = session_factory or partial(Session, pools=self.pools)
        settings = settings or Settings()
        access = settings.access(token or token_from_environment() or "", self.clock.wall)
        ice = settings.ice()
        self.sessions = Sessions(self.graphs, self.clock, factory, settings.limits(), partial(Peer, ice=ice))
        self.server = Server(
            self.sessions,
            host,
            port,
            access,
            ice=ice,
            pools=lambda: self.pools.made,
            watchdog=self.watchdog,
            sockets=sockets,
            uplink_bps=settings.uplink,
            downlink_bps=settings.downlink,
        )
        self.traces = settings.traces and FaultTraces(settings.traces, self.server.desk, self.clock)
        self.server.desk.headless.sources = Sources(settings.allow_source)
        self.reloader = Reloader(self.graphs, self.server.desk.running)
        self._factory = factory
        self.autostart = Autostart(start, self.server.desk, self.clock)
        self.bridges = bridges(self.graphs, self.server.desk)
        self.server.metrics.links = [bridge.link for bridge in self.bridges]
        self._told_to_stop = asyncio.Event()
        self._trying = asyncio.Lock()
        self._announced = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self.server.desk.on_opened.append(self._opened)

    def stop(self) -> None:
        """Begin to drain."""
        self._told_to_stop.set()

    async def run(self, on_ready: OnReady | None = None) -> None:
        """Until cancelled or told to stop, then drained. Raises: ServeError."""
        self.watchdog.start()
        feeding: asyncio.Task[None] | None = None
        try:
            self.server.not_ready = "warming up"
            self.notifier.status("warming up")
            await self.server.start()
            with self._signals():
                await self._warm()
                self.server.tidier.begin()
                for bridge in self.bridges:
                    bridge.start()
                self.autostart.start()
                await self._first_of(
                    self.autostart.tried.wait(), self._told_to_stop.wait(), self.clock.sleep(STARTING)
                )
                if not self._told_to_stop.is_set():
                    feeding = self._say_ready(on_ready)
                await self._told_to_stop.wait()
                await self._drain()
        finally:
            if feeding is not None:
                feeding.cancel()
            for task in self._tasks:
                task.cancel()
            self.autostart.stop()
            self.notifier.stopping("stopping")
            await self.server.stop()
            for bridge in self.bridges:
                await bridge.stop()
            self.pools.close()
            self.watchdog.stop()

    def _say_ready(self, on_ready: OnReady | None) -> asyncio.Task[None]:
        if self.autostart.untried:
            log.warning("ready; still starting: %s", ", ".join(self.autostart.untried))
        self.notifier.ready(self.status())
        self._announced.set()
        if on_ready is not None:
            on_ready(self.server.url, self.sessions.broken)
        return asyncio.create_task(self.notifier.feed(self.clock, self.stuck, self.status), name="notify")

    @staticmethod
    async def _first_of(*events: Awaitable[object]) -> None:
        waiting = [asyncio.ensure_future(event) for event in events]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()

    async def _warm(self) -> None:
        for name in self.graphs:
            self.server.not_ready = f"warming up {name}"
            self.notifier.status(self.server.not_ready)
            await self._try(name)
        self.server.not_ready = ""

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _opened(self, live: LiveSession | HeadlessSession) -> None:
        if live.graph in self.sessions.broken:
            self._spawn(self._look(live), f"{live.id}/look")

    async def _look(self, live: LiveSession | HeadlessSession) -> None:
        """A graph that could not start has: is it whole now, with what its stages load in the background?"""
        whole = False
        try:
            while not whole and live in self.server.desk.running():
                whole = await loaded(live.session)
        except Exception as e:  # noqa: BLE001 - the boundary: the session tells it, this only keeps the book
            self.sessions.broken[live.graph] = one_line(e)
        else:
            if whole and live in self.server.desk.running():  # of one that ended meanwhile nothing is known
                self.sessions.broken.pop(live.graph, None)

    async def _try(self, name: str) -> None:
        """What it says of a graph holds until the next try, or until a session of it runs as a whole."""
        async with self._trying:  # tries share an id, and so what the pools keep of them
            if why := await warm(self.graphs[name], self.clock, self._factory):
                self.sessions.broken[name] = why
            else:
                self.sessions.broken.pop(name, None)

    # ------------------------------------------------------------ what is told

    def status(self) -> str:
        n = len(self.server.desk.running())
        state = "draining, " if self._told_to_stop.is_set() else ""
        broken = ", ".join(self.sessions.broken)
        return f"{state}{n} session{'' if n == 1 else 's'}; {self.server.url}" + (
            f"; cannot start: {broken}" if broken else ""
        )

    def stuck(self) -> str:
        """What makes no progress, in words; empty when all is well. The loop itself is seen by the feeder:
        while it is blocked, nothing is fed."""
        now = self.clock.now()
        for live in self.server.desk.running():
            for runner in live.session.runners.values():
                if runner.waits_since and now - runner.waits_since > WEDGED:
                    return f"{live.id}/{runner.node} has not returned for {WEDGED // SECOND} s"
        return ""

    # ------------------------------------------------------------ signals

    @contextlib.contextmanager
    def _signals(self):  # pyright: ignore[reportUnknownParameterType]
        loop = asyncio.get_running_loop()
        handled: list[signal.Signals] = []
        for number, act in ((signal.SIGTERM, self.stop), (signal.SIGHUP, self.reload)):
            with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):  # not on the main thread
                loop.add_signal_handler(number, act)
                handled.append(number)
        try:
            yield
        finally:
            for number in handled:
                loop.remove_signal_handler(number)

    def reload(self) -> None:
        """Read the graph files again, on a thread, and apply what changed."""
        self._spawn(self._reload(), "reload")

    async def _reload(self) -> None:
        await self._announced.wait()  # its end says READY, which a daemon that warms up is not
        self.notifier.reloading(self.clock)
        result = await self.reloader.reload()
        for name in {*result.changed, *self.sessions.broken}.difference(self.autostart.names):
            await self._try(name)  # those that run all the time are tried again anyway
        self.server.bus.publish("reloaded", result.as_json(), node="daemon")
        self.notifier.ready(result.words() or self.status())

    async def _drain(self) -> None:
        """Refuse new sessions, tell the running ones, and give them their time."""
        desk, budget = self.server.desk, self.drain_budget
        await self.autostart.close()
        self.server.not_ready = "the server is shutting down"
        self.sessions.refuse_new()
        desk.headless.stopping = True
        running = len(desk.running())
        self.notifier.stopping(f"draining {running} sessions")
        self.notifier.extend(budget + 5 * SECOND)
        fields = {"within_ms": budget // MS, "reason": "the server is shutting down"}
        self.server.bus.publish("draining", fields, node="daemon")
        for live in self.sessions.live.values():
            live.channel.event("server", "draining", fields, self.clock.now())
        log.info("draining: %d sessions have %d ms", running, budget // MS)
        until = self.clock.now() + budget
        while desk.running() and self.clock.now() < until:
            await self.clock.sleep(POLL)


async def serve(
    graphs: Mapping[str, Plan],
    host: str = "127.0.0.1",
    port: int = 8080,
    clock: Clock | None = None,
    session_factory: SessionFactory | None = None,
    on_ready: OnReady | None = None,
    *,
    token: str | None = None,
    config: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    drain: int = 10 * SECOND,
    sockets: Sequence[socket.socket] = (),
    start: Sequence[str] = (),
) -> None:
    """Serve until cancelled, or told to stop by SIGTERM and drained. on_ready is given the URL, and what cannot start.

    graphs: by name; the first is the default. token: from the environment when None. config, flags: see
    `Settings`. start: graphs of own sources that run as long as the daemon does. Raises: ServeError, StageError,
    GraphError.
    """
    daemon = Daemon(
        graphs,
        host,
        port,
        token=token,
        settings=read_settings(config, flags or {}),
        drain=drain,
        clock=clock,
        session_factory=session_factory,
        sockets=sockets,
        start=start,
    )
    await daemon.run(on_ready)
