"""Blocks of keys and values in a quarter of float32: 8 bits with a scale and an offset.

Keys are scaled per channel, because a few channels of them are always large; values per token.
Source: KIVI (2402.02750), section 3.1, at 8 bits instead of 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def block_bytes(layers: int, heads: int, tokens: int, dim: int) -> int:
    """Size of one packed block."""
    return 2 * layers * heads * tokens * dim + 4 * layers * heads * (tokens + dim)


@dataclass(frozen=True, slots=True)
class Packed:
    """A block (L, 2, B=1, H, T, D) as bytes."""

    data: NDArray[np.uint8]
    shape: tuple[int, int, int, int]  # L, H, T, D


def pack(block: Tensor) -> Packed:
    """(L, 2, 1, H, T, D) of any float dtype → bytes. Raises: ValueError on another shape."""
    if block.ndim != 6 or block.shape[1] != 2 or block.shape[2] != 1:
        raise ValueError(f"a block of shape {tuple(block.shape)}; it is (layers, 2, 1, heads, tokens, dim)")
    layers, _, _, heads, tokens, dim = block.shape
    parts: list[NDArray[np.uint8]] = []
    for which, axis in ((0, 2), (1, 3)):
        x = block[:, which, 0].float().cpu()  # (L, H, T, D)
        low = x.amin(axis, keepdim=True).half()
        scale = ((x.amax(axis, keepdim=True) - low.float()) / 255).clamp_min(1e-7).half()
        codes = ((x - low.float()) / scale.float()).round().clamp(0, 255).to(torch.uint8)
        parts += [
            codes.numpy().ravel(),
            *(s.contiguous().numpy().view(np.uint8).ravel() for s in (scale, low)),
        ]
    return Packed(np.concatenate(parts), (layers, heads, tokens, dim))


def unpack(packed: Packed, dtype: torch.dtype = torch.float32) -> Tensor:
    """→ (L, 2, 1, H, T, D)."""
    layers, heads, tokens, dim = packed.shape
    at = 0

    def take(shape: tuple[int, ...], halves: bool) -> Tensor:
        nonlocal at
        size = int(np.prod(shape)) * (2 if halves else 1)
        raw = torch.from_numpy(packed.data[at : at + size].copy())
        at += size
        return (raw.view(torch.float16) if halves else raw).view(shape).float()

    halves: list[Tensor] = []
    for scales in ((layers, heads, 1, dim), (layers, heads, tokens, 1)):
        codes = take((layers, heads, tokens, dim), False)
        scale, low = take(scales, True), take(scales, True)
        halves.append((codes * scale + low).to(dtype))
    return torch.stack(halves, 1)[:, :, None]
