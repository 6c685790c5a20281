"""Tells a call that takes long from one that hangs."""

from __future__ import annotations

from .clock import SECOND

# what puts may be a task beside the call: it speaks for the call so long, and no longer
LONGEST = 600 * SECOND


class Progress:
    """Of the calls of one node, looked at about once a second."""

    def __init__(self) -> None:
        self.moved = 0  # when the present call last showed that it goes on, ns
        self._call = 0
        self._excused = 0
        self._puts = 0

    def look(self, call: int, now: int, puts: int, *, excused: bool) -> int:
        """For how long the call has not moved, ns.

        call: when it began. puts: frames that its node has put, on all ports. excused: others keep it waiting.
        """
        if call != self._call:
            self._call = self._excused = self.moved = call
        elif puts != self._puts and now - self._excused < LONGEST:
            self.moved = now
        if excused:
            self._excused = self.moved = now
        self._puts = puts
        return now - self.moved
