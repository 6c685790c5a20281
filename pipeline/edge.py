"""A bounded queue between two stages: one producer, one consumer, one policy, every loss accounted.

The hot path is plain Python without locks or futures: a put wakes the consumer only when it sleeps.
Bounds count media time by pts span (frames at 0 and 20 ms are 40 ms of audio), frames, or bytes.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
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
            if not future.done():
                future.set_result(None)

    async def wait(self) -> None:
        """Sleep until `wake`. The caller has just seen that there is nothing to do."""
        self._future = self._loop.create_future()
        await self._future


class Edge:
    """A single-producer single-consumer queue.

    Each frame put is in the end exactly one of: delivered, or counted in `lost` by reason
    ("overflow", "late", "flushed", "thinned", "closed"), or still queued.
    """

    __slots__ = (
        "_bytes",
        "_next_pts",
        "_room",
        "ages",
        "armed",
        "bound",
        "closed",
        "drops",
        "dst_port",
        "epoch",
        "hold",
        "last_age",
        "lost",
        "missed",
        "name",
        "peak",
        "puts",
        "queue",
        "source",
        "special",
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
        self.dst_port = dst_port
        self.name = f"{source}->{dst}.{dst_port}"
        self.bound = bound
        self.waker = waker
        self.special = bool(hold) or bound.nbytes != NEVER  # `next` must take the long way
        self.drops = bound.full != "block"
        self.thin = thin  # ns: at most one frame in each; 0 takes all
        self.epoch = 0  # of the producer's scope: what is older is void
        self.closed = False  # the producer has ended; what is queued is still delivered
        self.queue: deque[Frame] = deque()
        self.puts = 0
        self.lost: Counter[str] = Counter()
        self.ages = [0] * AGE_BUCKETS
        self.peak = 0
        self.taken = 0  # frames delivered by `take`
        self.last_age = -1  # ns: how late the last delivered frame was; -1 before the first
        self.hold = hold  # ns: a frame counts for so long after its pts; 0 for ever
        self.armed = False  # a fused consumer is asleep with nothing to do: it may be called on the spot
        self._bytes = 0
        self.missed: Gap | None = None
        self._next_pts = -NEVER
        self._room: asyncio.Future[None] | None = None

    # ------------------------------------------------------------ producer

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
        self.puts += 1
        if frame.epoch < self.epoch:
            self.lost["flushed"] += 1
            return
        if self.closed:
            self.lost["closed"] += 1
            return
        if self.thin:
            if frame.pts < self._next_pts:
                self.lost["thinned"] += 1
                return
            # keep the beat: a late frame must not push the following ones back
            behind = frame.pts - self._next_pts
            self._next_pts = (frame.pts if behind > self.thin else self._next_pts) + self.thin
        queue, bound = self.queue, self.bound
        queue.append(frame)
        size = len(queue)
        if size == 1:
            self.waker.wake()
        if bound.nbytes != NEVER:
            self._bytes += frame.nbytes
        if size > 1 and self.drops:
            while size > 1 and (
                size > bound.count or frame.pts - queue[0].pts >= bound.span or self._bytes > bound.nbytes
            ):
                self._lose(queue.popleft(), "overflow")
                size -= 1
        if size > self.peak:
            self.peak = size

    async def room(self) -> None:
        """Wait until a blocking edge has room. Returns at once for the other policies."""
        while self.bound.full == "block" and self.is_full and not self.closed:
            if self._room is None:
                self._room = asyncio.get_running_loop().create_future()
            await self._room

    def close(self) -> None:
        """The producer has ended. Idempotent."""
        self.closed = True
        self.waker.wake()
        self._wake_room()

    # ------------------------------------------------------------ consumer

    def take(self, now: int) -> Frame | None:
        """The next frame in time and of the present epoch; a `Gap` first where frames were lost.

        None when there is nothing: the queue is empty (and, when `closed`, will stay so).
        """
        queue = self.queue
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
                gap, self.missed = self.missed, None
                return Gap(
                    pts=gap.pts, until=frame.pts, count=gap.count, reason=gap.reason, epoch=frame.epoch
                )
            self.delivering(frame, now)
            return frame
        if self._room is not None:
            self._wake_room()
        return None

    def next(self, now: int) -> Frame | None:
        """`take` for a queue that is not empty, quick where nothing is out of the ordinary."""
        queue = self.queue
        frame = queue.popleft()
        if frame.deadline < now or frame.epoch < self.epoch or self.missed is not None or self.special:
            queue.appendleft(frame)
            return self.take(now)
        self.delivering(frame, now)
        return frame

    def delivering(self, frame: Frame, now: int) -> None:
        """Count, and let a waiting producer go on."""
        self.last_age = now - frame.pts
        self.taken = taken = self.taken + 1
        if not taken & 7 or taken < 64:  # a sample is enough once there are many
            self.observe(self.last_age)
        if self._room is not None and not self.is_full:
            self._wake_room()

    def observe(self, age: int) -> None:
        """Count the age (ns) of one delivered frame."""
        bucket = age >> 20
        self.ages[bucket if 0 <= bucket < AGE_BUCKETS else 0 if bucket < 0 else AGE_BUCKETS - 1] += 1

    def lose(self, frame: Frame, reason: str) -> None:
        """Count a frame that a fused consumer met but may not use; the next `take` tells the gap."""
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
        self.missed = None
        self._wake_room()

    def discard(self) -> None:
        """Drop what is queued: the consumer is gone."""
        self.lost["closed"] += len(self.queue)
        self.queue.clear()
        self._bytes = 0
        self._wake_room()

    # ------------------------------------------------------------ inside

    def _lose(self, frame: Frame, reason: str, *, counted: bool = False) -> None:
        self.lost[reason] += 1
        if self._bytes and not counted:
            self._bytes -= frame.nbytes
        gap = self.missed
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
