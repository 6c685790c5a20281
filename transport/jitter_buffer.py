"""Packets of one video stream made into frames: in order, at most once, none waiting past its deadline.

A frame leaves with its last packet, told by the marker bit (RFC 7741 section 4.1, RFC 6184 section 5.1) or by
the next frame's first packet. A hole holds up what follows, as a retransmission may still fill it. After `hold`
a keyframe is asked for, and whichever comes first ends the wait: the missing packet, the whole keyframe, or `limit`; then
everything up to the next keyframe is thrown away, since it cannot be decoded.

        next        hole            key
    ┌────▼───┬───┬───┬ ─ ┬───┬───┬───▼───┬───┐
    │ sent   │ 7 │ 8 │   │10 │11 │ 12    │13 │   12, 13 complete → 7..11 are dropped, 12 leaves
    └────────┴───┴───┴ ─ ┴───┴───┴───────┴───┘
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ..pipeline.clock import MS, SECOND

CAPACITY = 1024  # packets: 1 s at 10 Mb/s
MAX_BYTES = 4 << 20
REORDER = 20 * MS  # a packet so much later than its successors is late, not lost
HOLD = 200 * MS
LIMIT = 600 * MS
PATIENCE = 2 * SECOND  # without any keyframe the decoder gets what there is (intra refresh has none)
LATE_RUN = 128  # late packets in a row: the sender has started its numbers afresh
NEVER_SENT = 3000  # a jump of more than this many numbers is a fresh start too


@dataclass(frozen=True, slots=True)
class Packet:
    """One RTP packet, its payload descriptor removed. `seq` and `timestamp` are extended, `arrival` in ns.

    key: a keyframe begins here.
    """

    seq: int
    timestamp: int
    data: bytes
    arrival: int
    marker: bool = False
    key: bool = False


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """What a decoder takes. lost: the frame itself is missing; `data` is then the packet after it, or empty."""

    data: bytes
    timestamp: int
    lost: bool = False


def begins_keyframe(codec: str, data: bytes) -> bool:
    """Is this payload the first of a keyframe? VP8: RFC 6386 section 9.1 with its start code; H.264: a
    sequence parameter set."""
    if codec == "VP8":
        return len(data) >= 6 and not data[0] & 1 and data[3:6] == b"\x9d\x01\x2a"
    if codec == "H264":
        return any(part[:1] and part[0] & 31 == 7 for part in data.split(b"\0\0\1")[1:])
    return False


class VideoBuffer:
    """Policy: `now` is given, in ns; no timers. `insert` packets, then `pop`; pop again at `deadline`.

    counts: each packet inserted is one of `delivered`, `late`, `duplicate` or `dropped`, or still in here;
    `lost` are the numbers that were skipped and never came. needs_keyframe: nothing can be shown before one.
    """

    def __init__(self, counts: Counter[str] | None = None) -> None:
        self.counts: Counter[str] = Counter() if counts is None else counts
        self.hold = HOLD
        self.limit = LIMIT
        self.needs_keyframe = False
        self.next: int | None = None  # the first packet that was not yet delivered or given up
        self._packets: dict[int, Packet] = {}
        self._bytes = 0
        self._newest = 0
        self._waiting: int | None = None  # for a keyframe, since this time in ns
        self._late_run = 0

    def __len__(self) -> int:
        return len(self._packets)

    def insert(self, packet: Packet) -> None:
        seq = packet.seq
        if self.next is None:
            self.next = self._newest = seq
            self._waiting = packet.arrival
        if seq < self.next:
            self._late_run += 1
            if not self._is_fresh(seq):
                self.counts["late"] += 1
                return
            self._start_afresh(packet)
        elif seq in self._packets:
            self.counts["duplicate"] += 1
            return
        elif seq - self.next >= NEVER_SENT:
            self._start_afresh(packet)
        elif seq - self.next >= CAPACITY or len(self._packets) >= CAPACITY or self._bytes >= MAX_BYTES:
            self.give_up(seq, packet.arrival)
        self._late_run = 0
        self._packets[seq] = packet
        self._bytes += len(packet.data)
        self._newest = max(self._newest, seq)

    def pop(self, now: int) -> list[EncodedFrame]:
        """All frames that can leave now, in order."""
        out: list[EncodedFrame] = []
        while self._packets:
            if self._waiting is not None and not self._find_keyframe(now):
                break
            if (frame := self._take()) is not None:
                out.append(frame)
            elif not self._skip(now):
                break
        return out

    def deadline(self) -> int | None:
        """When `pop` should be called though nothing came, ns; None: at the next packet."""
        if not self._packets:
            return None
        if self._waiting is not None:
            return max(p.arrival for p in self._packets.values()) + REORDER
        beyond = self._beyond_hole()
        if beyond is None:
            return None
        if self._complete_key() is not None:
            return beyond.arrival + REORDER
        return beyond.arrival + (self.limit if self.needs_keyframe else self.hold)

    def give_up(self, before: int, now: int) -> None:
        """Nothing before this packet can come in time: only a keyframe helps."""
        self._drop_before(before)
        self._waiting = now
        self.needs_keyframe = True

    # ---------------------------------------------------------------- inside

    def _take(self) -> EncodedFrame | None:
        """The frame at the head, if it is whole; padding in front of it is consumed."""
        assert self.next is not None
        end = self._frame_end(self.next)
        while end is not None:
            parts = [self._remove(seq, "delivered") for seq in range(self.next, end)]
            self.next = end
            if any(p.data for p in parts):
                self.needs_keyframe = False
                return EncodedFrame(b"".join(p.data for p in parts), parts[0].timestamp)
            end = self._frame_end(self.next)  # it was padding
        return None

    def _frame_end(self, start: int) -> int | None:
        """One past the last packet of the frame that starts at `start`; None while it is not whole."""
        first = self._packets.get(start)
        if first is None:
            return None
        if not first.data and not first.marker:
            return start + 1  # padding has the timestamp of the frame before
        seq, packet = start, first
        while packet.timestamp == first.timestamp:
            seq += 1
            if packet.marker:
                return seq
            follower = self._packets.get(seq)
            if follower is None:
                return None
            packet = follower
        return seq

    def _beyond_hole(self) -> Packet | None:
        """The first packet after the first hole at or after the head; None when there is no hole."""
        assert self.next is not None
        seq = self.next
        while seq in self._packets:
            seq += 1
        return next((self._packets[s] for s in range(seq, self._newest + 1) if s in self._packets), None)

    def _complete_key(self) -> int | None:
        """Where a whole keyframe lies behind the hole."""
        assert self.next is not None
        keys = sorted(s for s, p in self._packets.items() if p.key and s > self.next)
        return next((s for s in keys if self._frame_end(s) is not None), None)

    def _skip(self, now: int) -> bool:
        """Give up the hole at the head if it is time. True when the head has moved."""
        beyond = self._beyond_hole()
        if beyond is None:
            return False
        if now - beyond.arrival >= REORDER and (key := self._complete_key()) is not None:
            self._drop_before(key)
            return True
        if now - beyond.arrival < self.hold:
            return False
        self.needs_keyframe = True
        if now - beyond.arrival < self.limit:
            return False
        self._waiting = now
        keys = [s for s, p in self._packets.items() if p.key and s >= beyond.seq]
        self._drop_before(min(keys, default=self._newest + 1))
        return True

    def _find_keyframe(self, now: int) -> bool:
        """While waiting for one: move the head to it. False while there is none."""
        assert self._waiting is not None
        keys = [s for s, p in self._packets.items() if p.key]
        if keys:
            self._drop_before(min(keys))
        elif now - self._waiting >= PATIENCE and (whole := self._second_frame()) is not None:
            self._drop_before(whole)
        else:
            if now - self._waiting >= REORDER:
                self.needs_keyframe = True
            # the first packet of a keyframe may come after its second
            old = [s for s, p in self._packets.items() if now - p.arrival >= REORDER]
            if old:
                self._drop_before(max(old) + 1)
            return False
        self._waiting = None
        return True

    def _second_frame(self) -> int | None:
        """Where a frame surely begins: of the first in here, packets may have been dropped."""
        first, packets = self._packets[min(self._packets)].timestamp, self._packets
        return min((s for s, p in packets.items() if p.timestamp != first and s - 1 in packets), default=None)

    def _drop_before(self, seq: int) -> None:
        """The head is now `seq`; what lies before it is dropped, what never came is lost."""
        assert self.next is not None
        before = [s for s in self._packets if s < seq]
        for old in before:
            self._remove(old, "dropped")
        self.counts["lost"] += max(0, seq - self.next - len(before))
        self.next = max(self.next, seq)

    def _is_fresh(self, seq: int) -> bool:
        assert self.next is not None
        return self._late_run >= LATE_RUN or self.next - seq >= NEVER_SENT

    def _start_afresh(self, packet: Packet) -> None:
        for old in list(self._packets):
            self._remove(old, "dropped")
        self.next = self._newest = packet.seq
        self._waiting = packet.arrival
        self.needs_keyframe = True

    def _remove(self, seq: int, fate: str) -> Packet:
        packet = self._packets.pop(seq)
        self._bytes -= len(packet.data)
        self.counts[fate] += 1
        return packet
