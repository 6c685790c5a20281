"""Which lost packets to ask for again, and when (RFC 4585 section 6.2.1): timed, within a budget, bounded."""

from __future__ import annotations

from dataclasses import dataclass

from ..pipeline.clock import MS

FIRST_RTT = 60 * MS  # until a retransmission has told
MARGIN = 10 * MS  # what a retransmission takes beyond the round trip: the sender's loop and pacer
MIN_RETRY = 20 * MS
MAX_MISSING = 256  # more than that is no loss but an outage: only a keyframe helps
MAX_RTT = 2000 * MS
MIN_HOLD, MAX_HOLD = 150 * MS, 500 * MS
MAX_LIMIT = 1000 * MS


@dataclass(slots=True)
class _Missing:
    since: int  # ns, when the gap was seen
    asked: int = 0  # ns, the last time
    tries: int = 0


class Nacks:
    """Policy of one video stream. Sequence numbers are extended, `now` is in ns.

    rtt: ns, learned from how long retransmissions take. asked: requests so far, of single packets.
    """

    def __init__(self) -> None:
        self.rtt = FIRST_RTT
        self.asked = 0
        self._missing: dict[int, _Missing] = {}
        self._given_up: dict[int, _Missing] = {}  # asked for; an answer still tells the round trip
        self._newest: int | None = None

    def __len__(self) -> int:
        return len(self._missing)

    @property
    def hold(self) -> int:
        """How long a frame may wait for its packets before a keyframe is asked for: about three requests, ns."""
        return min(MAX_HOLD, max(MIN_HOLD, 3 * self.rtt + 30 * MS))

    @property
    def limit(self) -> int:
        """How long a packet is asked for: until the keyframe asked for in its stead, repairs included, is here, ns."""
        return min(MAX_LIMIT, 2 * self.hold + self.rtt)

    @property
    def _retry(self) -> int:
        return max(MIN_RETRY, self.rtt + self.rtt // 4 + MARGIN)

    def received(self, seq: int, now: int) -> bool:
        """A packet has come, first or again. False when so much is missing that asking makes no sense."""
        if self._newest is None:
            self._newest = seq
            return True
        if seq <= self._newest:
            found = self._missing.pop(seq, None) or self._given_up.pop(seq, None)
            if found is not None and found.tries:
                self._learn(found, now)
            return True
        gap = seq - self._newest - 1
        known = self._newest
        self._newest = seq
        if gap + len(self._missing) > MAX_MISSING:
            self._missing.clear()
            return False
        for lost in range(known + 1, seq):
            self._missing[lost] = _Missing(now)
        return True

    def due(self, now: int) -> list[int]:
        """What to ask for now, in order; it counts as asked. What is past its budget is given up."""
        out: list[int] = []
        for seq, missing in list(self._missing.items()):
            if now - missing.since >= self.limit:
                self._give_up(seq)
            elif not missing.tries or now - missing.asked >= self._retry:
                missing.asked = now
                missing.tries += 1
                out.append(seq)
        self.asked += len(out)
        return out

    def next_due(self) -> int | None:
        """When `due` will have something to do, ns; None while nothing is missing."""
        if not self._missing:
            return None
        return min(
            min(m.since + self.limit, m.asked + self._retry) if m.tries else m.since
            for m in self._missing.values()
        )

    def outage(self, seq: int) -> None:
        """This packet ends a time in which none came: what was lost in it comes too late."""
        for lost in list(self._missing):
            self._give_up(lost)
        self._newest = max(seq, self._newest or 0)

    def misses(self, seq: int) -> bool:
        """Is something lost when this packet has come?"""
        return self._newest is not None and seq > self._newest + 1

    def forget(self, before: int) -> None:
        """Packets before this one are not needed any more."""
        for seq in [s for s in self._missing if s < before]:
            self._give_up(seq)

    def _give_up(self, seq: int) -> None:
        missing = self._missing.pop(seq)
        if missing.tries:
            self._given_up[seq] = missing
            if len(self._given_up) > MAX_MISSING:
                del self._given_up[next(iter(self._given_up))]

    def _learn(self, missing: _Missing, now: int) -> None:
        if now - missing.asked > MAX_RTT:
            return  # no answer to that
        # after several requests nobody knows which was answered (Karn): the first bounds it from above
        if missing.tries == 1:
            self.rtt += (now - missing.asked - self.rtt) // 4
        else:
            self.rtt += (now - missing.since - self.rtt) // 8
        self.rtt = max(MS, self.rtt)
