"""A bounded queue between two stages: one producer, one consumer, one policy, every loss accounted.

The hot path is plain Python without locks or futures: a put wakes the consumer only when it sleeps.
Bounds count media time by pts span (frames at 0 and 20 ms are 40 ms of audio), frames, or bytes.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .clock import NEVER
from .frame import Frame, Gap

Full: TypeAlias = Literal["drop_oldest", "block", "latest"]

AGE_BUCKETS = 1024  # of 2^20 ns (about 1 ms) each; the last holds all that is older


@dataclass(frozen=True, slots=True)
class Bound:
    """What a queue may hold. At least one frame always fits."""

    full: Full
    span: int = NEVER  # ns of media
    count: int = 4096  # frames; also the last resort under the other two
    nbytes: int = NEVER

    def __post_init__(self) -> None:
        if self.full == "latest":
            object.__setattr__(self, "count", 1)


class Waker:
    """What a sleeping consumer waits on: any of its edges, or its control lane, wakes it."""

    __slots__ = ("_future", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._future: asyncio.Future[None] | None = None

    def wake(self) -> None:
        future = self._future
        if future is not None:
            self._future = None
            if not future.done():  # else its task was cancelled
                future.set_result(None)

    def sleep(self) -> asyncio.Future[None]:
        """What to await until `wake`. The caller has just seen that there is nothing to do."""
        self._future = future = asyncio.Future(loop=self._loop)
        return future


class Edge:
    """A single-producer single-consumer queue.

    Each frame put is in the end exactly one of: delivered, or counted in `lost` by reason
    ("overflow", "late", "flushed", "thinned", "closed"), or still queued.
    """

    __slots__ = (
        "_bytes",
        "_exact",
        "_next_pts",
        "_room",
        "ages",
        "armed",
        "bound",
        "closed",
        "drops",
        "dst_port",
        "entered",
        "epoch",
        "full",
        "hold",
        "inlined",
        "last_age",
        "limit",
        "lost",
        "missed",
        "name",
        "odd",
        "peak",
        "queue",
        "refuse",
        "source",
        "span",
        "src_port",
        "strict",
        "taken",
        "thin",
        "waker",
    )

    def __init__(
        self,
        source: str,
        dst: str,
        dst_port: str,
        bound: Bound,
        waker: Waker,
        *,
        thin: int = 0,
        hold: int = 0,
    ) -> None:
        self.source = source  # "node.port"
        self.src_port = source.partition(".")[2]
        self.dst_port = dst_port
        self.name = f"{source}->{dst}.{dst_port}"
        self.bound = bound
        self.waker = waker
        self.drops = bound.full != "block"
        self.thin = thin  # ns: at most one frame in each; 0 takes all
        self.hold = hold  # ns: a frame counts for so long after its pts; 0 for ever
        self.epoch = 0  # of the producer's scope: what is older is void
        self.closed = False  # the producer has ended; what is queued is still delivered
        self.queue: deque[Frame] = deque()
        self.entered = 0  # frames that came by `put`
        self.inlined = 0  # frames that a fused consumer was handed on the spot
        self.lost: Counter[str] = Counter()
        self.ages = [0] * AGE_BUCKETS
        self.peak = 0
        self.taken = 0  # frames delivered from the queue
        self.last_age = -1  # ns: how late the last frame delivered by `take` was; -1 before the first
        self.armed = False  # a fused consumer is asleep with nothing to do: it may be called on the spot
        self.full = False  # a producer that waits must wait now: kept by `put` and `drained`
        self.missed: Gap | None = None
        self.refuse: Callable[[str], Exception] = ValueError  # of a port that the producer does not have
        # what the quick paths compare, so that they need not know why
        self.strict = bool(thin) or bound.nbytes != NEVER  # `put` must look closer
        self.limit = 1 if bound.nbytes != NEVER else bound.count + self.drops  # frames that may be too many
        self.span = bound.span
        self._exact = bool(hold) or bound.nbytes != NEVER
        self.odd = self._exact  # the next frame must be taken by `take`
        self._bytes = 0
        self._next_pts = -NEVER
        self._room: asyncio.Future[None] | None = None

    # ------------------------------------------------------------ producer

    @property
    def puts(self) -> int:
        """Frames that the producer put."""
        return self.entered + self.inlined

    @property
    def delivered(self) -> int:
        """Frames that the consumer was given. Every frame put is delivered, lost or still queued."""
        return self.puts - sum(self.lost.values()) - len(self.queue)

    @property
    def is_full(self) -> bool:
        """Would a waiting producer have to wait?"""
        queue, bound = self.queue, self.bound
        if not queue:
            return False
        return (
            len(queue) >= bound.count
            or queue[-1].pts - queue[0].pts >= bound.span
            or self._bytes >= bound.nbytes
        )

    def put(self, frame: Frame, /) -> None:
        """Add a frame now. A dropping edge then sheds its oldest; a waiting one may stand over its bound."""
        self.post(self.src_port, frame)

    def post(self, port: str, frame: Frame, /) -> None:
        """`put` for a stage that has this one reader only: its `Outputs.post`."""
        if port != self.src_port:
            raise self.refuse(port)
        self.entered += 1
        if (self.strict or frame.epoch < self.epoch) and not self._admits(frame):
            return
        queue = self.queue
        queue.append(frame)
        size = len(queue)
        if size == 1:
            self.waker.wake()
        if size >= self.limit or frame.pts - queue[0].pts >= self.span:
            size = self._shed(frame.pts)
        if size > self.peak:
            self.peak = size

    def _admits(self, frame: Frame) -> bool:
        """What only some edges, or some moments, ask of a frame."""
        if frame.epoch < self.epoch:
            self.lost["flushed"] += 1
            return False
        if self.closed:
            self.lost["closed"] += 1
            return False
        if self.thin:
            if frame.pts < self._next_pts:
                self.lost["thinned"] += 1
                return False
            # keep the beat: a late frame must not push the following ones back
            behind = frame.pts - self._next_pts
            self._next_pts = (frame.pts if behind > self.thin else self._next_pts) + self.thin
        if self.bound.nbytes != NEVER:
            self._bytes += frame.nbytes
        return True

    def _shed(self, newest: int) -> int:
        """Over the bound, perhaps: lose the oldest, or tell the producer to wait. How many are left."""
        queue, bound = self.queue, self.bound
        if not self.drops:
            self.full = self.is_full
            return len(queue)
        while len(queue) > 1 and (
            len(queue) > bound.count or newest - queue[0].pts >= bound.span or self._bytes > bound.nbytes
        ):
            self._lose(queue.popleft(), "overflow")
        return len(queue)

    async def room(self) -> None:
        """Wait until a blocking edge has room. Returns at once for the other policies."""
        while self.full and not self.closed:
            if self._room is None:
                self._room = asyncio.get_running_loop().create_future()
            await self._room

    def close(self) -> None:
        """The producer has ended. Idempotent."""
        self.closed = self.strict = True
        self.waker.wake()
        self._wake_room()

    # ------------------------------------------------------------ consumer

    def take(self, now: int) -> Frame | None:
        """The next frame in time and of the present epoch; a `Gap` first where frames were lost.

        None when there is nothing: the queue is empty (and, when `closed`, will stay so).
        """
        queue = self.queue
        taken: Frame | None = None
        while queue:
            frame = queue.popleft()
            if self._bytes:
                self._bytes -= frame.nbytes
            if frame.epoch < self.epoch:
                self.lost["flushed"] += 1
                continue
            if frame.deadline < now or (self.hold and frame.pts + self.hold < now):
                self._lose(frame, "late", counted=True)
                continue
            if self.missed is not None:
                queue.appendleft(frame)
                if self.bound.nbytes != NEVER:
                    self._bytes += frame.nbytes
                gap, self.missed, self.odd = self.missed, None, self._exact
                return Gap(
                    pts=gap.pts, until=frame.pts, count=gap.count, reason=gap.reason, epoch=frame.epoch
                )
            self.last_age = now - frame.pts
            self.taken = count = self.taken + 1
            if not count & 7 or count < 64:
                self.observe(self.last_age)
            taken = frame
            break
        if self.full:
            self.drained()
        return taken

    def drained(self) -> None:
        """Frames were taken: a waiting producer may go on when there is room again."""
        if not self.is_full:
            self.full = False
            self._wake_room()

    def watch(self) -> None:
        """Keep `last_age` from now on: somebody is led by it."""
        self._exact = self.odd = True

    def observe(self, age: int) -> None:
        """Count the age (ns) of one delivered frame. A sample is enough once there are many."""
        bucket = age >> 20
        self.ages[bucket if 0 <= bucket < AGE_BUCKETS else 0 if bucket < 0 else AGE_BUCKETS - 1] += 1

    def lose(self, frame: Frame, reason: str) -> None:
        """Count a frame that a fused consumer met but may not use; the next `take` tells the gap."""
        self.entered += 1
        self.armed = False
        self._lose(frame, reason, counted=True)

    def flush(self, epoch: int) -> None:
        """Void all that is older than `epoch`, now and later. What lives stays in order."""
        self.epoch = epoch
        keep = [f for f in self.queue if f.epoch >= epoch]
        self.lost["flushed"] += len(self.queue) - len(keep)
        self.queue.clear()  # in place: the consumer holds on to it
        self.queue.extend(keep)
        self._bytes = sum(f.nbytes for f in keep) if self.bound.nbytes != NEVER else 0
        self.missed, self.odd = None, self._exact
        self.drained()

    def discard(self) -> None:
        """Drop what is queued: the consumer is gone."""
        self.lost["closed"] += len(self.queue)
        self.queue.clear()
        self._bytes = 0
        self.drained()

    # ------------------------------------------------------------ inside

    def _lose(self, frame: Frame, reason: str, *, counted: bool = False) -> None:
        self.lost[reason] += 1
        if self._bytes and not counted:
            self._bytes -= frame.nbytes
        gap, self.odd = self.missed, True
        if gap is None:
            self.missed = Gap(pts=frame.pts, until=frame.pts, reason=reason)
        else:
            self.missed = Gap(pts=gap.pts, until=frame.pts, count=gap.count + 1, reason=gap.reason)

    def _wake_room(self) -> None:
        future, self._room = self._room, None
        if future is not None and not future.done():
            future.set_result(None)


def earliest(edges: list[Edge], driver: str) -> Edge | None:
    """The edge whose head is oldest in media time; None when nothing is to be taken.

    driver: a port that sets the pace. What is newer than its next frame waits for its own time.
    """
    best: Edge | None = None
    for edge in edges:
        if edge.queue and (best is None or edge.queue[0].pts < best.queue[0].pts):
            best = edge
    if driver and best is not None and best.dst_port != driver:
        pace = [e for e in edges if e.dst_port == driver]
        if not any(e.queue for e in pace) and not all(e.closed for e in pace):
            return None
    return best
