"""The encoder of Moonshine streaming, step by step: what it gives for any chunking is what transformers' encoder
gives for the whole audio with its attention mask.

The masks are windows: a frame of 20 ms sees the `left − 1` frames before it and, in some layers, a few after. Each layer
keeps the keys and values that are still in reach and the inputs whose right side has not come; no frame is computed
twice, and a step costs the same after an hour. The network has no positions, so a window may begin anywhere.

The weights are the modules of transformers. Source: Moonshine v2, ergodic streaming encoder, arXiv 2602.12241.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

FRAME = 320  # samples of a frame
_FRAME_LEN = 80  # of a window of 5 ms, four of which make a frame


@dataclass(frozen=True, slots=True)
class LayerState:
    """Of one layer of one stream."""

    keys: Tensor  # (H, K, E) in reach of frames to come
    values: Tensor  # (H, K, E)
    waiting: Tensor  # (W, D) inputs that lack frames on their right


@dataclass(frozen=True, slots=True)
class EncoderState:
    """Of one stream; a step makes a new one."""

    first: Tensor  # (D, 4) inputs of the first convolution before the next step
    second: Tensor  # (2·D, 4) inputs of the second
    layers: tuple[LayerState, ...]


class MoonshineEncoder:
    """Holds the weights and no stream."""

    def __init__(self, encoder: Any) -> None:
        """encoder: `MoonshineStreamingEncoder`. Raises: ValueError for a shape that cannot be streamed."""
        config = encoder.config
        if config.sample_rate != 16_000 or round(config.sample_rate * config.frame_ms / 1000) != _FRAME_LEN:
            raise ValueError(
                f"the encoder takes frames of {config.frame_ms} ms at {config.sample_rate} Hz; "
                "accepted: 5 ms at 16000 Hz"
            )
        self._net = encoder
        self._windows: list[tuple[int, int]] = [
            (int(left), max(0, int(right) - 1)) for left, right in config.sliding_windows
        ]
        if len(self._windows) != len(encoder.layers) or any(left < 1 for left, _ in self._windows):
            raise ValueError(
                f"sliding_windows {config.sliding_windows} do not fit {len(encoder.layers)} layers; needed: "
                "one [left, right] a layer, left at least 1"
            )
        self.width: int = config.hidden_size
        self._like: Tensor = encoder.embedder.linear.weight

    @property
    def ahead(self) -> int:
        """Frames that must come before one can be given."""
        return sum(ahead for _, ahead in self._windows)

    def start(self) -> EncoderState:
        d, like = self.width, self._like
        layers: list[LayerState] = []
        for layer in self._net.layers:
            attention = layer.self_attn
            empty = like.new_zeros(attention.config.num_key_value_heads, 0, attention.head_dim)
            layers.append(LayerState(empty, empty, like.new_zeros(0, d)))
        return EncoderState(like.new_zeros(d, 4), like.new_zeros(2 * d, 4), tuple(layers))

    @torch.no_grad()
    def step(self, state: EncoderState, pcm: Tensor, *, last: bool = False) -> tuple[Tensor, EncoderState]:
        """(S,) samples, S a multiple of 320 or 0 → (n, D) frames that are now complete, and the state after them.

        `last`: nothing comes after these samples, so all frames are given.
        """
        return self.steps([state], [pcm], [last])[0]

    @torch.no_grad()
    def steps(
        self, states: Sequence[EncoderState], pcms: Sequence[Tensor], lasts: Sequence[bool]
    ) -> list[tuple[Tensor, EncoderState]]:
        """`step` of many streams, each with as many samples as it has: what has weights is done for all at once."""
        embedder = self._net.embedder
        x = torch.cat(list(pcms)).to(self._like.device, self._like.dtype).reshape(1, -1, _FRAME_LEN)
        x = F.silu(embedder.linear(embedder.comp(embedder.cmvn(x))))[0]  # (4·N, D)
        frames = [len(pcm) // FRAME for pcm in pcms]
        firsts, x = _convolve(embedder.conv1, [s.first for s in states], x, [4 * n for n in frames])
        seconds, x = _convolve(embedder.conv2, [s.second for s in states], F.silu(x), [2 * n for n in frames])
        layers: list[list[LayerState]] = [[] for _ in states]
        counts = frames
        for index, (layer, window) in enumerate(zip(self._net.layers, self._windows, strict=True)):
            before = [s.layers[index] for s in states]
            x, after, counts = _layer(layer, window, before, x, counts, lasts)
            for mine, one in zip(layers, after, strict=True):
                mine.append(one)
        out = self._net.final_norm(x).split(counts)
        return [
            (y, EncoderState(first, second, tuple(mine)))
            for y, first, second, mine in zip(out, firsts, seconds, layers, strict=True)
        ]


def _convolve(
    conv: Any, tails: Sequence[Tensor], x: Tensor, counts: Sequence[int]
) -> tuple[list[Tensor], Tensor]:
    """A causal convolution of 5 taps and stride 2 over (N, C) rows, `counts` of each stream → next tails (C, 4), (N/2, C')."""
    after: list[Tensor] = []
    windows: list[Tensor] = []
    for tail, part in zip(tails, x.split(list(counts)), strict=True):
        whole = torch.cat([tail, part.T], 1)
        after.append(whole[:, -4:])
        if len(part):  # a stream that ends on the grid has none
            windows.append(whole.unfold(1, 5, 2).transpose(0, 1).flatten(1))  # (n, C·5)
    if not windows:
        return after, x.new_zeros(0, conv.out_channels)
    return after, F.linear(torch.cat(windows), conv.weight.flatten(1), conv.bias)


def _layer(
    layer: Any,
    window: tuple[int, int],
    before: Sequence[LayerState],
    new: Tensor,
    counts: Sequence[int],
    lasts: Sequence[bool],
) -> tuple[Tensor, list[LayerState], list[int]]:
    """New inputs (M, D), `counts` of each stream → outputs (N, D) of the inputs that see all they may see, the states
    after, and how many outputs each stream has."""
    left, ahead = window
    attention = layer.self_attn

    def heads(x: Tensor) -> Tensor:
        """(n, H·E) → (H, n, E)."""
        return x.unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)

    normed = layer.input_layernorm(new)
    fresh = [
        heads(project(normed)).split(list(counts), 1) for project in (attention.k_proj, attention.v_proj)
    ]
    after: list[LayerState] = []
    given: list[Tensor] = []
    seen: list[tuple[Tensor, Tensor, int]] = []
    parts = zip(before, new.split(list(counts)), *fresh, lasts, strict=True)
    for state, inputs, k, v, last in parts:
        keys, values = torch.cat([state.keys, k], 1), torch.cat([state.values, v], 1)
        waiting = torch.cat([state.waiting, inputs])
        n = len(waiting) if last else max(0, len(waiting) - ahead)
        begin = keys.shape[1] - len(waiting)  # place of the first that waits, among the keys
        gone = max(0, begin + n - (left - 1))
        after.append(LayerState(keys[:, gone:], values[:, gone:], waiting[n:]))
        given.append(waiting[:n])
        seen.append((keys, values, begin))
    x, sizes = torch.cat(given), [len(g) for g in given]
    if len(x) == 0:
        return x, after, sizes
    queries = heads(attention.q_proj(layer.input_layernorm(x))).split(sizes, 1)
    sums: list[Tensor] = []
    for q, (keys, values, begin) in zip(queries, seen, strict=True):
        places = torch.arange(keys.shape[1], device=x.device)
        distance = places[begin : begin + q.shape[1], None] - places[None]  # (n, K)
        if q.shape[1]:
            y = F.scaled_dot_product_attention(
                q[None],
                keys[None],
                values[None],
                attn_mask=(distance < left) & (distance >= -ahead),
                scale=attention.scaling,
                enable_gqa=attention.num_key_value_groups > 1,
            )
            sums.append(y[0])
    x = x + attention.o_proj(torch.cat(sums, 1).transpose(0, 1).flatten(1))
    return x + layer.mlp(layer.post_attention_layernorm(x)), after, sizes
