"""An edge that holds frames back, so that sound waits for the picture it belongs to."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from .clock import MS, SECOND, Clock
from .edge import Bound, Edge, Waker
from .frame import Frame

MOST = 2 * SECOND  # of media held back, whatever is asked for: a delay line is a queue, and bounded
SMOOTH = 0.1  # of the newest age in the matched delay: jumps would be heard


class DelayEdge(Edge):
    """Releases each frame `delay` ns after its pts, or as late as frames of other edges are.

    Held frames are older than the queue: a flush voids them too, and more than MOST drops the oldest.
    """

    __slots__ = ("_clock", "_delay", "_loop", "_match", "_timer", "held", "late")

    def __init__(
        self,
        source: str,
        dst: str,
        dst_port: str,
        bound: Bound,
        waker: Waker,
        clock: Clock,
        *,
        delay: int = 0,
        thin: int = 0,
    ) -> None:
        super().__init__(source, dst, dst_port, bound, waker, thin=thin)
        self.held: deque[Frame] = deque()
        self.late = 0  # ns: how late the matched edges are, smoothed
        self._clock = clock
        self._delay = delay
        self._match: Sequence[Edge] = ()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def match(self, edges: Sequence[Edge]) -> None:
        """Be as late as these edges of the same reader."""
        self._match = edges
        for edge in edges:
            edge.watch()

    def post(self, port: str, frame: Frame, /) -> None:
        if port != self.src_port:
            raise self.refuse(port)
        self.held.append(frame)
        while frame.pts - self.held[0].pts > MOST:
            self.lose(self.held.popleft(), "overflow")
        if self._timer is None:
            self._release()

    def close(self) -> None:
        """The producer has ended; what is held is let go at its time, then the edge closes."""
        if self.held and not self.closed:
            wait = max(0, self.held[-1].pts + self._lateness() - self._clock.now()) + 20 * MS
            self._loop.call_later(wait / SECOND, self._finish)
        else:
            super().close()

    def flush(self, epoch: int) -> None:
        kept = [f for f in self.held if f.epoch >= epoch]
        self.entered += len(self.held) - len(kept)
        self.lost["flushed"] += len(self.held) - len(kept)
        self.held = deque(kept)
        super().flush(epoch)

    def discard(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.entered += len(self.held)
        self.lost["closed"] += len(self.held)
        self.held.clear()
        super().discard()

    def _finish(self) -> None:
        while self.held:
            super().post(self.src_port, self.held.popleft())
        super().close()

    def _lateness(self) -> int:
        if not self._match:
            return self._delay
        for edge in self._match:
            if edge.last_age >= 0:
                step = edge.last_age - self.late
                self.late += step if not self.late else round(SMOOTH * step)
        return min(self.late, MOST)

    def _release(self) -> None:
        self._timer = None
        late = self._lateness()
        now = self._clock.now()
        while self.held and self.held[0].pts + late <= now:
            super().post(self.src_port, self.held.popleft())
        if self.held:
            wait = self.held[0].pts + late - now
            self._timer = self._loop.call_later(wait / SECOND, self._release)
