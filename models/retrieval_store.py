"""Evicted pictures on disk, to be looked up again: a ring of memory-mapped int8 blocks and an index in memory.

Which blocks a question needs is a scorer's business; `MeanKey` is ReKV's. Measure it against `Recent` and
`AtRandom` before you believe it: on a small trained model mean keys were worse than chance.

Source: ReKV (2503.00540), section 3.3.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .kv_int8 import Packed, block_bytes, pack, unpack
from .ring_kv import Segment
from .rolling_kv import RollingKv


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored block. `number` counts all that were ever put."""

    number: int
    advance: int
    tag: str | int | None
    shape: tuple[int, int, int, int]  # layers, heads, tokens, dim


class Scorer(Protocol):
    """How much a question wants each block."""

    def score(self, query: Tensor, means: Tensor, numbers: Tensor) -> Tensor:
        """query (L, Hq, D) mean of the question's, means (N, L, H, D) of the blocks' keys, numbers (N,) → (N,)."""
        ...


class MeanKey:
    """Dot product of mean query and mean key, heads of a group summed, layers averaged."""

    def score(self, query: Tensor, means: Tensor, numbers: Tensor) -> Tensor:
        _, layers, heads, dim = means.shape
        grouped = query.view(layers, heads, -1, dim).sum(2)  # (L, H, D)
        return torch.einsum("nlhd,lhd->n", means, grouped.to(means)) / layers


class Recent:
    """The newest blocks: the baseline that any scorer has to beat."""

    def score(self, query: Tensor, means: Tensor, numbers: Tensor) -> Tensor:
        return numbers.float()


class AtRandom:
    """Chance, seeded."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def score(self, query: Tensor, means: Tensor, numbers: Tensor) -> Tensor:
        return torch.rand(len(numbers), generator=self._generator)


class RetrievalStore:
    """Up to `slots` blocks of at most `tokens` tokens; the oldest is overwritten. The file has no name: it is
    gone with the process."""

    def __init__(
        self, *, layers: int, heads: int, tokens: int, dim: int, slots: int, scorer: Scorer | None = None
    ) -> None:
        if slots < 1:
            raise ValueError(f"a store of {slots} blocks; give at least one")
        self.slots, self.tokens = slots, tokens
        self.scorer: Scorer = scorer or MeanKey()
        self.put_count = 0
        self._slot_bytes = block_bytes(layers, heads, tokens, dim)
        self._file = tempfile.TemporaryFile(prefix="penstock-kv-")  # noqa: SIM115 - closed by close()
        self._map = np.memmap(self._file, np.uint8, "w+", shape=(slots, self._slot_bytes))
        self._means = torch.zeros(slots, layers, heads, dim)
        self._entries: list[Entry | None] = [None] * slots

    @classmethod
    def from_bytes(
        cls, limit: int, *, layers: int, heads: int, tokens: int, dim: int, **options: Any
    ) -> RetrievalStore:
        """As many blocks as `limit` bytes of disk hold. Raises: ValueError when that is none."""
        slots = limit // block_bytes(layers, heads, tokens, dim)
        return cls(layers=layers, heads=heads, tokens=tokens, dim=dim, slots=slots, **options)

    def __len__(self) -> int:
        return min(self.put_count, self.slots)

    def __enter__(self) -> RetrievalStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def nbytes(self) -> int:
        """Of disk."""
        return self.slots * self._slot_bytes

    def put(self, block: Tensor, advance: int, tag: str | int | None = None) -> Entry:
        """Keep a block (L, 2, 1, H, T, D) as `RollingKv.export` gives it. Raises: ValueError when it is too long."""
        packed = pack(block)
        if packed.data.size > self._slot_bytes:
            raise ValueError(f"a block of {packed.shape[2]} tokens; this store takes up to {self.tokens}")
        slot = self.put_count % self.slots
        self._map[slot, : packed.data.size] = packed.data
        self._means[slot] = block[:, 0, 0].float().mean(2).cpu()
        entry = Entry(self.put_count, advance, tag, packed.shape)
        self._entries[slot] = entry
        self.put_count += 1
        return entry

    def keep_evicted(self, cache: RollingKv, segment: Segment) -> None:
        """For `RollingKv(on_evict=…)`: pictures come here, text does not."""
        if segment.kind == "frame":
            self.put(cache.export(segment), segment.advance, segment.tag)

    def find(self, query: Tensor, k: int) -> list[Entry]:
        """The k best blocks for a mean query (L, Hq, D), oldest first."""
        n = len(self)
        if not n or k < 1:
            return []
        entries = [e for e in self._entries[:n] if e is not None]
        numbers = torch.tensor([e.number for e in entries])
        best = self.scorer.score(query.float().cpu(), self._means[:n], numbers).topk(min(k, n)).indices
        return sorted((entries[int(i)] for i in best), key=lambda e: e.number)

    def get(self, entries: Sequence[Entry], dtype: torch.dtype = torch.float32) -> list[tuple[Tensor, int]]:
        """(block, advance) of each, for `RollingKv.fork`. Raises: KeyError when one was overwritten."""
        blocks: list[tuple[Tensor, int]] = []
        for entry in entries:
            slot = entry.number % self.slots
            if self._entries[slot] != entry:
                raise KeyError(f"block {entry.number} was overwritten")
            layers, heads, tokens, dim = entry.shape
            size = block_bytes(layers, heads, tokens, dim)
            data = np.array(self._map[slot, :size])
            blocks.append((unpack(Packed(data, entry.shape), dtype), entry.advance))
        return blocks

    def close(self) -> None:
        """Give the file back. Idempotent."""
        if not self._file.closed:
            self._map._mmap.close()  # type: ignore[attr-defined]
            self._file.close()
