"""The encoder of Moonshine streaming, step by step: what it gives for any chunking is what transformers' encoder
gives for the whole audio with its attention mask.

The masks are windows: a frame of 20 ms sees the `left − 1` frames before it and, in some layers, a few after. Each layer
keeps the keys and values that are still in reach and the inputs whose right side has not come; no frame is computed
twice, and a step costs the same after an hour. The network has no positions, so a window may begin anywhere.

The weights are the modules of transformers. Source: Moonshine v2, ergodic streaming encoder, arXiv 2602.12241.
"""

from __future__ import annotations

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
        embedder = self._net.embedder
        x = pcm.to(self._like.device, self._like.dtype).reshape(1, -1, _FRAME_LEN)
        x = F.silu(embedder.linear(embedder.comp(embedder.cmvn(x))))[0].T  # (D, 4·n)
        first, x = _convolve(embedder.conv1, state.first, x)
        second, x = _convolve(embedder.conv2, state.second, F.silu(x))
        x = x.T  # (n, D)
        layers: list[LayerState] = []
        for layer, window, before in zip(self._net.layers, self._windows, state.layers, strict=True):
            x, after = _layer(layer, window, before, x, last)
            layers.append(after)
        return self._net.final_norm(x), EncoderState(first, second, tuple(layers))


def _convolve(conv: Any, tail: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """A causal convolution of 5 taps and stride 2 over (C, 2·n) → the next tail, (C', n)."""
    if x.shape[1] == 0:  # a stream that ends on the grid
        return tail, x.new_zeros(conv.out_channels, 0)
    x = torch.cat([tail, x], 1)
    return x[:, -4:], F.conv1d(x[None], conv.weight, conv.bias, stride=2)[0]


def _layer(
    layer: Any, window: tuple[int, int], before: LayerState, new: Tensor, last: bool
) -> tuple[Tensor, LayerState]:
    """New inputs (m, D) → outputs (n, D) of the inputs that see all they may see, and the state after."""
    left, ahead = window
    attention = layer.self_attn

    def heads(x: Tensor) -> Tensor:
        """(n, H·E) → (H, n, E)."""
        return x.unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)

    normed = layer.input_layernorm(new)
    keys = torch.cat([before.keys, heads(attention.k_proj(normed))], 1)
    values = torch.cat([before.values, heads(attention.v_proj(normed))], 1)
    waiting = torch.cat([before.waiting, new])
    n = len(waiting) if last else max(0, len(waiting) - ahead)
    begin = keys.shape[1] - len(waiting)  # place of the first that waits, among the keys
    gone = max(0, begin + n - (left - 1))
    after = LayerState(keys[:, gone:], values[:, gone:], waiting[n:])
    x = waiting[:n]
    if n == 0:
        return x, after
    places = torch.arange(keys.shape[1], device=x.device)
    distance = places[begin : begin + n, None] - places[None]  # (n, K)
    y = F.scaled_dot_product_attention(
        heads(attention.q_proj(layer.input_layernorm(x)))[None],
        keys[None],
        values[None],
        attn_mask=(distance < left) & (distance >= -ahead),
        scale=attention.scaling,
        enable_gqa=attention.num_key_value_groups > 1,
    )[0]
    x = x + attention.o_proj(y.transpose(0, 1).flatten(1))
    return x + layer.mlp(layer.post_attention_layernorm(x)), after
