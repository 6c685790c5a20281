"""Which encoding of a shared output does one viewer get? Policy only: `now` is given, ns.

A rung is encoded once, at the least rate that its viewers' paths carry: from its own least to the least of the one above.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from ..pipeline.clock import SECOND

# bits/s from which on a rung is taken: three times apart, so that nobody holds others down by more than that
LEAST_BPS = (0, 150_000, 450_000, 1_200_000)
FALL = 0.9  # of a rung's least: below, the viewer falls
RISE = 1.15  # of the next one's: above, it rises
ROOM = 1.3  # times what its rung brings it now: its path would carry more, others hold it down
PATIENCE = 3 * SECOND  # that this lasts before it tries the next rung
TRIAL = 4 * SECOND  # that the try may take until its estimate reaches that rung
AGAIN, AGAIN_MOST = 6 * SECOND, 60 * SECOND  # after a rung was too much for it; doubled each time
ASKS, ASKS_WITHIN = 4, 10 * SECOND  # keyframes that one viewer may ask of its rung's others, then it falls


class RungChoice:
    """rung: into LEAST_BPS."""

    def __init__(self, bps: float, now: int) -> None:
        """bps: what the viewer's path carries, by its estimate."""
        self.rung = fitting(bps)
        self._room: int | None = None  # since when there is
        self._trial: int | None = None  # since when
        self._trial_bps = 0.0  # the estimate when it began
        self._pause = AGAIN
        self._not_before = now  # that it may try again
        self._asks: deque[int] = deque(maxlen=ASKS)

    @property
    def is_trying(self) -> bool:
        """Is it on a rung that its estimate does not reach yet?"""
        return self._trial is not None

    def step(self, bps: float, brings_bps: float, now: int) -> int:
        """brings_bps: what its rung is encoded at now. Returns the rung to be on."""
        least = LEAST_BPS[self.rung]
        if self._trial is not None:
            if bps >= least:
                self._trial, self._pause = None, AGAIN
            elif bps < FALL * self._trial_bps or now - self._trial > TRIAL:
                self._fall(now, bps)
        elif bps < FALL * least:
            self._fall(now, bps)
        if self.rung + 1 < len(LEAST_BPS) and now >= self._not_before and self._trial is None:
            if bps >= RISE * LEAST_BPS[self.rung + 1]:
                self.rung += 1
                self._room = None
            elif bps < ROOM * brings_bps:
                self._room = None
            elif self._room is None:
                self._room = now
            elif now - self._room >= PATIENCE:
                self.rung += 1
                self._room, self._trial, self._trial_bps = None, now, bps
        return self.rung

    def failed(self, now: int) -> None:
        """Its packets pile up: its path does not carry what the estimate says."""
        self._fall(now, LEAST_BPS[self.rung] - 1.0)

    def asked(self, now: int) -> None:
        """It needs a keyframe, which costs all of its rung."""
        if len(self._asks) == ASKS and now - self._asks[0] < ASKS_WITHIN and self.rung:
            self._asks.clear()
            self.failed(now)
        self._asks.append(now)

    def _fall(self, now: int, bps: float) -> None:
        self._trial = self._room = None
        below = min(fitting(bps), self.rung - 1)
        if below < 0:
            return
        self.rung = below
        self._not_before = now + self._pause
        self._pause = min(2 * self._pause, AGAIN_MOST)


def fitting(bps: float) -> int:
    return max((k for k, least in enumerate(LEAST_BPS) if bps >= least), default=0)


def rate_bps(rung: int, viewers_bps: Sequence[float], ceiling_bps: int) -> int:
    """What a rung is encoded at: the least of its viewers' estimates, within its bounds."""
    most = LEAST_BPS[rung + 1] if rung + 1 < len(LEAST_BPS) else ceiling_bps
    return round(max(LEAST_BPS[rung], min([*viewers_bps, most])))
