"""Packets of one audio stream put in order, each once, and the missing ones marked for concealment.

Each packet has a due time: when it was captured, plus the fastest way seen, plus a target. The target follows
the network's jitter, 0 on a calm one, and comes back down within seconds: a stall or a loss delays nothing that
comes after it. A packet that is missing at its due time, though a later one is here, is concealed.

The target is a 95 % quantile by stochastic approximation (Robbins and Monro, 1951): up by 19 parts where a packet
was later, down by 1 where it was not.
"""

from __future__ import annotations

from collections import Counter

from ..pipeline.clock import MS, SECOND
from .jitter_buffer import LATE_RUN, NEVER_SENT, EncodedFrame, Packet

CAPACITY = 64  # packets: more than a second
MAX_TARGET = 120 * MS
CALM = 10 * MS  # jitter below it is the loops' own: nothing waits for it
RISE = 8 * MS
FALL = RISE // 19
DECAY = 50  # of the excess, one part in so many per packet: back from the top within 2 s
BURST = 5 * MS  # packets that come so close together were delayed by one event, and count once
CONCEAL = 6  # frames in a row that are made up; a longer hole stays one
FRAME = 20 * MS  # until the stream shows its own frame length


class Target:
    """How long packets wait for those before them, ns. `level` is the estimate, `value` what holds."""

    def __init__(self) -> None:
        self.level = 0
        self._counted = -SECOND

    @property
    def value(self) -> int:
        return (
            0 if self.level < CALM else min(MAX_TARGET, self.level + RISE)
        )  # the level wavers around what it measures

    def observe(self, lateness: int, arrival: int) -> None:
        """lateness: behind the fastest way, ns."""
        if arrival - self._counted < BURST:
            return
        self._counted = arrival
        if lateness > self.level:
            self.level = min(MAX_TARGET, self.level + RISE)
        else:
            self.level -= min(self.level - lateness, FALL + (self.level - lateness) // DECAY)


class AudioBuffer:
    """Policy: `now` is given, in ns. `insert` packets, `pop` frames, and again at `deadline`.

    rate_hz: of the timestamps. counts: each packet inserted is one of `delivered`, `late`, `duplicate`, `dropped`, or still
    in here, as are frames that came `again` with a later packet; `lost` never came, of which `concealed` were handed on
    as `EncodedFrame.lost`.
    """

    def __init__(self, rate_hz: int, counts: Counter[str] | None = None) -> None:
        self.rate_hz = rate_hz
        self.counts: Counter[str] = Counter() if counts is None else counts
        self.target = Target()
        self.ticks = FRAME * rate_hz // SECOND  # of one frame
        self.next: int | None = None
        self._due: dict[int, int] = {}  # by sequence number, ns, without the target
        self._packets: dict[int, Packet] = {}
        self._latest: Packet | None = None  # in order of sequence
        self._late_run = 0

    def __len__(self) -> int:
        return len(self._packets)

    def insert(self, packet: Packet, due: int) -> None:
        """due: when it would have come by the fastest way, ns (at most its arrival)."""
        self.target.observe(packet.arrival - due, packet.arrival)
        seq = packet.seq
        if self.next is None:
            self.next = seq
        if seq < self.next:
            self._late_run += 1
            if self._late_run < LATE_RUN and self.next - seq < NEVER_SENT:
                self.counts["late"] += 1
                return
            self._start_afresh(seq)
        elif seq in self._packets:
            self.counts["duplicate"] += 1
            return
        elif seq - self.next >= NEVER_SENT:
            self._start_afresh(seq)
        self._late_run = 0
        latest = self._latest
        if latest is not None and seq == latest.seq + 1:
            step = packet.timestamp - latest.timestamp
            if 0 < step <= self.rate_hz * 120 // 1000:  # Opus frames are 120 ms at most
                self.ticks = step
        if latest is None or seq > latest.seq:
            self._latest = packet
        self._packets[seq] = packet
        self._due[seq] = due

    def lacks(self, seq: int) -> bool:
        """Is this packet still waited for?"""
        return self.next is not None and seq >= self.next and seq not in self._packets

    def insert_again(self, packet: Packet, due: int) -> None:
        """A frame that came with a later packet, only where it `lacks`. It tells nothing of the network's jitter."""
        self._packets[packet.seq] = packet
        self._due[packet.seq] = due
        self.counts["again"] += 1

    def pop(self, now: int) -> list[EncodedFrame]:
        """All that is due, in order; lost frames stand where they were."""
        out: list[EncodedFrame] = []
        target = self.target.value
        while self._packets:
            assert self.next is not None
            full = len(self._packets) > CAPACITY
            if self.next in self._packets:
                if not full and now < self._due[self.next] + target:
                    break
                packet = self._remove(self.next, "delivered")
                if packet.data:
                    out.append(EncodedFrame(packet.data, packet.timestamp))
                self.next += 1
                continue
            follower = self._packets[min(self._packets)]
            missing = follower.seq - self.next
            if missing > CONCEAL:
                if not full and now < self._due[follower.seq] + target:
                    break
                self.counts["lost"] += missing
                self.next = follower.seq
                continue
            length = self.ticks * SECOND // self.rate_hz
            if not full and now < self._due[follower.seq] - missing * length + target:
                break
            # in-band FEC of a packet holds the one before it (RFC 6716 section 2.1.7)
            fec = follower.data if missing == 1 else b""
            out.append(EncodedFrame(fec, follower.timestamp - missing * self.ticks, lost=True))
            self.counts["lost"] += 1
            self.counts["concealed"] += 1
            self.next += 1
        return out

    def deadline(self) -> int | None:
        """When `pop` should be called though nothing came, ns; None: at the next packet."""
        if not self._packets:
            return None
        assert self.next is not None
        first = min(self._packets)
        missing = first - self.next
        early = missing * self.ticks * SECOND // self.rate_hz if missing <= CONCEAL else 0
        return self._due[first] - early + self.target.value

    def _start_afresh(self, seq: int) -> None:
        for old in list(self._packets):
            self._remove(old, "dropped")
        self.next = seq
        self._latest = None

    def _remove(self, seq: int, fate: str) -> Packet:
        del self._due[seq]
        self.counts[fate] += 1
        return self._packets.pop(seq)
