"""Causal Wan by blocks of latents, and its autoencoder by chunks, beside the whole video at once.

For tests and measurements. Needs the extra `hub` (diffusers).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, WanTransformer3DModel
from penstock.models import wan_vae
from penstock.models.causal_wan import CausalWan, StepCache, TextKV, WanResult, WanRow, Window, kept, warped
from torch import Tensor

SMALL: dict[str, Any] = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 64,
    "num_layers": 2,
}


def small(window: Window, seed: int = 0) -> CausalWan:
    """Random weights."""
    torch.manual_seed(seed)
    model = CausalWan(**SMALL)
    model.window = window
    return model.eval().requires_grad_(False)


class BlockCausal:
    """Diffusers' attention with a mask: what it computes is its own, from the whole video at once."""

    def __init__(self, mask: Tensor) -> None:
        self._inner, self._mask = WanAttnProcessor(), mask

    def __call__(
        self, attn: Any, hidden: Any, encoder: Any = None, mask: Any = None, rotary: Any = None
    ) -> Any:
        return self._inner(attn, hidden, encoder, self._mask, rotary)


def streamed_and_whole(block: int, frames: int = 6, sigma: float = 0.7) -> tuple[Tensor, Tensor]:
    """x0 (C, T, h, w) of one step: from the rolling cache, and of diffusers' model under a block-causal mask."""
    model = small(Window(capacity=frames, sink=0, block=block))
    embeddings = torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(5))
    video = torch.randn(4, frames, 8, 12, generator=torch.Generator().manual_seed(6))
    cache, text = model.init_cache(8, 12), model.text_kv(embeddings)
    streamed: list[Tensor] = []
    for start in range(0, frames, block):
        row = WanRow(video[:, start : start + block], sigma, cache, text, start)
        result = model.denoise([row])[0]
        model.commit(row, result)
        streamed.append(result.x0)
    whole: Any = WanTransformer3DModel(**SMALL).eval()
    whole.load_state_dict(model.state_dict())
    number = torch.arange(frames).repeat_interleave(4 * 6) // block
    mask = number[:, None] >= number[None, :]
    for layer in whole.blocks:
        layer.attn1.set_processor(BlockCausal(mask[None, None]))
    with torch.inference_mode():
        velocity = whole(video[None], torch.tensor([sigma * 1000]), embeddings).sample[0]
    return torch.cat(streamed, 1), video - sigma * velocity


def small_vae() -> Any:
    """Random weights."""
    torch.manual_seed(0)
    return AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()


def vae_streamed_and_whole(vae: Any, sessions: int = 2) -> list[tuple[Tensor, Tensor]]:
    """Latents and pictures of interleaved sessions: by chunks, and of each whole video."""
    videos = [
        torch.rand(1, 3, 9, 32, 32, generator=torch.Generator().manual_seed(i)) * 2 - 1
        for i in range(sessions)
    ]
    with torch.inference_mode():
        latents = [vae.encode(v).latent_dist.mode() for v in videos]
        decoded = [vae.decode(z).sample for z in latents]
    states = [wan_vae.VaeState() for _ in videos]
    z: list[list[Tensor]] = [[] for _ in videos]
    y: list[list[Tensor]] = [[] for _ in videos]
    for start, end in ((0, 1), (1, 5), (5, 9)):
        for i, video in enumerate(videos):
            mean, states[i] = wan_vae.encode(vae, states[i], video[:, :, start:end])
            pictures, states[i] = wan_vae.decode(vae, states[i], mean)
            z[i].append(mean)
            y[i].append(pictures)
    streamed = [torch.cat(part, 2) for part in (*z, *y)]
    return list(zip(streamed, [*latents, *decoded], strict=True))


@dataclass(slots=True)
class WanFlight:
    """One block on its way through the steps."""

    tag: Any
    start: int
    step: int
    latent: Tensor  # (C, F, h, w) at the step's noise level


@dataclass(slots=True)
class WanState:
    """One stream: a cache for each step. Its size never changes."""

    sigmas: tuple[float, ...]
    noise: torch.Generator
    text: TextKV
    caches: list[StepCache]
    flights: list[WanFlight] = field(default_factory=list[WanFlight])  # the oldest first
    frames: int = 0  # latent frames that have entered


class WanStream:
    """One row per block on its way; the product's own way, from pictures to pictures, is `WanVideo`."""

    def __init__(self, model: CausalWan, sigmas: Sequence[float] = warped((750, 250))) -> None:
        self.model = model
        self.sigmas = tuple(sigmas)

    def init_state(self, height: int, width: int, text: TextKV, seed: int = 0) -> WanState:
        """For latents of (height, width)."""
        caches = [self.model.init_cache(height, width) for _ in self.sigmas]
        return WanState(self.sigmas, torch.Generator().manual_seed(seed), text, caches)

    def switch(self, state: WanState, text: TextKV, *, reset: bool = False) -> None:
        """Another prompt from the next row on: the cache is kept, or forgotten."""
        state.text = text
        if reset:
            for cache in state.caches:
                cache.frames = ()

    def _noise(self, state: WanState, like: Tensor) -> Tensor:
        # drawn on the CPU: the same seed gives the same video on every device
        return torch.randn(like.shape, generator=state.noise).to(like)

    def enter(self, state: WanState, latent: Tensor, tag: Any = None) -> None:
        """A new block (C, F, h, w) of clean latents begins its way."""
        first = state.sigmas[0]
        noisy = (1 - first) * latent + first * self._noise(state, latent)
        state.flights.append(WanFlight(tag, state.frames, 0, noisy))
        state.frames += latent.shape[1]

    def rows(self, state: WanState) -> list[WanRow]:
        """The next step of each block on its way, the oldest first. Changes nothing."""
        return [
            WanRow(f.latent, state.sigmas[f.step], state.caches[f.step], state.text, f.start)
            for f in state.flights
        ]

    def forward(self, rows: Sequence[WanRow]) -> list[WanResult]:
        """Rows of any streams; those whose caches are equally full run together. Changes nothing."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for i, row in enumerate(rows):
            full = len(kept(row.cache.frames, self.model.window)[0])
            groups.setdefault((tuple(row.latent.shape), full), []).append(i)
        results: dict[int, WanResult] = {}
        for members in groups.values():
            results.update(zip(members, self.model.denoise([rows[i] for i in members]), strict=True))
        return [results[i] for i in range(len(rows))]

    def commit(
        self, state: WanState, rows: Sequence[WanRow], results: Sequence[WanResult]
    ) -> list[tuple[Any, Tensor]]:
        """Take over results; what is finished, as (tag, clean latents)."""
        going: list[WanFlight] = []
        done: list[tuple[Any, Tensor]] = []
        for flight, row, result in zip(state.flights, rows, results, strict=True):
            self.model.commit(row, result)
            if flight.step + 1 == len(state.sigmas):
                done.append((flight.tag, result.x0))
                continue
            sigma = state.sigmas[flight.step + 1]
            latent = (1 - sigma) * result.x0 + sigma * self._noise(state, result.x0)
            going.append(WanFlight(flight.tag, flight.start, flight.step + 1, latent))
        state.flights = going
        return done
