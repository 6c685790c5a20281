"""Wan's video autoencoder as a stream: one picture, then four at a time, equal to the whole video at once.

Its convolutions look back in time only. What they remember goes in and out as an argument: sessions share the weights, and
a chunk that is thrown away leaves no trace. Needs the extra `hub` (diffusers).

Source: Wan Team, "Wan: Open and Advanced Large-Scale Video Generative Models" (2025), §4.1.2 (chunks and feature cache).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

CHUNK = 4  # pictures a latent frame, but for the first


@dataclass(frozen=True, slots=True)
class VaeState:
    """What the convolutions of one stream remember, by their order; empty before the first picture."""

    encoder: tuple[Any, ...] = field(default=(), repr=False)
    decoder: tuple[Any, ...] = field(default=(), repr=False)

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (*self.encoder, *self.decoder) if isinstance(t, Tensor))


def _cache(vae: Any, side: str, held: tuple[Any, ...]) -> list[Any]:
    return list(held) if held else [None] * int(vae._cached_conv_counts[side])


@torch.inference_mode()
def encode(vae: Any, state: VaeState, pictures: Tensor) -> tuple[Tensor, VaeState]:
    """(B, 3, T, H, W) in [-1, 1] → (mean latent (B, C, 1, H/8, W/8), the state after).

    T is 1 for a stream's first chunk and `CHUNK` for all others. Raises: ValueError for another T.
    """
    wanted = CHUNK if state.encoder else 1
    if pictures.shape[2] != wanted:
        raise ValueError(f"a chunk of {pictures.shape[2]} pictures: this one takes {wanted}")
    cache = _cache(vae, "encoder", state.encoder)
    hidden = vae.encoder(pictures, feat_cache=cache, feat_idx=[0])
    mean = vae.quant_conv(hidden).chunk(2, 1)[0]
    return mean, VaeState(tuple(cache), state.decoder)


@torch.inference_mode()
def decode(vae: Any, state: VaeState, latent: Tensor) -> tuple[Tensor, VaeState]:
    """(B, C, 1, h, w) → (pictures (B, 3, T, 8h, 8w) in [-1, 1], the state after); T as in `encode`.

    Raises: ValueError for more than one latent frame.
    """
    if latent.shape[2] != 1:
        raise ValueError(f"{latent.shape[2]} latent frames: the stream takes one at a time")
    cache = _cache(vae, "decoder", state.decoder)
    first = {} if state.decoder else {"first_chunk": True}
    out = vae.decoder(vae.post_quant_conv(latent), feat_cache=cache, feat_idx=[0], **first)
    return out.clamp(-1, 1), VaeState(state.encoder, tuple(cache))
