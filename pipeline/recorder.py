"""The flight recorder of a session: what went where and when in the last seconds, without any content.

The data path only appends a tuple of integers. Once a second the session packs them into an array: 48 bytes
an event, the oldest forgotten. `trace` makes a picture of it, `replay` runs it again.
"""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from .clock import SECOND
from .edge import Edge

Note: TypeAlias = tuple[int, int, int, int, int, int]

KEEP = 30 * SECOND
MOST = 1 << 16  # events kept: 3 MB; a busy session of ten nodes has some 1,500 a second
PENDING = 1 << 15  # between two packings


class Kind(IntEnum):
    """What the other five integers of an event are. Names are indices into `Recorder.names`."""

    POST = 0  # "node.port", time, pts, deadline, epoch
    TAKE = 1  # edge, time, pts, frames left in the queue, epoch
    GAP = 2  # edge, time, pts, frames lost, epoch: given to the stage in place of a frame
    DONE = 3  # node, time, 0, 0, 0: the call that began with its last TAKE has ended. Of calls that do not
    # wait one in 16 has it, for the time that noting costs
    EVENT = 4  # node, time, its pts, event's name, 0
    FLUSH = 5  # scope, time, 0, 0, its new epoch
    FUSED = 7  # edge, time, pts, deadline, epoch: POST and TAKE of a fused hop in one
    LOST = 6  # edge, time, reason, how many since the last packing, 0


class Recorder:
    """`note((kind, name, time, …))` from the data path. keep: ns; most: events."""

    def __init__(self, keep: int = KEEP, most: int = MOST) -> None:
        self.names: list[str] = []
        self._ids: dict[str, int] = {}
        self._pending: deque[Note] = deque(maxlen=PENDING)
        self.note: Callable[[Note], None] = self._pending.append
        self.count = 0  # events packed so far, forgotten ones included
        self._chunks: deque[NDArray[np.int64]] = deque()  # each (n, 6)
        self._held = 0
        self._keep = keep
        self._most = most
        self._lost: dict[str, Counter[str]] = {}
        self._hash = hashlib.blake2b(digest_size=16)

    def name(self, text: str) -> int:
        """Its index, for notes."""
        index = self._ids.get(text)
        if index is None:
            index = self._ids[text] = len(self.names)
            self.names.append(text)
        return index

    def losses(self, edges: Iterable[Edge], now: int) -> None:
        """Note what the edges have lost since the last call: they count it themselves."""
        for edge in edges:
            if not edge.lost:
                continue
            before = self._lost.get(edge.name)
            if before == edge.lost:
                continue
            for reason, n in edge.lost.items():
                more = n - (before[reason] if before else 0)
                if more:
                    self.note((Kind.LOST, self.name(edge.name), now, self.name(reason), more, 0))
            self._lost[edge.name] = edge.lost.copy()

    def pack(self, now: int) -> None:
        """Move what was noted into the ring, and forget what is too old."""
        pending = self._pending
        if pending:
            rows = np.array([pending.popleft() for _ in range(len(pending))], np.int64)
            self._hash.update(rows.tobytes())
            self._chunks.append(rows)
            self._held += len(rows)
            self.count += len(rows)
        chunks = self._chunks
        while len(chunks) > 1 and (self._held > self._most or chunks[0][-1, 2] < now - self._keep):
            self._held -= len(chunks.popleft())

    @property
    def events(self) -> NDArray[np.int64]:
        """What is in the ring, packed events only: (n, 6), in the order noted."""
        return np.concatenate(self._chunks) if self._chunks else np.zeros((0, 6), np.int64)

    @property
    def digest(self) -> str:
        """Of all events since the start: two runs with the same digest did the same at the same times."""
        return self._hash.hexdigest()
