"""aiortc's RTP and RTCP parsers, for input from outside: whatever is wrong with a packet is a ValueError.

aiortc drops a packet at a ValueError; at anything else, as the struct.error of a header extension of a wrong
length, it closes the connection.
"""

from __future__ import annotations

import struct
from typing import Any

from aiortc.rtp import AnyRtcpPacket, HeaderExtensionsMap, RtcpPacket, RtpPacket

MALFORMED = (struct.error, IndexError, KeyError)


class CheckedRtpPacket(RtpPacket):
    """RFC 3550 section 5.1."""

    @classmethod
    def parse(cls, data: bytes, extensions_map: Any = None) -> RtpPacket:
        """Raises: ValueError."""
        try:
            return super().parse(data, extensions_map or HeaderExtensionsMap())
        except MALFORMED as e:
            raise ValueError(f"RTP packet of {len(data)} bytes is malformed: {e}") from e


class CheckedRtcpPacket(RtcpPacket):
    """RFC 3550 section 6."""

    @classmethod
    def parse(cls, data: bytes) -> list[AnyRtcpPacket]:
        """Raises: ValueError."""
        try:
            return super().parse(data)
        except MALFORMED as e:
            raise ValueError(f"RTCP packet of {len(data)} bytes is malformed: {e}") from e
