"""When was a received frame captured? Media timestamps laid onto the session's clock.

A far end's timestamps run evenly but from an unknown origin; arrivals share our clock but jitter. The packet
that came fastest tells the offset best, so the offset is the least (arrival − media time) of the last seconds.
Source: the minimum filter of NTP's clock filter algorithm, RFC 5905 section 10, on one-way delays.

RTCP sender reports (RFC 3550 section 6.4.1) tie each track's timestamps to the far end's one wall clock. With them
sound and picture share one offset, and what was captured together gets the same time here, however
much longer the picture took to come.
"""

from __future__ import annotations

from ..pipeline.clock import MS, SECOND

# of the minimum filters: long enough for a fast packet, short enough to learn a slower route, and to follow a source that
# is slower than its own timestamps (a busy machine's) before its pictures count as stale
WINDOW = 2 * SECOND
LATE = 2 * SECOND  # later than that is no delay but a jump of the far end's clock
STEP = 10 * MS  # the offset rises in steps, so that frames stay evenly spaced between them
MAX_SKEW = 2 * SECOND  # tracks that disagree by more have no clock in common


class MinWindow:
    """The least value of the last one to two windows. `value`: None before the first."""

    def __init__(self, window: int = WINDOW) -> None:
        self.window = window
        self.value: int | None = None
        self._now = self._before = 0  # the least of this window and of the one before
        self._since = 0

    def add(self, value: int, at: int) -> None:
        if self.value is None or abs(value - self.value) > LATE:
            self._now = self._before = value
            self._since = at
        elif at - self._since >= self.window:
            self._before, self._now, self._since = self._now, value, at
        else:
            self._now = min(self._now, value)
        self.value = min(self._now, self._before)


class SenderClock:
    """One far end's wall clock, shared by its tracks: by track, the least (arrival here − capture there), ns."""

    def __init__(self) -> None:
        self._offsets: dict[CaptureClock, MinWindow] = {}

    def heard(self, track: CaptureClock, offset: int, arrival: int) -> None:
        self._offsets.setdefault(track, MinWindow()).add(offset, arrival)

    def offset(self, track: CaptureClock) -> int | None:
        """What turns the far end's time into ours; None before the first packet after a report."""
        own = self._offsets.get(track)
        if own is None or own.value is None:
            return None
        seen = [w.value for w in self._offsets.values() if w.value is not None]
        return min(seen) if max(seen) - min(seen) <= MAX_SKEW else own.value


class CaptureClock:
    """One track's mapping. `heard` each packet, `report` each sender report; `at` tells a frame's time.

    Times never lie in the future of what was heard and never run backwards. sender: shared by the tracks of a peer.
    """

    def __init__(self, sender: SenderClock | None = None) -> None:
        self.sender = sender or SenderClock()
        self._transit = MinWindow()  # arrival − media time
        self._wall = MinWindow(
            2 * WINDOW
        )  # their wall clock − media time; a late stamp in a report is no smaller
        self._applied: int | None = None  # what `at` adds, ns
        self._last = -1

    @property
    def is_synchronized(self) -> bool:
        """Has a sender report come?"""
        return self._wall.value is not None

    def report(self, wall: int, media: int, arrival: int) -> None:
        """A sender report: at `wall`, ns of their clock, the media time was `media`."""
        self._wall.add(wall - media, arrival)

    def heard(self, media: int, arrival: int) -> None:
        """A packet whose last sample was captured at `media`, ns on the track's own time, came at `arrival`."""
        self._transit.add(arrival - media, arrival)
        if self._wall.value is not None:
            self.sender.heard(self, arrival - media - self._wall.value, arrival)

    def media(self, arrival: int) -> int:
        """The media time that comes now by the fastest way; 0 before the first `heard`."""
        return 0 if self._transit.value is None else arrival - self._transit.value

    def expected(self, media: int) -> int:
        """When a packet of that media time comes by the fastest way, ns."""
        assert self._transit.value is not None, "nothing was heard"
        return media + self._transit.value

    def at(self, media: int) -> int:
        """The pts of what was captured at `media`. After the first `heard`."""
        assert self._transit.value is not None, "nothing was heard"
        offset = self._transit.value
        if self._wall.value is not None and (shared := self.sender.offset(self)) is not None:
            # never after its fastest arrival: a report may say what it likes
            offset = min(offset, self._wall.value + shared)
        if self._applied is None or offset < self._applied or offset - self._applied > STEP:
            self._applied = offset
        self._last = max(self._last, media + self._applied)
        return self._last
