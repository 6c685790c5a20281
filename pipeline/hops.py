"""The two ways from an edge into a stage, each compiled once into a closure.

`burst`: the node's own task takes what is queued. `fused_post`: the feeder calls a cheap stage on the spot,
so that a chain of such stages runs as nested calls, without a task switch between them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from .edge import Edge
from .frame import Frame
from .outputs import NodeOutputs, Post
from .recorder import Kind
from .stage import Dropped

if TYPE_CHECKING:
    from .runner import Runner

TAKE, DONE, FUSED = int(Kind.TAKE), int(Kind.DONE), int(Kind.FUSED)  # an enum's member is slow to reach
SAMPLE = 15  # of 16 frames, those that are not timed: two looks at the clock cost half a hop
ALL = 64  # the first frames of an edge are all timed: there are few yet


def burst(runner: Runner, edge: Edge, *, enters: bool, alone: bool) -> Callable[[], Awaitable[None] | None]:
    """Process queued frames until one has to wait: what it waits for, or None.

    alone: the node's only edge; then it goes on with the next frame, as long as nobody is kept waiting.
    """
    out, queue, control, now = runner.out, edge.queue, runner.lane, runner.clock.now
    port, source, popleft, blocking = edge.dst_port, edge.source, edge.queue.popleft, runner.out.blocking
    note, here, done = runner.marks(edge)

    def run() -> Awaitable[None] | None:
        out.source = source
        process = runner.process
        while queue:
            start = now()
            frame = popleft()
            if edge.odd or frame.deadline < start or frame.epoch < edge.epoch:
                queue.appendleft(frame)
                return runner.take(edge, start)
            if edge.full:
                edge.drained()
            edge.taken = count = edge.taken + 1
            out.epoch = runner.epoch if enters else frame.epoch
            if note is not None:
                note((TAKE, here, start, frame.pts, len(queue), frame.epoch))
            work = process(port, frame, out)
            if not count & SAMPLE or count < ALL:
                edge.observe(start - frame.pts)
                if work is None:
                    end = now()
                    runner.busy += (end - start) * (1 if count < ALL else SAMPLE + 1)
                    if note is not None:
                        note((DONE, done, end, 0, 0, 0))
            if work is not None:
                return work
            if control or not alone:
                return None
            for output in blocking:
                if output.full:
                    return None
        return None

    return run


class Chain:
    """Time within one run of nested calls: it stands still. 0 between the runs."""

    __slots__ = ("now",)

    def __init__(self) -> None:
        self.now = 0


class Open:
    """Stands for no waiting output."""

    full = False


class Gate:
    """Several waiting outputs seen as one."""

    __slots__ = ("_edges",)

    def __init__(self, edges: Sequence[Edge]) -> None:
        self._edges = edges

    @property
    def full(self) -> bool:
        return any([edge.full for edge in self._edges])


def fused_post(
    runner: Runner,
    edge: Edge,
    feeder: NodeOutputs,
    chain: Chain,
    *,
    enters: bool,
    head: bool,
    scoped: bool,
) -> Post:
    """What the feeder of `edge` calls for each frame, in place of `Edge.put`.

    It gives way to the queue whenever the node's own task has something to do (control, a gap to tell, a
    restart) or an output is held up; epochs, deadlines and counts hold on both paths. While `edge.armed`,
    the queue is empty.

    head: the first of its chain. Deadlines are checked at each hop, against the time when the frame
    entered the chain: its stages take microseconds, and a look at the clock costs a third of a hop.
    scoped: the feeder stands in a scope, so that its frames may be void.
    """
    out, now, enqueue = runner.out, runner.clock.now, edge.post
    port, feeds, blocking = edge.dst_port, edge.src_port, runner.out.blocking
    note, here, _ = runner.marks(edge)
    posts = feeder.note
    gate = Gate(blocking) if len(blocking) > 1 else blocking[0] if blocking else Open()

    def post(feeding: str, frame: Frame) -> None:
        if feeding != feeds:
            raise edge.refuse(feeding)
        if not edge.armed or (scoped and frame.epoch < edge.epoch) or gate.full:
            edge.armed = False
            if posts is not None:
                posts(feeding, frame)
            enqueue(feeding, frame)
            return
        start = chain.now or now()
        if frame.deadline < start:
            edge.lose(frame, "late")
            if posts is not None:
                posts(feeding, frame)
            return
        edge.inlined = count = edge.inlined + 1
        out.epoch = runner.epoch if enters else frame.epoch
        if note is not None:
            note((FUSED, here, start, frame.pts, frame.deadline, frame.epoch))
        if head:
            chain.now = start
        try:
            runner.process(port, frame, out)
        except Dropped:
            runner.missed += 1
        except Exception as e:  # noqa: BLE001 - supervisor's boundary: this node's error, not its feeder's
            edge.armed = False
            runner.fail(e)
        finally:
            if head:
                chain.now = 0
        if count & SAMPLE == 1:
            edge.observe(start - frame.pts)
            runner.busy += (now() - start) * (SAMPLE + 1)

    return post
