"""What a receiver says about each packet we sent: transport-wide feedback, read.

Source: draft-holmer-rmcat-transport-wide-cc-extensions-01, section 3.1.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

TRANSPORT_CC = 15  # the FMT of these RTPFB packets
_TICK_US = 250  # of deltas
_REFERENCE_US = 64_000  # of the reference time
_REFERENCE_TURN = 1 << 24


@dataclass(frozen=True, slots=True)
class Feedback:
    """arrivals: of packet `base` and those after it, µs on the receiver's clock; None where none came.
    The clock wraps after 12 days."""

    base: int  # 16 bits
    arrivals: tuple[int | None, ...]


def parse_feedback(fci: bytes) -> Feedback:
    """fci: the packet after its two SSRCs, padding allowed. Raises: ValueError."""
    if len(fci) < 8:
        raise ValueError(f"transport feedback of {len(fci)} bytes; it has at least 8")
    base, count = struct.unpack_from("!HH", fci)
    clock_us = int.from_bytes(fci[4:7], "big") % _REFERENCE_TURN * _REFERENCE_US
    symbols, at = _symbols(fci, count)
    arrivals: list[int | None] = []
    for symbol in symbols:
        if symbol == 0 or symbol == 3:
            arrivals.append(None)
            continue
        size = symbol  # a small delta has one byte, a large one two
        if at + size > len(fci):
            raise ValueError("transport feedback ends inside its deltas")
        clock_us += int.from_bytes(fci[at : at + size], "big", signed=symbol == 2) * _TICK_US
        at += size
        arrivals.append(clock_us)
    return Feedback(base, tuple(arrivals))


def _symbols(fci: bytes, count: int) -> tuple[list[int], int]:
    """The status of each packet, and where the deltas begin."""
    symbols: list[int] = []
    at = 8
    while len(symbols) < count:
        if at + 2 > len(fci):
            raise ValueError("transport feedback ends inside its packet chunks")
        (chunk,) = struct.unpack_from("!H", fci, at)
        at += 2
        if not chunk & 0x8000:  # a run
            symbols += [chunk >> 13 & 3] * min(chunk & 0x1FFF, count - len(symbols))
            if not chunk & 0x1FFF:
                raise ValueError("transport feedback with an empty run")
        elif chunk & 0x4000:  # seven symbols of two bits
            symbols += [chunk >> shift & 3 for shift in range(12, -1, -2)]
        else:  # fourteen of one bit
            symbols += [chunk >> shift & 1 for shift in range(13, -1, -1)]
    return symbols[:count], at
