"""The commands that steer running graphs from outside, one place for HTTP and MQTT."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from ..pipeline.clock import MS
from ..pipeline.faults import near
from ..pipeline.graph import Plan
from ..pipeline.say import say
from ..pipeline.stage import StageError
from .event_bus import EventBus
from .headless import Headless, HeadlessSession
from .live_session import LiveSession
from .sessions import Sessions

MAX_TEXT = 2000  # characters of one line, as on the data channel


class NotThere(StageError):
    """A session, or a node of one, that never was, or has ended."""


class Desk:
    """Finds sessions of both kinds and acts on them. Raises StageError in words, never anything else."""

    def __init__(self, sessions: Sessions, bus: EventBus) -> None:
        self.sessions = sessions
        self.bus = bus
        self.headless = Headless(sessions.graphs, sessions.clock, sessions.factory)
        self.on_opened: list[Callable[[LiveSession | HeadlessSession], None]] = []
        self.on_closed: list[Callable[[LiveSession | HeadlessSession], None]] = []
        self.viewers: Callable[[str], int] = lambda session_id: 0  # how many watch that session
        self._spoken = itertools.count()
        sessions.opened, sessions.closed = self._opened, self._closed
        self.headless.opened, self.headless.closed = self._opened, self._closed

    @property
    def graphs(self) -> Mapping[str, Plan]:
        return self.sessions.graphs

    @property
    def broken(self) -> Mapping[str, str]:
        """Graphs that could not start when last tried → why, in words."""
        return self.sessions.broken

    def running(self) -> list[LiveSession | HeadlessSession]:
        return [*self.sessions.live.values(), *self.headless.live.values()]

    def find(self, session_id: str) -> LiveSession | HeadlessSession:
        live = self.sessions.live.get(session_id) or self.headless.live.get(session_id)
        if live is None:
            raise NotThere("there is no such session; it may have ended")
        return live

    def of(self, target: str) -> list[LiveSession | HeadlessSession]:
        """Sessions by id, or all of a graph by its name. Raises: NotThere when there is none."""
        found = [live for live in self.running() if target in (live.id, live.graph)]
        if not found:
            raise NotThere(f"no session and no running graph is named {target[:64]!r}")
        return found

    # ------------------------------------------------------------ commands

    def params(self, session_id: str, node: str, values: Mapping[str, Any]) -> dict[str, Any]:
        """Change live parameters. Returns all of the node's values."""
        session = self.find(session_id).session
        if node not in session.runners:
            raise NotThere(f"unknown node {node[:64]!r}{near(node, list(session.runners))}")
        session.set_params(node, values)
        return session.runners[node].params.model_dump(mode="json")

    def ask(self, session_id: str, text: str) -> None:
        """A line of text for the graph, as typed into the page's chat."""
        live = self.find(session_id)
        line(text)
        plan = live.session.plan
        if not isinstance(live, LiveSession) or not any(
            node.use == "webrtc.in" and plan.uses_port(node.name, "text") for node in plan.nodes.values()
        ):
            raise StageError(f"graph {live.graph!r} reads no text: it cannot be asked")
        live.line.chat.put_nowait(text)

    def say(self, session_id: str, text: str) -> None:
        """Speak these words."""
        say(self.find(session_id).session, line(text), next(self._spoken))

    def interrupt(self, session_id: str, scope: str | None = None) -> None:
        self.find(session_id).session.interrupt(scope, cause="command")

    async def start(self, graph: str, source: str = "") -> HeadlessSession:
        return await self.headless.start(graph, source)

    async def close(self, session_id: str) -> None:
        await self.find(session_id).close("ended by command")

    async def close_all(self) -> None:
        await asyncio.gather(self.headless.close_all(), self.sessions.close_all())

    # ------------------------------------------------------------ telling

    def summary(self, live: LiveSession | HeadlessSession) -> dict[str, Any]:
        """One row of `GET /sessions`."""
        figures = live.session.stats()["session"]
        return {
            "id": live.id,
            "graph": live.graph,
            "kind": "client" if isinstance(live, LiveSession) else "headless",
            "state": live.state if isinstance(live, LiveSession) else "running",
            "remote": live.remote,
            "up_s": figures["up_s"],
            "restarts": figures["restarts"],
            "viewers": self.viewers(live.id),
        }

    def _opened(self, live: LiveSession | HeadlessSession) -> None:
        live.session.listen(self.bus.forward(live.graph, live.id))
        self.bus.publish("opened", session=live.id, graph=live.graph, node="session")
        for told in self.on_opened:
            told(live)

    def _closed(self, live: LiveSession | HeadlessSession) -> None:
        """`Session.close` itself tells the reason, to its listeners."""
        took = live.session.clock.now() - live.session.began
        self.bus.publish("gone", {"up_ms": took // MS}, session=live.id, graph=live.graph, node="session")
        for told in self.on_closed:
            told(live)


def line(text: str) -> str:
    """Check a line from outside. Raises: StageError."""
    if not text.strip():
        raise StageError("the text is empty")
    if len(text) > MAX_TEXT:
        raise StageError(f"the text has {len(text)} characters; at most {MAX_TEXT} are taken")
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise StageError(f"the text is not Unicode: a lone surrogate at character {e.start + 1}") from e
    return text
