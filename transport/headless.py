"""Graphs that run without a client: files, cameras and synthetic sources in, files and events out."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from ..pipeline.clock import Clock
from ..pipeline.graph import Plan
from ..pipeline.session import Binding, Session
from ..pipeline.stage import StageError
from .file_in import FileIn
from .line import Line
from .live_session import SessionFactory, hears_live, media_of
from .sources import Sources
from .webrtc_stages import WebRtcOut

log = logging.getLogger(__name__)


class NotNow(StageError):
    """The server starts no graph at present, whichever it is."""


class HeadlessSession:
    """One running graph. The same face as a client's session, without a peer."""

    def __init__(self, plan: Plan, clock: Clock, factory: SessionFactory, source: str = "") -> None:
        self.id = f"h-{secrets.token_hex(8)}"
        self.graph = plan.name
        self.remote = ""
        self.line = Line(clock)  # to those who watch; there is no client of its own
        hears = hears_live(plan)
        bindings: dict[str, Binding] = {
            "webrtc.out": lambda options, params: WebRtcOut(options, params, self.line, None, hears)
        }
        if source:
            bindings["file.in"] = lambda options, params: FileIn(options, params, path=source)
        self.session: Session = factory(plan, self.id, clock, bindings=bindings)

    async def close(self, reason: str) -> None:
        await self.session.close(reason)
        self.line.close()

    def stats(self) -> dict[str, Any]:
        return dict(self.session.stats()) | {"transport": {"shared": self.line.broadcast.stats()}}


class Headless:
    """All graphs started by command. limit: how many may run at a time."""

    def __init__(
        self, graphs: Mapping[str, Plan], clock: Clock, factory: SessionFactory, limit: int = 8
    ) -> None:
        self.graphs = graphs
        self.live: dict[str, HeadlessSession] = {}
        self.opened: Callable[[HeadlessSession], None] = lambda live: None
        self.closed: Callable[[HeadlessSession], None] = lambda live: None
        self.limit = limit
        self.stopping = False
        # graphs that run all the time but for pauses → when the last pause ends
        self.kept: dict[str, int] = {}
        self.sources = Sources()  # that callers may name
        self._clock = clock
        self._factory = factory
        self._tasks: set[asyncio.Task[None]] = set()

    def check(self, graph: str) -> Plan:
        """The plan of a graph that can be started by command. Raises: StageError in words."""
        plan = self.graphs.get(graph)
        if plan is None:
            raise StageError(f"unknown graph {graph[:64]!r}; this server has: {', '.join(self.graphs)}")
        live_ends = [n.name for n in plan.nodes.values() if n.use == "webrtc.in"]
        if live_ends:
            raise StageError(
                f"graph {graph!r} needs a client for its live ends ({', '.join(live_ends)}); only graphs of "
                "files, cameras and other own sources can be started by command"
            )
        return plan

    def of(self, graph: str) -> HeadlessSession | None:
        """The run of that graph that has something to watch; the oldest of several."""
        for live in self.live.values():
            if live.graph == graph and media_of(live.session.plan)[1]:
                return live
        return None

    async def start(self, graph: str, source: str = "") -> HeadlessSession:
        """Start a graph by name. source: what its one `file.in` reads in place of its own path; one that
        `sources` allow. Raises: StageError in words."""
        plan = self.check(graph)
        if source:
            source = self.sources.check(source)
            if (n := sum(node.use == "file.in" for node in plan.nodes.values())) != 1:
                raise StageError(
                    f"graph {graph!r} has {n} nodes file.in; a source can be given to one that has 1"
                )
        if self.stopping:
            raise NotNow("the server is shutting down")
        if len(self.live) >= self.limit:
            raise NotNow(f"{self.limit} started graphs run already; stop one first")
        live = HeadlessSession(plan, self._clock, self._factory, source)
        self.live[live.id] = live
        try:
            await live.session.start()
        except BaseException:
            self.live.pop(live.id, None)
            live.line.close()
            raise
        self.opened(live)
        task = asyncio.create_task(self._keep(live), name=f"{live.id}/keep")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return live

    async def _keep(self, live: HeadlessSession) -> None:
        try:
            await live.session.wait()
        finally:
            live.line.close()
            self.live.pop(live.id, None)
            self.closed(live)

    async def stop(self, graph: str) -> int:
        """End all runs of that graph. Returns how many there were."""
        mine = [live for live in self.live.values() if live.graph == graph]
        await asyncio.gather(*(live.close("stopped by command") for live in mine))
        return len(mine)

    async def close_all(self) -> None:
        self.stopping = True
        await asyncio.gather(*(live.close("the server stops") for live in list(self.live.values())))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)
