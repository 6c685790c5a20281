"""Runs a recorded trace again on the virtual clock: the same frames at the same times, through the real engine.

Sources post what they posted, each stage takes as long as it took and posts what it posted, flushes come when they
came. What the engine decides (queueing, dropping, deadlines, order) is decided anew. So a loss that was seen can
be looked into, again and again, without the models. Frames are empty: bounds in bytes cannot be replayed.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import Counter, defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import numpy as np

from .clock import NEVER, LoopClock
from .edge import Bound
from .filters import Filters
from .frame import Frame, TokenFrame
from .graph import EdgePlan, NodePlan, Plan
from .recorder import Kind
from .session import Session
from .stage import In, NoFields, Out, Outputs, Ports, Stage, StageError
from .trace import NodeShape, Shape, Trace
from .trace import take as taken
from .virtual_loop import run_virtual


class Posted(NamedTuple):
    """at: ns, since the call began, or since the start of the trace."""

    at: int
    port: str
    pts: int
    deadline: int
    epoch: int


@dataclass(slots=True)
class Call:
    """One frame in a stage. duration: ns; -1 when it was not noted."""

    began: int
    duration: int = -1
    posts: list[Posted] = field(default_factory=list[Posted])


@dataclass(slots=True)
class Script:
    """What a node did. calls: by edge and pts."""

    free: list[Posted] = field(default_factory=list[Posted])  # in no call: a source's
    calls: dict[tuple[str, int], deque[Call]] = field(
        default_factory=lambda: defaultdict[tuple[str, int], deque[Call]](deque)
    )

    def usual(self) -> int:
        """Median of the durations noted."""
        known = [c.duration for calls in self.calls.values() for c in calls if c.duration >= 0]
        return round(statistics.median(known)) if known else 0


class EdgeCount(NamedTuple):
    """Frames that an edge's reader took, and that it lost, by reason."""

    taken: int
    lost: Mapping[str, int]


class Replay(NamedTuple):
    """edges: by name, as recorded and as replayed. again: the trace of the replay itself."""

    edges: dict[str, tuple[EdgeCount, EdgeCount]]
    seconds: float
    again: Trace
    digest: str

    @property
    def same(self) -> bool:
        return all(before == after for before, after in self.edges.values())


class Actor(Stage):
    """Plays one node's script."""

    script: ClassVar[Script]
    usual: ClassVar[int]
    until: ClassVar[int]

    async def setup(self) -> None:
        self._playing: list[asyncio.Task[None]] = []

    async def run(self, out: Outputs) -> None:
        await self._play(self.script.free, 0, out)
        await self._until(self.until)

    def process(self, port: str, frame: Frame, out: Outputs):  # type: ignore[no-untyped-def]
        if self.script.free and not self._playing:  # what it posted by itself, beside its calls
            self._playing.append(asyncio.ensure_future(self._play(self.script.free, 0, out)))
        calls = self.script.calls.get((f"{out.source}->{self.ctx.node}.{port}", frame.pts))
        call = calls.popleft() if calls else Call(0)
        duration = self.usual if call.duration < 0 else call.duration
        if self.inline or (duration == 0 and all(p.at == 0 for p in call.posts)):
            for post in call.posts:
                out.post(post.port, _frame(post))
            return None
        return self._take(call, duration, out)

    async def close(self) -> None:
        for task in self._playing:
            task.cancel()

    async def _take(self, call: Call, duration: int, out: Outputs) -> None:
        began = self.ctx.clock.now()
        inside = [p for p in call.posts if p.at <= duration]
        later = [p for p in call.posts if p.at > duration]  # by a task of its own
        if later:
            self._playing.append(asyncio.ensure_future(self._play(later, began, out)))
        await self._play(inside, began, out)
        await self._until(began + duration)

    async def _play(self, posts: list[Posted], began: int, out: Outputs) -> None:
        for post in posts:
            await self._until(began + post.at)
            out.post(post.port, _frame(post))

    async def _until(self, at: int) -> None:
        wait = at - self.ctx.clock.now()
        if wait > 0:
            await self.ctx.clock.sleep(wait)


def replay(trace: Trace) -> Replay:
    """Raises: StageError when the trace holds nothing."""
    if not len(trace.events):
        raise StageError("the trace holds no events")
    base, end = int(trace.events[:, 2].min()), int(trace.events[:, 2].max())
    scripts, flushes = _scripts(trace, base)
    plan = _plan(trace.shape, scripts, end - base)

    async def main() -> Session:
        session = Session(plan, f"replay-{trace.session}", LoopClock(asyncio.get_running_loop()))
        await session.start()
        for at, scope in flushes:
            await session.clock.sleep(max(0, at - session.clock.now()))
            session.interrupt(scope, cause="replay")
        await session.clock.sleep(max(0, end - base - session.clock.now()))
        session.pack()
        return session

    async def whole() -> tuple[Trace, str]:
        session = await main()
        again = taken(session, "replay")
        assert session.recorder is not None
        digest = session.recorder.digest
        await session.close("replayed")
        return again, digest

    again, digest = run_virtual(whole())
    before, after = _counts(trace), _counts(again)
    names = [f"{e.source}->{e.node}.{e.port}" for e in trace.shape.edges]
    nothing = EdgeCount(0, {})
    edges = {name: (before.get(name, nothing), after.get(name, nothing)) for name in names}
    return Replay(edges, (end - base) / 1e9, again, digest)


def _frame(post: Posted) -> Frame:
    return TokenFrame(pts=post.pts, deadline=post.deadline, epoch=post.epoch, text="")


def _scripts(trace: Trace, base: int) -> tuple[dict[str, Script], list[tuple[int, str]]]:
    """By node; and when which scope was flushed. All times from the start of the trace."""
    names, shape = trace.names, trace.shape
    scripts = {node.name: Script() for node in shape.nodes}
    readers = {f"{e.source}->{e.node}.{e.port}": e.node for e in shape.edges}
    flushes: list[tuple[int, str]] = []
    last: dict[str, Call | None] = {}

    def post(source: str, at: int, pts: int, deadline: int, epoch: int) -> None:
        node, _, port = source.partition(".")
        call = last.get(node)
        due = deadline if deadline == NEVER else deadline - base
        posted = Posted(at - (call.began if call else 0), port, pts - base, due, epoch)
        (call.posts if call else scripts[node].free).append(posted)

    for kind, where, when, a, b, c in trace.events.tolist():
        name, at = names[where], when - base
        if kind == Kind.POST and name.partition(".")[0] in scripts:
            post(name, at, a, b, c)
        elif kind in (Kind.TAKE, Kind.FUSED) and name in readers:
            node = readers[name]
            if kind == Kind.FUSED:
                post(name.partition("->")[0], at, a, b, c)
            call = last[node] = Call(at, 0 if kind == Kind.FUSED else -1)
            scripts[node].calls[name, a - base].append(call)
        elif kind == Kind.DONE and last.get(name) is not None:
            call = last[name]
            assert call is not None
            call.duration = at - call.began
        elif kind == Kind.FLUSH:
            flushes.append((at, name))
    return scripts, flushes


def _plan(shape: Shape, scripts: Mapping[str, Script], until: int) -> Plan:
    inputs: dict[str, list[EdgePlan]] = defaultdict(list)
    for e in shape.edges:
        source, _, port = e.source.partition(".")
        bound = Bound(e.full, span=e.span, count=e.count)
        filters = Filters(thin=e.thin, hold=e.hold, delay=e.delay, match=e.match)
        inputs[e.node].append(EdgePlan(source, port, e.node, e.port, bound, filters))
    nodes = {n.name: _node(n, tuple(inputs[n.name]), scripts[n.name], until) for n in shape.nodes}
    for e in shape.edges:
        node, _, port = e.source.partition(".")
        if e.node not in nodes or node not in nodes or port not in nodes[node].cls.ports.outputs:
            raise StageError(f"the trace's edge {e.source}->{e.node}.{e.port} joins nothing that it lists")
    return Plan(shape.graph, nodes)


def _node(shape: NodeShape, inputs: tuple[EdgePlan, ...], script: Script, until: int) -> NodePlan:
    ports = Ports(
        inputs={e.port: In(TokenFrame, many=True) for e in inputs},
        outputs={port: Out(TokenFrame, "token") for port in shape.outputs},
    )
    fields = {
        "ports": ports,
        "inline": shape.inline,
        "script": script,
        "usual": script.usual(),
        "until": until,
    }
    cls = type(f"Actor_{shape.name}", (Actor,), fields)
    return NodePlan(
        shape.name, "replay", cls, NoFields(), NoFields(), inputs, scope=shape.scope, driver=shape.driver
    )


def _counts(trace: Trace) -> dict[str, EdgeCount]:
    taken: Counter[str] = Counter()
    lost: dict[str, Counter[str]] = defaultdict(Counter)
    rows = trace.events
    for kind, where, _, a, b, _ in rows[np.isin(rows[:, 0], [Kind.TAKE, Kind.FUSED, Kind.LOST])].tolist():
        if kind == Kind.LOST:
            lost[trace.names[where]][trace.names[a]] += b
        else:
            taken[trace.names[where]] += 1
    return {name: EdgeCount(taken[name], dict(lost[name])) for name in taken.keys() | lost.keys()}
