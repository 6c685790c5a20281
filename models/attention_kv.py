"""Multi-head attention whose keys and values live outside the module, one set of buffers a stream."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_STEP = 128  # positions allocated at a time


@dataclass(slots=True)
class KvBuffer:
    """Keys and values of one layer of one stream, preallocated, of at most `capacity` positions.

    What lies beyond `fill` is scratch: a forward may write there and be repeated or dropped; only `advance`
    makes it part of the state. Memory grows as it fills: short turns stay small, and attention over all that is
    allocated (as onnxruntime does it, without a copy) costs little more than over what is filled. Steps are even, not
    doubled: a window is copied some ten times in its 30 s, which is less than masked work at each block.
    """

    k: Tensor  # (H, A, Dh), A ≤ capacity
    v: Tensor  # (H, A, Dh)
    capacity: int
    fill: int = 0

    @classmethod
    def empty(cls, heads: int, capacity: int, width: int, like: Tensor) -> KvBuffer:
        shape = (heads, min(capacity, _STEP), width)
        return cls(like.new_zeros(shape), like.new_zeros(shape), capacity)

    def put(self, k: Tensor, v: Tensor, at: int) -> None:
        """Write (H, n, Dh) at position `at`, which is `fill` or beyond."""
        end = at + k.shape[1]
        if at < self.fill or end > self.capacity:
            raise ValueError(
                f"positions {at} to {end} are outside the scratch {self.fill} to {self.capacity}"
            )
        if end > self.k.shape[1]:
            self._grow(end)
        self.k[:, at:end] = k
        self.v[:, at:end] = v

    def view(self, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """Keys and values of positions [begin, end): (H, n, Dh) each, not copied."""
        return self.k[:, begin:end], self.v[:, begin:end]

    def advance(self, n: int) -> None:
        self.fill += n

    def shift(self, keep: int) -> None:
        """Forget all but the last `keep` positions."""
        if keep < self.fill:
            begin = self.fill - keep
            self.k[:, :keep] = self.k[:, begin : self.fill].clone()
            self.v[:, :keep] = self.v[:, begin : self.fill].clone()
            self.fill = keep

    def _grow(self, needed: int) -> None:
        room = -(-needed // _STEP) * _STEP
        heads, old, width = self.k.shape
        for name in ("k", "v"):
            new = self.k.new_zeros(heads, min(room, self.capacity), width)
            new[:, :old] = getattr(self, name)
            setattr(self, name, new)


@dataclass(slots=True)
class PackedRows:
    """Which rows of (N, …) are each stream's, and which of its keys they see: the same in every layer of a forward.

    On a CPU each stream's attention is a call of its own, over views. On a GPU streams whose buffers have one size are
    stacked and masked: some copying, but a few kernels where it would be a few for each stream.
    """

    counts: Sequence[int]  # rows of each stream
    begins: Sequence[int]  # first key that it sees
    ends: Sequence[int]  # key after the last
    firsts: Sequence[int] | None = None  # causal: the place among the keys of each stream's first row
    pad: bool = False  # as on a GPU, wherever it runs
    groups: dict[tuple[int, ...], list[_Stacked]] = field(
        default_factory=dict[tuple[int, ...], "list[_Stacked]"]
    )

    def put(self, kvs: Sequence[KvBuffer], k: Tensor, v: Tensor) -> None:
        """Write the rows' own keys and values, (H, N, Dh) each: the last that each stream sees."""
        counts = list(self.counts)
        for kv, k1, v1, end in zip(kvs, k.split(counts, 1), v.split(counts, 1), self.ends, strict=True):
            kv.put(k1, v1, end - k1.shape[1])

    def attend(
        self, q: Tensor, kvs: Sequence[KvBuffer], weights: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """q: (H, N, Dh), and this layer's buffer of each stream → (N, H·Dh) and, with `weights`, each stream's (H, n, K)."""
        y, spread = (self.padded if q.is_cuda or self.pad else self.apart)(q, kvs, weights)
        return y.transpose(0, 1).flatten(1), spread

    def apart(self, q: Tensor, kvs: Sequence[KvBuffer], weights: bool) -> tuple[Tensor, list[Tensor]]:
        """q: (H, N, Dh) → (H, N, Dh) and, with `weights`, each stream's (H, n, K)."""
        heads: list[Tensor] = []
        spread: list[Tensor] = []
        for i, (q1, kv) in enumerate(zip(q.split(list(self.counts), 1), kvs, strict=True)):
            k, v = kv.view(self.begins[i], self.ends[i])
            mask = None
            if self.firsts is not None and self.counts[i] > 1:
                whole = torch.ones(self.counts[i], k.shape[1], dtype=torch.bool, device=q.device)
                mask = whole.tril(self.firsts[i] - self.begins[i])
            heads.append(F.scaled_dot_product_attention(q1[None], k[None], v[None], attn_mask=mask)[0])
            if weights:
                spread.append(scores(q1, k))
        return torch.cat(heads, 1) if len(heads) > 1 else heads[0], spread

    def padded(self, q: Tensor, kvs: Sequence[KvBuffer], weights: bool) -> tuple[Tensor, list[Tensor]]:
        """As `apart`."""
        sizes = tuple(kv.k.shape[1] for kv in kvs)
        if sizes not in self.groups:
            self.groups[sizes] = [
                _Stacked.of(self, [i for i, s in enumerate(sizes) if s == size], size, q.device)
                for size in sorted(set(sizes))
            ]
        y = torch.empty_like(q)
        spread: dict[int, Tensor] = {}
        for group in self.groups[sizes]:
            k = torch.stack([kvs[i].k for i in group.rows])  # (B, H, A, Dh)
            v = torch.stack([kvs[i].v for i in group.rows])
            q1 = q[:, group.places].transpose(0, 1)  # (B, H, n, Dh)
            out = F.scaled_dot_product_attention(q1, k, v, attn_mask=group.mask)
            y[:, group.places[group.real]] = out.permute(1, 0, 2, 3)[:, group.real]
            if weights:
                logits = (q1.float() @ k.float().transpose(2, 3) / math.sqrt(q.shape[-1])).masked_fill(
                    ~group.mask, -math.inf
                )
                for one, i in zip(logits.softmax(-1), group.rows, strict=True):
                    spread[i] = one[:, : self.counts[i], self.begins[i] : self.ends[i]]
        return y, [spread[i] for i in range(len(kvs))] if weights else []


@dataclass(frozen=True, slots=True)
class _Stacked:
    """Streams whose buffers have one size."""

    rows: list[int]
    places: Tensor  # (B, n) of each query in (N, …); a stream with fewer repeats its last
    real: Tensor  # (B, n) False for repeated ones
    mask: Tensor  # (B, 1, n, A)

    @classmethod
    def of(cls, packed: PackedRows, rows: list[int], size: int, device: torch.device) -> _Stacked:
        starts = [sum(packed.counts[:i]) for i in rows]
        counts = torch.tensor([packed.counts[i] for i in rows], device=device)[:, None]
        step = torch.arange(int(max(packed.counts[i] for i in rows)), device=device)[None]
        places = torch.tensor(starts, device=device)[:, None] + torch.minimum(step, counts - 1)
        key = torch.arange(size, device=device)
        last = torch.tensor([packed.ends[i] - 1 for i in rows], device=device)[:, None].expand_as(places)
        if packed.firsts is not None:
            first = torch.tensor([packed.firsts[i] for i in rows], device=device)[:, None]
            last = torch.minimum(last, first + step)
        begin = torch.tensor([packed.begins[i] for i in rows], device=device)[:, None, None]
        return cls(rows, places, step < counts, ((key >= begin) & (key <= last[..., None]))[:, None])


class Attention(nn.Module):
    """Whisper's attention (keys have no bias). Names as in OpenAI's checkpoints."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """(…, n, D) → (…, H, n, Dh)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(…, n, D) → two of (…, H, n, Dh)."""
        return self.split(self.key(x)), self.split(self.value(x))

    def packed(
        self, x: Tensor, rows: PackedRows, kvs: Sequence[KvBuffer], weights: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Rows of different streams and lengths in one tensor, each over its own keys and values.

        x: (N, D), row after row. kvs: this layer's buffer of each row. Returns (N, D) and, with `weights`, each row's
        attention (H, n, K).
        """
        y, spread = rows.attend(self.split(self.query(x)), kvs, weights)
        return self.out(y), spread

    def forward(
        self,
        x: Tensor,
        xa: Tensor | None = None,
        mask: Tensor | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """The whole at once, for training and reference: x (B, T, D), xa (B, S, D), mask (B, 1, T, S).

        weights: takes the attention, (B, H, T, S)."""
        k, v = self.keys_values(x if xa is None else xa)
        q = self.split(self.query(x))
        if weights is None and not torch.is_grad_enabled():
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:  # written out: on CPUs the fused one is several times slower backwards
            logits = (q / math.sqrt(q.shape[-1])) @ k.transpose(-1, -2)
            if mask is not None:
                logits = logits.masked_fill(~mask, -math.inf)
            spread = logits.softmax(-1)
            if weights is not None:
                weights.append(spread)
            y = spread.to(v) @ v
        return self.out(y.transpose(1, 2).flatten(2))


def scores(q: Tensor, k: Tensor) -> Tensor:
    """Attention weights (H, n, K), float32."""
    return (q.float() @ k.float().transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)


class Block(nn.Module):
    """Pre-norm transformer block, with cross-attention in decoders. Names as in OpenAI's checkpoints."""

    def __init__(self, width: int, heads: int, *, cross: bool = False) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.attn_ln = nn.LayerNorm(width)
        self.cross_attn = Attention(width, heads) if cross else None
        self.cross_attn_ln = nn.LayerNorm(width) if cross else None
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.mlp_ln = nn.LayerNorm(width)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        xa: Tensor | None = None,
        cross_mask: Tensor | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """(B, T, D) → (B, T, D), the whole at once. weights: takes the cross-attention."""
        x = x + self.attn(self.attn_ln(x), None, mask)
        if self.cross_attn is not None and self.cross_attn_ln is not None:
            x = x + self.cross_attn(self.cross_attn_ln(x), xa, cross_mask, weights)
        return x + self.mlp(self.mlp_ln(x))
