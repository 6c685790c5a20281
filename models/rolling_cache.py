"""`RollingKv` as a cache that transformers' models take unmodified. Needs the `hub` extra.

    cache = RollingCache(language_model, Budget(tokens=4096, text=512))
    language_model(inputs_embeds=x, position_ids=cache.reserve("frame", (1, 8, 8)), cache=cache)

Always pass position_ids: the models' own counting (and Qwen's `rope_deltas`) knows nothing of eviction. Not for
`generate()`, and not for models with linear-attention layers: their state cannot forget a picture.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from .ring_kv import RingLayer
from .rolling_kv import Branch, Budget, Evicted, RollingKv
from .rope import ModelRope


class ModelLayer(RingLayer, CacheLayerMixin):  # type: ignore[misc]
    """A ring layer with transformers' names."""

    is_sliding = False  # windows of sliding layers are cut by the mask: indices are positions here
    is_compileable = False

    def __init__(self, capacity: int) -> None:
        CacheLayerMixin.__init__(self)
        RingLayer.__init__(self, capacity)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.allocate(key_states, value_states)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        return self.append(key_states, value_states)

    def get_seq_length(self) -> int:
        return self.w1 - self.lo

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.w1 - self.lo + query_length, 0

    def get_max_length(self) -> int:
        return -1


class ModelBranch(Branch, Cache):  # type: ignore[misc]
    """An answer's branch for a transformers model."""

    layer_type = ModelLayer

    def __init__(self, axes: int, layers: list[Any], position: int) -> None:
        Branch.__init__(self, axes, layers, position)
        Cache.__init__(self, layers=layers)


class RollingCache(RollingKv, Cache):  # type: ignore[misc]
    """The rolling cache of a transformers text model."""

    layer_type = ModelLayer
    branch_type = ModelBranch

    def __init__(self, text_model: Any, budget: Budget, on_evict: Evicted | None = None) -> None:
        n = int(text_model.config.num_hidden_layers)
        layers: list[Any] = [ModelLayer(budget.capacity) for _ in range(n)]
        RollingKv.__init__(self, ModelRope(text_model), layers, budget, on_evict)
        Cache.__init__(self, layers=layers)


def text_model_of(model: Any) -> Any:
    """The decoder inside a vision-language model. Raises: ValueError when it is none of the known kinds."""
    inner = getattr(model, "model", model)
    for name in ("language_model", "text_model"):
        if hasattr(inner, name):
            return getattr(inner, name)
    if hasattr(inner, "layers") and hasattr(inner, "rotary_emb"):
        return inner
    raise ValueError(f"{type(model).__name__} has no RoPE text model that a rolling cache could serve")
