"""Redundant audio: each packet carries the frames before it again, so that a lost one is there when its follower comes.

Source: RFC 2198 section 3; its use with Opus as browsers have it, "red/48000/2" with "a=fmtp: 111/111".

     F  block PT   timestamp offset   length        the last header: 0 and its PT alone
    +-+----------+------------------+----------+   +-+----------+
    |1|     7    |        14        |    10    |…  |0|     7    | data of all, oldest first
    +-+----------+------------------+----------+   +-+----------+
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

MOST = 2  # frames again in a packet
MAX_OFFSET, MAX_LENGTH = (1 << 14) - 1, (1 << 10) - 1
MAX_BLOCKS = 8  # that are read
# of loss, from where on a packet carries one frame again, and two; in-band FEC, of lower quality, is always there
ONE_FROM, TWO_FROM = 0.01, 0.10
HOLD = 250  # frames, 5 s: loss comes in spells


@dataclass(frozen=True, slots=True)
class Block:
    payload_type: int
    offset: int  # ticks before the packet's timestamp; 0: the packet's own frame
    data: bytes


def unpack(payload: bytes) -> list[Block]:
    """Oldest first, the packet's own frame last. Raises: ValueError."""
    heads: list[tuple[int, int, int]] = []
    at = 0
    while True:
        if at >= len(payload):
            raise ValueError(f"redundant audio of {len(payload)} bytes ends inside its headers")
        if not payload[at] & 0x80:
            break
        if at + 4 > len(payload) or len(heads) >= MAX_BLOCKS:
            raise ValueError(f"redundant audio with a broken header at byte {at}")
        word = int.from_bytes(payload[at : at + 4], "big")
        heads.append((word >> 24 & 0x7F, word >> 10 & MAX_OFFSET, word & MAX_LENGTH))
        at += 4
    own = payload[at] & 0x7F
    at += 1
    blocks: list[Block] = []
    for kind, offset, length in heads:
        if at + length > len(payload):
            raise ValueError(f"redundant audio: a block of {length} bytes where {len(payload) - at} are left")
        blocks.append(Block(kind, offset, payload[at : at + length]))
        at += length
    return [*blocks, Block(own, 0, payload[at:])]


def pack(blocks: list[Block]) -> bytes:
    """Oldest first, the packet's own frame last; what is too old or too large to be told of is left out."""
    own = blocks[-1]
    told = [b for b in blocks[:-1] if 0 < b.offset <= MAX_OFFSET and len(b.data) <= MAX_LENGTH]
    heads = b"".join(
        (1 << 31 | b.payload_type << 24 | b.offset << 10 | len(b.data)).to_bytes(4, "big") for b in told
    )
    return heads + bytes([own.payload_type]) + b"".join(b.data for b in told) + own.data


class Redundancy:
    """The sending side of one stream: how much is sent again follows the loss."""

    def __init__(self, payload_type: int) -> None:
        self.payload_type = payload_type  # of the frames inside
        self.again = 0  # frames in each packet beside its own
        self._past: deque[tuple[int, bytes]] = deque(maxlen=MOST)  # (timestamp, frame)
        self._hold = 0

    def wrap(self, frame: bytes, timestamp: int, loss: float) -> bytes | None:
        """loss: share of packets, lately. Returns the payload, or None while the frame may go as it is."""
        wanted = 2 if loss >= TWO_FROM else 1 if loss >= ONE_FROM else 0
        if wanted >= self.again:
            self.again, self._hold = wanted, HOLD
        elif self._hold:
            self._hold -= 1
        else:
            self.again -= 1
            self._hold = HOLD
        blocks = [
            Block(self.payload_type, timestamp - at, data)
            for at, data in list(self._past)[len(self._past) - min(self.again, len(self._past)) :]
        ]
        self._past.append((timestamp, frame))
        if not self.again:
            return None
        return pack([*blocks, Block(self.payload_type, 0, frame)])
