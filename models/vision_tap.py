"""How much each visual token matters: the attention that it gets in the vision tower's last layer.

HiRED reads it from the CLS token; the towers here have none, so the mean query of all patches stands for it.
Source: HiRED (2408.10945), section 4.2.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


class VisionTap:
    """Records queries and keys of a tower's last layer while it runs: `with tap: …`, then `scores`."""

    def __init__(self, core: Any, vision: Any, kind: str) -> None:
        self._qwen, self._windows = kind.startswith("qwen"), kind == "qwen2_5_vl"
        self._vision = vision
        self._found: dict[str, Tensor] = {}
        self._handles: list[Any] = []
        if self._qwen:
            attention = core.visual.blocks[-1].attn
            self._modules = {"qkv": attention.qkv}
            self._heads = int(attention.num_heads)
            return
        tower = getattr(core, "vision_tower", None) or core.vision_model
        tower = getattr(tower, "vision_model", tower)
        attention = tower.encoder.layers[-1].self_attn
        self._modules = {"q": attention.q_proj, "k": attention.k_proj}
        self._heads = int(attention.num_heads)

    def __enter__(self) -> VisionTap:
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_hook(self._keep(name)))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _keep(self, name: str) -> Any:
        def hook(module: object, inputs: object, output: Tensor) -> None:
            self._found[name] = output.detach()

        return hook

    def scores(self, pictures: int, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """(B, rows·columns): attention from the mean query, heads averaged, over the visual tokens in order."""
        if self._qwen:
            q, k, _ = self._found["qkv"].float().chunk(3, -1)  # (B·n, D)
        else:
            q, k = (self._found[x].float() for x in ("q", "k"))  # (B, n, D)
        q, k = (x.reshape(pictures, -1, self._heads, x.shape[-1] // self._heads) for x in (q, k))
        logits = torch.einsum("bhd,bnhd->bhn", q.mean(1), k) * q.shape[-1] ** -0.5
        weights = logits.softmax(-1).mean(1)  # (B, patches)
        self._found.clear()
        tokens = grid[0] * grid[1]
        if self._qwen:  # patches of a token lie together
            merged = weights.view(pictures, tokens, -1).sum(-1)
            return self._in_order(merged, pictures, size).cpu()
        side = (size[0] // int(self._vision.patch_size), size[1] // int(self._vision.patch_size))
        return F.adaptive_avg_pool2d(weights.view(pictures, 1, *side), grid).flatten(1).cpu()

    def _in_order(self, merged: Tensor, pictures: int, size: tuple[int, int]) -> Tensor:
        """Undo the order of Qwen2.5's windows."""
        if not self._windows:
            return merged
        from transformers.vision_utils import get_vision_window_index

        v = self._vision
        thw = torch.tensor([[1, size[0] // v.patch_size, size[1] // v.patch_size]] * pictures)
        index, _ = get_vision_window_index(thw, v.spatial_merge_size, v.window_size, v.patch_size)
        out = torch.empty_like(merged).flatten()
        out[index] = merged.flatten()
        return out.view_as(merged)
