"""Transport-wide congestion control, the receiving side: when did each packet arrive?

The sender numbers all packets of a connection; we tell it their arrival times, from which it estimates the
bandwidth itself. Source: draft-holmer-rmcat-transport-wide-cc-extensions-01, section 3.1.
"""

from __future__ import annotations

import struct

from ..pipeline.clock import MS
from .sequence import Unwrap

URI = "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01"
INTERVAL = 50 * MS  # between reports
MAX_SPAN = 512  # packets that one report tells of: 600 bytes
_TICK = 250_000  # ns, of deltas
_REFERENCE = 64 * MS  # of the reference time
_NOT_RECEIVED, _SMALL, _LARGE = 0, 1, 2


class Arrivals:
    """Of one transport. `received` each packet, `report` when `due`. Bounded: the oldest are forgotten."""

    def __init__(self) -> None:
        self._unwrap = Unwrap(16)
        self._arrived: dict[int, int] = {}  # extended number → ns
        self._next: int | None = None  # the first number the next report tells of
        self._count = 0  # of reports
        self._reported = 0  # ns
        self._media_ssrc = 0

    @property
    def due(self) -> int | None:
        """When the next report should leave, ns; None while there is nothing to tell."""
        return self._reported + INTERVAL if self._arrived else None

    def received(self, number: int, arrival: int, media_ssrc: int) -> None:
        seq = self._unwrap(number)
        self._media_ssrc = media_ssrc
        if self._next is None:
            self._next = seq
            self._reported = arrival
        if seq < self._next - MAX_SPAN:
            return
        self._arrived.setdefault(seq, arrival)
        if len(self._arrived) > MAX_SPAN:
            del self._arrived[min(self._arrived)]

    def report(self, now: int, ssrc: int) -> bytes | None:
        """One RTCP packet about what came since the last; None when nothing did. What came out of order, after its
        report, is told of in the next one."""
        if not self._arrived:
            return None
        assert self._next is not None
        newest = max(self._arrived)
        base = max(min(self._next, min(self._arrived)), newest - MAX_SPAN + 1)
        told = [self._arrived.get(seq) for seq in range(base, newest + 1)]
        self._arrived.clear()
        self._next = newest + 1
        self._reported = now
        packet = _pack(ssrc, self._media_ssrc, base, told, self._count)
        self._count += 1
        return packet


def _pack(ssrc: int, media_ssrc: int, base: int, arrivals: list[int | None], count: int) -> bytes:
    """arrivals: ns of packet `base` and those after it, None where none came."""
    first = next(a for a in arrivals if a is not None)
    reference = first // _REFERENCE
    clock = reference * _REFERENCE
    symbols: list[int] = []
    deltas = bytearray()
    for arrival in arrivals:
        if arrival is None:
            symbols.append(_NOT_RECEIVED)
            continue
        delta = round((arrival - clock) / _TICK)
        if 0 <= delta <= 255:
            symbols.append(_SMALL)
            deltas.append(delta)
        else:
            delta = max(-32768, min(32767, delta))
            symbols.append(_LARGE)
            deltas += struct.pack("!h", delta)
        clock += delta * _TICK  # not the arrival: rounding must not add up
    chunks = bytearray()
    at = 0
    while at < len(symbols):
        run = next((k for k, s in enumerate(symbols[at:]) if s != symbols[at]), len(symbols) - at)
        if run > 7:
            chunks += struct.pack("!H", symbols[at] << 13 | run)  # MAX_SPAN < 2^13
            at += run
            continue
        group = symbols[at : at + 7]
        bits = sum(s << 12 - 2 * k for k, s in enumerate(group))
        chunks += struct.pack("!H", 0xC000 | bits)
        at += 7
    body = struct.pack("!LLHH", ssrc, media_ssrc, base & 0xFFFF, len(symbols))
    body += (reference & 0xFFFFFF).to_bytes(3, "big") + bytes([count & 0xFF]) + chunks + deltas
    padding = -len(body) % 4
    if padding:
        body += bytes(padding - 1) + bytes([padding])
    return struct.pack("!BBH", 0x80 | (0x20 if padding else 0) | 15, 205, len(body) // 4) + body
