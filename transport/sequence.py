"""Counters that wrap: RTP's 16-bit sequence numbers and 32-bit timestamps, RTCP's too."""

from __future__ import annotations


class Unwrap:
    """Extends a counter of `bits` bits: the value nearest to the latest one. The first is taken as it is.

    Source: RFC 3550 appendix A.1, without its probation. Values may go back; they never become negative at
    the start, as the first is placed one turn up.
    """

    def __init__(self, bits: int) -> None:
        self._turn = 1 << bits
        self._last: int | None = None

    def __call__(self, value: int) -> int:
        extended = self.peek(value)
        if self._last is None or extended > self._last:  # an older one leaves the reference
            self._last = extended
        return extended

    def peek(self, value: int) -> int:
        """The same, without taking it for the latest."""
        if self._last is None:
            return value + self._turn
        ahead = (value - self._last) % self._turn
        return self._last + ahead - (self._turn if ahead >= self._turn // 2 else 0)
