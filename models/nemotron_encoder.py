"""The encoder of Nemotron streaming over blocks of many streams, its caches outside: a state is never changed, a step makes
a new one.

The weights are the modules of transformers, called by layers with caches of this file's: rows of streams of any age
share a forward, padded on the left, and a mask says which keys are a row's own.

Source: Stateful Conformer with cache-based inference, arXiv 2312.17279.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, slots=True)
class EncoderState:
    """Of one stream. Empty where it begins."""

    keys: tuple[Tensor, ...] = ()  # (H, K, E) of each layer, in reach of the next block
    values: tuple[Tensor, ...] = ()
    tails: Mapping[str, Tensor] | None = None  # left sides of the convolutions, by transformers' names

    @property
    def held(self) -> int:
        return self.keys[0].shape[1] if self.keys else 0


class _Keys:
    """Stands in for transformers' cache in one forward: adds what came before, keeps what will be needed."""

    def __init__(self, states: Sequence[EncoderState], reach: int) -> None:
        self._states, self._reach = states, reach
        self.longest = max(s.held for s in states)
        self.kept: list[tuple[list[Tensor], list[Tensor]]] = []

    def update(self, keys: Tensor, values: Tensor, layer: int, **_: Any) -> tuple[Tensor, Tensor]:
        """(B, H, n, E) → (B, H, K + n, E)."""
        whole = [
            torch.cat(
                [self._past([getattr(s, name)[layer] if s.held else None for s in self._states], new), new], 2
            )
            for name, new in (("keys", keys), ("values", values))
        ]
        n = keys.shape[2]
        kept: tuple[list[Tensor], list[Tensor]] = ([], [])
        for b, state in enumerate(self._states):
            count = min(self._reach, state.held + n)
            for mine, both in zip(kept, whole, strict=True):
                mine.append(both[b, :, both.shape[2] - count :].clone())
        self.kept.append(kept)
        return whole[0], whole[1]

    def _past(self, parts: Sequence[Tensor | None], like: Tensor) -> Tensor:
        """(H, K, E) of each row, padded on the left to the longest: (B, H, K, E)."""
        empty = like.new_zeros(like.shape[1], 0, like.shape[3])
        padded = [
            F.pad(p, (0, 0, self.longest - p.shape[1], 0)) for p in (empty if p is None else p for p in parts)
        ]
        return torch.stack(padded)


class _Tails:
    """Stands in for transformers' padding cache in one forward."""

    def __init__(self, states: Sequence[EncoderState]) -> None:
        self._states = states
        self.kept: dict[str, Tensor] = {}  # (B, …) of each convolution

    def update(self, x: Tensor, name: str, conv: Any) -> Tensor:
        """(B, C, T) or (B, C, T, M) → with its left side."""
        before = [s.tails[name] if s.tails is not None else None for s in self._states]
        width: int = conv.left_pad
        first = getattr(conv, "left_pad_init", width)  # a stream that begins has more zeros on its left
        shape = list(x.shape[1:])
        lefts: list[Tensor] = []
        for one in before:
            shape[1] = first
            lefts.append(x.new_zeros(shape) if one is None else one)
        whole = torch.cat([torch.stack(lefts), x], 2)
        self.kept[name] = whole[:, :, whole.shape[2] - width :].clone()
        return whole


class NemotronEncoder:
    """Holds the weights and no stream."""

    def __init__(self, model: Any, lookahead: int) -> None:
        """model: `NemotronAsrStreamingForRNNT`. lookahead: frames of 80 ms that a block has after its first."""
        self._model, self._net = model, model.encoder
        self.block = lookahead + 1
        # whole blocks, as the mask of the training had them
        self._reach = (self._net.config.sliding_window - 1) // self.block * self.block

    def steps(
        self, states: Sequence[EncoderState], mels: Sequence[Tensor]
    ) -> list[tuple[Tensor, EncoderState]]:
        """The next block of each, all beginning or none: (M, T) of equal T → (F, D) and the state after."""
        like: Tensor = self._model.encoder_projector.weight
        keys, tails = _Keys(states, self._reach), _Tails(states)
        x = self._net.subsampling(torch.stack([m.T for m in mels]).to(like), padding_cache=tails)
        x = x * self._net.input_scale
        n = x.shape[1]
        held = torch.tensor([s.held for s in states], device=x.device)
        mask = torch.arange(keys.longest + n, device=x.device) >= keys.longest - held[:, None]  # (B, K + n)
        mask = mask[:, None, None].expand(-1, 1, n, -1)
        positions = self._net.encode_positions(x, cached_frames=keys.longest)
        for layer in self._net.layers:
            x = layer(
                x,
                attention_mask=mask,
                position_embeddings=positions,
                cache=keys,
                padding_cache=tails,
                use_cache=True,
            )
        out = self._model.encoder_projector(x)  # (B, F, D)
        return [
            (
                out[b],
                EncoderState(
                    tuple(k[b] for k, _ in keys.kept),
                    tuple(v[b] for _, v in keys.kept),
                    {name: tail[b] for name, tail in tails.kept.items()},
                ),
            )
            for b in range(len(states))
        ]
