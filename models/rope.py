"""Rotary position embedding, and turning cached keys from one position to another.

A key at position p is R(p)·k. R(a)·R(b) = R(a+b), so a cached key moves by `delta` positions with one more
rotation, whatever it was before: that is all a rolling cache needs.

Source: Su et al., RoFormer (2104.09864), eq. 34; StreamingLLM (2309.17453), section 3.2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

Turn: TypeAlias = Callable[[Tensor, int], Tensor]
"""(keys (B, H, T, D), layer) → the same keys, moved; same dtype, new memory."""


class Rotator(Protocol):
    """Turns cached keys. `axes`: 1, or 3 where positions are (time, height, width)."""

    axes: int

    def turn_by(self, delta: int | Tensor) -> Turn:
        """Moves by `delta` positions on every axis: one for all, or one a token (T,), or one a row (B, T)."""
        ...


def half_turn(x: Tensor) -> Tensor:
    """(..., D): the pairs (i, i + D/2) turned by 90°."""
    a, b = x.chunk(2, -1)
    return torch.cat((-b, a), -1)


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (..., T, D) with cos, sin broadcast to it."""
    return x * cos + half_turn(x) * sin


class Rope:
    """Plain one-axis RoPE over the whole head."""

    axes = 1

    def __init__(self, head_dim: int, theta: float = 10_000.0) -> None:
        self.rates = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)  # (D/2,)

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(..., T) → cos and sin (..., T, D)."""
        angle = positions[..., None].float() * self.rates.to(positions.device)
        both = torch.cat((angle, angle), -1)
        return both.cos(), both.sin()

    def turn_by(self, delta: int | Tensor) -> Turn:
        steps = _steps(delta)
        cos, sin = self.angles(steps[:, None])  # (B or 1, 1, T, D)

        def move(keys: Tensor, layer: int) -> Tensor:
            return turn(keys.float(), cos.to(keys.device), sin.to(keys.device)).to(keys.dtype)

        return move


class ModelRope:
    """The rotation of a transformers text model, by the model's own rotary module and its own apply function.

    M-RoPE needs nothing special: a segment that leaves shifts time, height and width of all that follow alike.
    Gemma3 has another rope for each kind of layer.
    """

    def __init__(self, text_model: Any) -> None:
        self._rotary = text_model.rotary_emb
        attention = text_model.layers[0].self_attn
        self._apply = sys.modules[type(attention).__module__].apply_rotary_pos_emb
        self._kinds: list[str] | None = (
            list(text_model.config.layer_types) if hasattr(self._rotary, "layer_types") else None
        )
        parameters = getattr(text_model.config, "rope_parameters", None) or {}
        self.axes = 3 if self._kinds is None and parameters.get("mrope_section") else 1

    def _angles(self, steps: Tensor, like: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """steps (B or 1, T) → cos, sin (B or 1, T, D)."""
        at = steps.to(like.device)
        if self.axes == 3:
            at = at.expand(3, *at.shape)
        if self._kinds is None:
            cos, sin = self._rotary(like, at)
            scale = getattr(self._rotary, "attention_scaling", 1.0)
        else:
            kind = self._kinds[layer]
            cos, sin = self._rotary(like, at, kind)
            scale = getattr(self._rotary, f"{kind}_attention_scaling", 1.0)
        return cos / scale, sin / scale  # yarn and longrope scale attention here: cached keys have it already

    def turn_by(self, delta: int | Tensor) -> Turn:
        steps = _steps(delta)
        made: dict[str, tuple[Tensor, Tensor]] = {}  # of each kind of layer

        def move(keys: Tensor, layer: int) -> Tensor:
            if not keys.shape[2]:
                return keys.clone()
            wide = keys.float()
            kind = self._kinds[layer] if self._kinds else ""
            if kind not in made:
                made[kind] = self._angles(steps, wide, layer)
            cos, sin = made[kind]
            turned = cos.shape[-1]  # partial rotary: the rest of the head stays
            moved = self._apply(wide[..., :turned], wide[..., :turned], cos, sin)[1]
            return torch.cat((moved, wide[..., turned:]), -1).to(keys.dtype)

        return move


def _steps(delta: int | Tensor) -> Tensor:
    """→ (B or 1, T or 1)."""
    if isinstance(delta, int):
        return torch.tensor([[delta]])
    return delta if delta.ndim == 2 else delta[None]
