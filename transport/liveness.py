"""Is the far end still there? Any datagram says yes; silence is broken by asking.

Each `PROBE` without a datagram we send a STUN consent request (RFC 7675), which the far end's ICE agent answers
even when microphone and camera are muted or the page sleeps. Three unanswered in a row, and it is lost.
"""

from __future__ import annotations

from ..pipeline.clock import MS, SECOND

PROBE = 300 * MS  # between looks; an unanswered request takes 500 ms more
SILENCE = (
    2 * SECOND
)  # without any sign, as looks see it: the last comes 2.4 s after the first, 2.7 s after the last packet
CONNECT = 20 * SECOND  # from the answer to the first encrypted packet


class Liveness:
    """Policy only: `now` is given."""

    def __init__(self, now: int) -> None:
        self._heard = now
        self._packets = 0

    def count(self, packets: int, now: int) -> bool:
        """packets: received in total. True when there is nothing new, so that one should ask."""
        if packets != self._packets:
            self._packets = packets
            self._heard = now
            return False
        return True

    def answered(self, now: int) -> None:
        self._heard = now

    def is_gone(self, now: int) -> bool:
        return now - self._heard >= SILENCE
