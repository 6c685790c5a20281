"""Multi-head attention whose keys and values live outside the module, one set of buffers a stream."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
        self,
        x: Tensor,
        spans: Sequence[tuple[int, int]],
        views: Sequence[tuple[Tensor, Tensor]],
        causal: Sequence[int],
        weights: list[list[Tensor]] | None = None,
    ) -> Tensor:
        """Rows of different streams and lengths in one tensor.

        x: (N, D), row r of the batch is x[a:b] of `spans`. views: its keys and values, (H, K, Dh).
        causal: position of the row's first query among its keys, −1 for no mask. weights: takes (H, n, K) of each row.
        """
        q = self.split(self.query(x))  # (H, N, Dh)
        heads: list[Tensor] = []
        for r, ((a, b), (k, v)) in enumerate(zip(spans, views, strict=True)):
            mask = None
            if causal[r] >= 0 and b - a > 1:
                mask = torch.ones(b - a, k.shape[1], dtype=torch.bool, device=x.device).tril(causal[r])
            heads.append(F.scaled_dot_product_attention(q[None, :, a:b], k[None], v[None], attn_mask=mask)[0])
            if weights is not None:
                weights[r].append(scores(q[:, a:b], k))
        y = torch.cat(heads, 1) if len(heads) > 1 else heads[0]  # (H, N, Dh)
        return self.out(y.transpose(0, 1).flatten(1))

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
