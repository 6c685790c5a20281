"""Spreads packets over time: a leaky bucket with lanes. Policy only: `now` is given, ns.

A keyframe is tens of packets; sent at once they fill the queue of the narrowest link, delay the sound behind
them and are lost there. A usual picture fits the bucket and leaves at once.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from ..pipeline.clock import MS, SECOND

P = TypeVar("P")

# times the target rate: usually; while a queue is building up on the way; until it has drained
FAST, SLOW, DRAIN = 2.5, 1.5, 0.85
DEPTH = 40 * MS  # of the target rate may leave at once: a picture at 25/s
LEAST = 3 * 1200  # bytes, of the same
MAX_BYTES = 512 * 1024  # that wait; beyond, the oldest pictures are dropped
MAX_AGE = 700 * MS  # an older picture's packets are worth nothing
MAX_DEBT = 200 * MS  # the queue that a fall of the rate has left on the way drains meanwhile
MAX_WAIT = 500 * MS  # a keyframe made for the rate of now is there sooner
LANES = ("again", "video")  # repeats first: a picture waits for them. Audio never waits


class Pacer(Generic[P]):
    """`push`, then `pop` what may leave and come back at `wake`."""

    def __init__(self, target_bps: int) -> None:
        self.target_bps = target_bps
        self.congested = False
        self.patience = 1.0  # times MAX_AGE and MAX_WAIT
        self.draining = False
        self.dropped = 0
        self.waiting = 0  # bytes
        self._lanes: dict[str, deque[tuple[int, int, P]]] = {lane: deque() for lane in LANES}
        self._level = 0.0  # bytes in the bucket
        self._drained = 0  # when the level was last right, ns

    @property
    def rate_bps(self) -> float:
        return self.target_bps * (DRAIN if self.draining else SLOW if self.congested else FAST)

    @property
    def _depth(self) -> float:
        return max(LEAST, self.target_bps / 8 * DEPTH / SECOND)

    def spent(self, size: int, now: int) -> None:
        """Bytes that went past the lanes: audio."""
        self._drain(now)
        self._level += size

    def push(self, lane: str, packet: P, size: int, now: int) -> None:
        self._lanes[lane].append((now, size, packet))
        self.waiting += size
        while self.waiting > MAX_BYTES:
            self._drop("video" if self._lanes["video"] else "again")

    def pop(self, now: int) -> list[P]:
        """What may leave now, in order; what is too old is dropped."""
        self._drain(now)
        leaving: list[P] = []
        for lane in LANES:
            queue = self._lanes[lane]
            while queue and self._level < self._depth:
                if now - queue[0][0] > MAX_AGE * self.patience:
                    self._drop(lane)
                    continue
                _, size, packet = queue.popleft()
                self.waiting -= size
                self._level += size
                leaving.append(packet)
        return leaving

    def wake(self, now: int) -> int | None:
        """When the next packet may leave, ns; None when nothing waits."""
        if not self.waiting:
            return None
        over = self._level - self._depth
        return now + max(MS, round((over + 1200) * 8 * SECOND / self.rate_bps))

    def delay(self, now: int) -> int:
        """How long a packet pushed now would wait, ns."""
        self._drain(now)
        over = self._level + self.waiting - self._depth
        return round(max(0.0, over) * 8 * SECOND / self.rate_bps)

    def shed(self, now: int, most: int = MAX_WAIT) -> int:
        """Give up all that waits when it would wait longer than that: it was made for another rate. Returns how many."""
        if self.delay(now) <= most * self.patience:
            return 0
        shed = sum(map(len, self._lanes.values()))
        self.dropped += shed
        self.clear()
        return shed

    def clear(self) -> None:
        for queue in self._lanes.values():
            queue.clear()
        self.waiting = 0

    def _drop(self, lane: str) -> None:
        _, size, _ = self._lanes[lane].popleft()
        self.waiting -= size
        self.dropped += 1

    def _drain(self, now: int) -> None:
        # what was spent while the rate was higher is not held against it for long
        level = min(self._level, self._depth + self.rate_bps / 8 * MAX_DEBT / SECOND)
        self._level = max(0.0, level - (now - self._drained) * self.rate_bps / 8 / SECOND)
        self._drained = now
