"""Low-rank adapters on attention: W + (A·B)ᵀ·α/r. Names and layout as in the published causal checkpoints.

Source: LoRA, arXiv 2106.09685; CarelessWhisper, arXiv 2508.12301, section 3.1 (query, key, value and out of the
encoder's self-attention and of the decoder's self- and cross-attention; α = r).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from .attention_kv import Attention

_LAYERS = ("query", "key", "value", "out")
_A, _B, _BASE = ".lora_layer.lora_A", ".lora_layer.lora_B", ".base_layer."


class _Adapter(nn.Module):
    def __init__(self, size_in: int, size_out: int, rank: int) -> None:
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(size_in, rank))
        self.lora_B = nn.Parameter(torch.zeros(rank, size_out))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))


class LoraLinear(nn.Module):
    """A frozen linear layer and its adapter, which begins as nothing."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_layer = _Adapter(base.in_features, base.out_features, rank)

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + x @ self.lora_layer.lora_A @ self.lora_layer.lora_B


def adapt(model: nn.Module, rank: int) -> list[nn.Parameter]:
    """Freeze `model` and put an adapter on every attention. Returns what is to be trained."""
    model.requires_grad_(False)
    trained: list[nn.Parameter] = []
    for attention in [m for m in model.modules() if isinstance(m, Attention)]:
        for name in _LAYERS:
            layer = LoraLinear(getattr(attention, name), rank)
            setattr(attention, name, layer)
            trained.extend(layer.lora_layer.parameters())
    return trained


def merge(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with adapters → one without, W += (A·B)ᵀ: α = r.

    Raises: ValueError, naming the layer, where an adapter lacks its other half or its layer.
    """
    out = {name.replace(_BASE, "."): value for name, value in state.items() if ".lora_layer." not in name}
    for name, a in state.items():
        if not name.endswith(_A):
            continue
        layer = name.removesuffix(_A)
        b, weight = state.get(layer + _B), out.get(f"{layer}.weight")
        if b is None or weight is None:
            raise ValueError(
                f"the checkpoint has an adapter for {layer!r} but not its {'B' if b is None else 'weight'}"
            )
        if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or (b.shape[1], a.shape[0]) != weight.shape:
            raise ValueError(
                f"the adapter of {layer!r} has shapes {tuple(a.shape)} and {tuple(b.shape)}, "
                f"which do not fit a weight of {tuple(weight.shape)}"
            )
        out[f"{layer}.weight"] = (weight.float() + (a.float() @ b.float()).T).to(weight.dtype)
    return out
