"""One forward pass for rows of many caches: their new tokens lie side by side as one sequence.

    tokens     [ picture of A ……… | word of B | question of C … ]      one embedding, one matmul for all
    attention    A's ring          B's branch   C's branch              each over its own cache

Projections and MLPs, which are nearly all of the work, run once for all rows, whatever their lengths; only
attention runs row by row. Caches stay what they are: rings of any fill, branches of any answer.

Source: selective batching, Orca (OSDI 2022), section 4.2; mixed prefill and decode: Sarathi-Serve (2403.02310).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class Run:
    """One row's share of a pass."""

    cache: Any  # RollingKv or Branch: has room for `tokens` more
    tokens: int
    whole: tuple[int, int] = (0, 0)  # its tokens [a, b) see each other both ways, as a picture's do in Gemma3
    tap: bool = False  # keep where its last token looks


class Packed:
    """The cache of one pass. `tapped`: layers whose attention is kept, for rows that want it."""

    def __init__(self, runs: Sequence[Run], tapped: Collection[int] = ()) -> None:
        self.runs, self.tapped = runs, frozenset(tapped)
        self.seen: list[list[Tensor]] = [[] for _ in runs]  # by row: (K,) a tapped layer, heads averaged
        self._views: list[tuple[Tensor, Tensor]] = []

    def update(
        self, keys: Tensor, values: Tensor, layer: int, *_: object, **__: object
    ) -> tuple[Tensor, Tensor]:
        """Keys and values (1, H, T, D) of all rows go to their caches. What is returned is not to be used."""
        self._views = []
        at = 0
        for run in self.runs:
            to = at + run.tokens
            self._views.append(run.cache.update(keys[:, :, at:to], values[:, :, at:to], layer))
            at = to
        return keys, values

    def attend(
        self, query: Tensor, layer: int, scale: float | None = None, window: int | None = None
    ) -> Tensor:
        """(1, Hq, T, D) → (1, Hq, T, D). window: a token sees only that many, itself included."""
        out: list[Tensor] = []
        at = 0
        for i, (run, (k, v)) in enumerate(zip(self.runs, self._views, strict=True)):
            q = query[:, :, at : at + run.tokens]
            at += run.tokens
            mask = _mask(run, k.shape[2], window, q.device)
            out.append(F.scaled_dot_product_attention(q, k, v, mask, scale=scale, enable_gqa=True))
            if run.tap and layer in self.tapped:
                self.seen[i].append(_looks(q[0, :, -1], k[0], scale, window))
        return torch.cat(out, 2)


def _mask(run: Run, total: int, window: int | None, device: torch.device) -> Tensor | None:
    """(n, total), or None where a token sees all."""
    n = run.tokens
    narrow = window is not None and total > window
    if n == 1 and not narrow:
        return None
    mask = torch.ones(n, total, dtype=torch.bool, device=device).tril(total - n)
    a, b = run.whole
    mask[a:b, total - n + a : total - n + b] = True
    if narrow:
        assert window is not None
        mask &= torch.ones_like(mask).triu(total - n - window + 1)
    return mask


def _looks(q: Tensor, k: Tensor, scale: float | None, window: int | None) -> Tensor:
    """Attention of one token (Hq, D) on keys (H, K, D): (K,), mean over heads."""
    q = q.float().view(k.shape[0], -1, q.shape[-1])  # (H, group, D)
    logits = q @ k.float().transpose(1, 2) * (scale or q.shape[-1] ** -0.5)  # (H, group, K)
    if window is not None and k.shape[1] > window:
        logits[..., : k.shape[1] - window] = -torch.inf
    return logits.softmax(-1).mean((0, 1))


NAME = "penstock_packed"


def install(text_model: Any) -> None:
    """Let a transformers text model attend through `Packed`: pass it as `cache` and as `packed`.

    From then on the model only works with a `Packed` cache. Needs the `hub` extra.
    """
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, _attention)
    text_model.config._attn_implementation = NAME


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    sliding_window: int | None = None,
    packed: Packed,
    **_: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface: → (1, T, H, D), None."""
    return packed.attend(query, module.layer_idx, scaling, sliding_window).transpose(1, 2), None
