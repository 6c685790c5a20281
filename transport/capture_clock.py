"""When was a received frame captured? Media timestamps laid onto the session's clock.

A far end's timestamps run evenly but from an unknown origin; arrivals share our clock but jitter. The frame
that came fastest tells the offset best, so the offset is the least (arrival − media time) seen.
Source: the minimum filter of NTP's clock filter algorithm, RFC 5905 section 10, on one-way delays.
"""

from __future__ import annotations

from ..pipeline.clock import MS, SECOND

DRIFT_PPM = 200  # crystals are within ±100 ppm each: the offset may rise by this much
LATE = 2 * SECOND  # later than that is no delay but a jump of the far end's clock
STEP = 10 * MS  # the offset follows drift in steps, so that frames stay evenly spaced between them


class CaptureClock:
    """One track's mapping. Times never lie in the future and never run backwards."""

    def __init__(self) -> None:
        self._offset: int | None = None  # best estimate, ns
        self._applied = 0  # what `at` adds, ns
        self._arrival = 0
        self._last = -1

    def at(self, media: int, arrival: int) -> int:
        """media: ns on the track's own time; arrival: ns on the session's clock. Returns the pts."""
        seen = arrival - media
        if self._offset is None or seen < self._offset or seen - self._offset > LATE:
            self._offset = self._applied = seen
        else:
            elapsed = max(0, arrival - self._arrival)
            self._offset = min(seen, self._offset + elapsed * DRIFT_PPM // 1_000_000)
            if self._offset - self._applied > STEP:
                self._applied = self._offset
        self._arrival = arrival
        self._last = max(self._last, media + self._applied)
        return self._last
