"""Phones → spectral parameters by chunk-aware causal flow matching, whose state is carried from chunk to chunk.

    phones ─encoder─▶ h (P) ─durations─▶ h per frame (T) ─▶ mean μ ─┐
    noise of each position x₀ ──────────────────────────────────────┴─ flow, N Euler steps ─▶ x₁ (T, 32)

A frame attends to its own chunk and to `left` frames before it, and convolutions look back only. So a chunk needs, for
each Euler step and layer, the keys and values of the frames before and the last inputs of each convolution: with them
in the state a chunk costs the same wherever it is, and the result is that of one pass over the whole.

In training each batch draws its mask from {full, causal, chunk, two chunks}: one set of weights serves all of them.

Source: Du et al., "CosyVoice 2", 2024, section 2.3 (chunk-aware causal flow matching; the reference runs the whole
prefix again for every chunk); Lipman et al., "Flow matching for generative modeling", 2023; the mean as a condition:
Mehta et al., "Matcha-TTS", 2024.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .flow_noise import noise_at
from .flow_phones import FLAGS, PHONES
from .flow_vocoder import DIMS
from .traced import traced

Mask: TypeAlias = Literal["full", "causal", "chunk", "chunks"]
MASKS: tuple[Mask, ...] = ("full", "causal", "chunk", "chunks")

POSITION = 4  # features of a frame's place in its phone


@dataclass(frozen=True, slots=True)
class FlowDims:
    """Sizes. chunk, left: frames of 10 ms."""

    width: int = 192
    heads: int = 4
    layers: int = 5
    encoder_layers: int = 3
    kernel: int = 7
    chunk: int = 20
    left: int = 40
    steps: int = 4


@dataclass(slots=True)
class LayerCache:
    """Of one layer at one Euler step."""

    keys: Tensor  # (1, H, ≤ left, D)
    values: Tensor  # (1, H, ≤ left, D)
    tail: Tensor  # (1, C, K−1): last inputs of the convolution


@dataclass(slots=True)
class FlowState:
    """Of one stream: what the next chunk needs of those before."""

    position: int = 0  # frames made
    pending: list[Tensor] = field(
        default_factory=list[Tensor]
    )  # conditions (n, C) of a chunk that is not full
    caches: list[list[LayerCache | None]] = field(default_factory=list[list[LayerCache | None]])
    full: tuple[Tensor, Tensor, Tensor] | None = (
        None  # the caches as the traced chunk takes them, once all are full
    )


def mask_of(kind: Mask, frames: int, dims: FlowDims) -> Tensor | None:
    """(T, T), true where a frame (row) may look at another; None for everywhere."""
    if kind == "full":
        return None
    at = torch.arange(frames)
    if kind == "causal":
        return (at[None, :] <= at[:, None]) & (at[None, :] > at[:, None] - dims.left)
    size = dims.chunk if kind == "chunk" else 2 * dims.chunk
    begin = at // size * size
    return (at[None, :] < begin[:, None] + size) & (at[None, :] >= begin[:, None] - dims.left)


class _Block(nn.Module):
    """Pre-norm attention, causal depthwise convolution, feed-forward; the time of the flow shifts each."""

    def __init__(self, dims: FlowDims) -> None:
        super().__init__()
        width = dims.width
        self.heads, self.left, self.kernel = dims.heads, dims.left, dims.kernel
        self.time = nn.Linear(width, width)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.conv = nn.Conv1d(width, width, dims.kernel, groups=width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(
        self, x: Tensor, time: Tensor, mask: Tensor | None, cache: LayerCache | None = None
    ) -> tuple[Tensor, LayerCache]:
        """x (B, T, C), time (B, C) → (B, T, C) and what the next chunk needs. mask: None when all is visible."""
        batch, frames, width = x.shape
        x = x + self.time(time)[:, None]
        q, k, v = (
            self.qkv(self.norm1(x)).view(batch, frames, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        )  # (B, H, T, D)
        if cache is not None:
            k, v = torch.cat([cache.keys, k], 2), torch.cat([cache.values, v], 2)
        # written out: the fused kernel's backward pass on a CPU costs four times as much at this size
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        seen = scores.softmax(-1) @ v
        x = x + self.out(seen.transpose(1, 2).reshape(batch, frames, width))
        y = self.norm2(x).transpose(1, 2)  # (B, C, T)
        before = y.new_zeros(batch, width, self.kernel - 1) if cache is None else cache.tail
        y = torch.cat([before, y], 2)
        x = x + F.gelu(self.conv(y)).transpose(1, 2)
        x = x + self.down(F.gelu(self.up(self.norm3(x))))
        left = max(0, k.shape[2] - self.left)
        return x, LayerCache(k[:, :, left:], v[:, :, left:], y[:, :, y.shape[2] - self.kernel + 1 :])


class _EncoderLayer(nn.Module):
    """Convolution over phones, both ways: the clause is known when it is spoken."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, 2 * width, 5, padding=2)

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """x (B, P, C), present (B, P, 1) → (B, P, C)."""
        y = (self.norm(x) * present).transpose(1, 2)
        return (x + F.glu(self.conv(y), 1).transpose(1, 2)) * present


class FlowAcoustic(nn.Module):
    """Weights only; a stream is a `FlowState`."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, dims: FlowDims | None = None) -> None:
        super().__init__()
        self.dims = dims = dims or FlowDims()
        width = dims.width
        self.phone = nn.Embedding(len(PHONES), width)
        self.flags = nn.Linear(FLAGS, width)
        self.encoder = nn.ModuleList(_EncoderLayer(width) for _ in range(dims.encoder_layers))
        self.encoded = nn.LayerNorm(width)
        self.duration = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))
        self.place = nn.Linear(width + POSITION, width)
        self.prior = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, DIMS))
        self.enter = nn.Linear(2 * DIMS + width, width)
        self.time = nn.Sequential(nn.Linear(64, width), nn.GELU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(_Block(dims) for _ in range(dims.layers))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, DIMS))
        self._traced: list[Callable[..., tuple[Tensor, ...]]] = []  # in a list: it is no part of the weights
        self.register_buffer("mean", torch.zeros(DIMS))
        self.register_buffer("deviation", torch.ones(DIMS))

    # ------------------------------------------------------------ conditions

    def encode(self, phones: Tensor, flags: Tensor) -> tuple[Tensor, Tensor]:
        """phones (B, P) indices, 0 for padding; flags (B, P, FLAGS) → h (B, P, C), log frames (B, P)."""
        present = (phones > 0)[..., None].to(self.mean.dtype)
        x = (self.phone(phones) + self.flags(flags)) * present
        for layer in self.encoder:
            x = layer(x, present)
        h = self.encoded(x)
        return h, self.duration(h)[..., 0]

    def spread(self, h: Tensor, durations: Sequence[int]) -> Tensor:
        """One utterance: h (P, C) and frames of each phone → conditions (T, C)."""
        counts = torch.tensor(durations)
        frames = h.repeat_interleave(counts, 0)
        return self.place(torch.cat([frames, _places(durations).to(h)], -1))

    # ------------------------------------------------------------ the flow

    def velocity(
        self,
        x: Tensor,
        condition: Tensor,
        t: Tensor,
        mask: Tensor | None,
        caches: Sequence[LayerCache | None] | None = None,
    ) -> tuple[Tensor, list[LayerCache]]:
        """x (B, T, DIMS), condition (B, T, C), t (B,) → dx/dt and the layers' caches."""
        time = self.time(_waves(t).to(x))
        y = self.enter(torch.cat([x, self.prior(condition), condition], -1))
        kept: list[LayerCache] = []
        for i, block in enumerate(self.blocks):
            y, cache = block(y, time, mask, caches[i] if caches else None)
            kept.append(cache)
        return self.leave(y), kept

    @torch.inference_mode()
    def forward(
        self, condition: Tensor, *, seed: int = 0, temperature: float = 0.7, kind: Mask = "chunk"
    ) -> Tensor:
        """The whole at once: conditions (T, C) → parameters (T, DIMS)."""
        x = self._noise(0, len(condition), seed, temperature)
        mask = mask_of(kind, len(condition), self.dims)
        for step in range(self.dims.steps):
            t = x.new_full((1,), step / self.dims.steps)
            change, _ = self.velocity(x, condition[None], t, mask)
            x = x + change / self.dims.steps
        return x[0] * self.deviation + self.mean

    def init_state(self) -> FlowState:
        return FlowState(caches=[[None] * self.dims.layers for _ in range(self.dims.steps)])

    @torch.inference_mode()
    def step(
        self,
        condition: Tensor,
        state: FlowState,
        *,
        seed: int = 0,
        temperature: float = 0.7,
        last: bool = False,
    ) -> Tensor:
        """Conditions (n, C), any n → parameters of the chunks that are full now, and with `last` of the rest."""
        if len(condition):
            state.pending.append(condition)
        waiting = torch.cat(state.pending) if state.pending else condition[:0]
        out: list[Tensor] = []
        size = self.dims.chunk
        while len(waiting) >= size or (last and len(waiting)):
            out.append(self._chunk(waiting[:size], state, seed, temperature))
            waiting = waiting[size:]
        state.pending = [waiting] if len(waiting) else []
        return torch.cat(out) if out else self.mean.new_zeros(0, DIMS)

    @torch.inference_mode()
    def trace(self) -> None:
        """Make the chunks in the middle of a stream one call: some 700 operators that each ask for the interpreter again
        take several times their time beside other threads."""
        dims, at = self.dims, self.mean
        layers = (dims.steps, dims.layers, 1)
        wide = at.new_zeros(*layers, dims.heads, dims.left, dims.width // dims.heads)
        example = (
            at.new_zeros(1, dims.chunk, DIMS),
            at.new_zeros(1, dims.chunk, dims.width),
            wide,
            wide.clone(),
            at.new_zeros(*layers, dims.width, dims.kernel - 1),
        )
        call: Any = traced(_FullChunk(self), example)
        for _ in range(3):  # it is slow while it gets to know itself
            call(*example)
        self._traced = [call]

    def _chunk(self, condition: Tensor, state: FlowState, seed: int, temperature: float) -> Tensor:
        x = self._noise(state.position, len(condition), seed, temperature)
        if self._traced and len(condition) == self.dims.chunk and state.position >= self.dims.left:
            x, *caches = self._traced[0](x, condition[None], *(state.full or _stacked(state.caches)))
            state.full = (caches[0], caches[1], caches[2])
            state.position += len(condition)
            return x[0] * self.deviation + self.mean
        if state.full is not None:
            keys, values, tails = state.full
            state.caches = [
                [LayerCache(k, v, t) for k, v, t in zip(*parts, strict=True)]
                for parts in zip(keys, values, tails, strict=True)
            ]
            state.full = None
        for step in range(self.dims.steps):
            t = x.new_full((1,), step / self.dims.steps)
            change, kept = self.velocity(x, condition[None], t, None, state.caches[step])
            state.caches[step] = [*kept]
            x = x + change / self.dims.steps
        state.position += len(condition)
        return x[0] * self.deviation + self.mean

    def _noise(self, first: int, count: int, seed: int, temperature: float) -> Tensor:
        """(1, count, DIMS)"""
        rows = np.stack([noise_at(seed, first + i, DIMS) for i in range(count)])
        return torch.from_numpy(rows).to(self.mean)[None] * temperature


class _FullChunk(nn.Module):
    """A whole chunk after `left` frames: all Euler steps, no size that depends on anything."""

    def __init__(self, model: FlowAcoustic) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, x: Tensor, condition: Tensor, keys: Tensor, values: Tensor, tails: Tensor
    ) -> tuple[Tensor, ...]:
        """x (1, chunk, DIMS), condition (1, chunk, C), caches (steps, layers, 1, …) → x at the end, caches."""
        dims, kept = self.model.dims, list[LayerCache]()
        for step in range(dims.steps):
            t = x.new_full((1,), step / dims.steps)
            caches = [LayerCache(keys[step, i], values[step, i], tails[step, i]) for i in range(dims.layers)]
            change, its = self.model.velocity(x, condition, t, None, caches)
            kept += its
            x = x + change / dims.steps
        shape = (dims.steps, dims.layers)
        stacks = ([c.keys for c in kept], [c.values for c in kept], [c.tail for c in kept])
        return (x, *(torch.stack(s).unflatten(0, shape) for s in stacks))


def _stacked(caches: list[list[LayerCache | None]]) -> tuple[Tensor, Tensor, Tensor]:
    """Caches of all Euler steps and layers, which are full."""
    each = [[layer for layer in step if layer is not None] for step in caches]
    keys, values, tails = (
        torch.stack([torch.stack([getattr(layer, part) for layer in step]) for step in each])
        for part in ("keys", "values", "tail")
    )
    return keys, values, tails


def _places(durations: Sequence[int]) -> Tensor:
    """(T, POSITION): how far into its phone a frame is, how far from its end, and how long that is."""
    rows: list[Tensor] = []
    for frames in durations:
        at = torch.arange(frames, dtype=torch.float32)
        length = at.new_full((frames,), float(frames))
        rows.append(torch.stack([(at + 0.5) / length, at / 10, (length - 1 - at) / 10, length.log() / 2], -1))
    return torch.cat(rows) if rows else torch.zeros(0, POSITION)


def _waves(t: Tensor) -> Tensor:
    """(B,) in 0…1 → (B, 64) sines and cosines."""
    rates = torch.exp(torch.linspace(0, math.log(1000.0), 32))
    angles = t.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)
