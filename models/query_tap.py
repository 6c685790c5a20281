"""What a question asks a model's layers for: the query vectors that choose which memories to fetch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class QueryTap:
    """Records the mean query of each layer while a question runs: `with QueryTap(text_model) as tap: …`."""

    def __init__(self, text_model: Any) -> None:
        self._layers = [layer.self_attn for layer in text_model.layers]
        self._found: list[Tensor] = []
        self._handles: list[Any] = []

    def __enter__(self) -> QueryTap:
        for attention in self._layers:
            module = getattr(attention, "q_norm", None) or attention.q_proj
            self._handles.append(module.register_forward_hook(self._hook(attention)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _hook(self, attention: Any) -> Any:
        def hook(module: object, inputs: object, output: Tensor) -> None:
            # (B, T, H·D), (B, T, H, D) or (B, H, T, D): before rotation in all families
            dim = int(attention.head_dim)
            x = output.detach().float()
            if x.ndim == 4 and attention.q_proj.out_features // dim == x.shape[1] != x.shape[2]:
                x = x.transpose(1, 2)
            self._found.append(x.reshape(-1, attention.q_proj.out_features // dim, dim).mean(0))

        return hook

    @property
    def query(self) -> Tensor:
        """(layers, query heads, dim). Raises: ValueError when no forward pass ran."""
        if len(self._found) < len(self._layers):
            raise ValueError("no forward pass ran inside this tap")
        return torch.stack(self._found[-len(self._layers) :])
