"""`StaticRing` as a cache that transformers' models take unmodified, compiled or not. Needs the `hub` extra."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from .ring_kv import Part
from .rope import ModelRope
from .static_ring import StaticLayer, StaticRing


class StaticModelLayer(StaticLayer, CacheLayerMixin):  # type: ignore[misc]
    """A static layer with transformers' names."""

    is_sliding = False
    is_compileable = True

    def __init__(self, owner: StaticRing) -> None:
        CacheLayerMixin.__init__(self)
        StaticLayer.__init__(self, owner)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.allocate(key_states)
        self.is_initialized = True
        for buffer in (self.keys, self.values):
            torch._dynamo.mark_static_address(buffer)  # pyright: ignore[reportPrivateUsage] - its only name

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.ready:
            self.lazy_initialization(key_states, value_states)
        return self.write(key_states, value_states)

    def get_seq_length(self) -> int:
        return 0  # the mask and the position_ids that are passed say all

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.owner.slots, 0

    def get_max_length(self) -> int:
        return self.owner.slots


class StaticCache(StaticRing, Cache):  # type: ignore[misc]
    """The static ring of a transformers text model."""

    layer_type = StaticModelLayer

    def __init__(
        self, text_model: Any, *, rows: int, sinks: int, frame: tuple[Part, ...], frames: int, **options: Any
    ) -> None:
        n = int(text_model.config.num_hidden_layers)
        StaticRing.__init__(
            self, ModelRope(text_model), n, rows=rows, sinks=sinks, frame=frame, frames=frames, **options
        )
        Cache.__init__(self, layers=self.layers)
        self._kinds = sorted(set(getattr(text_model.config, "layer_types", None) or ["full_attention"]))

    def model_mask(self, mask: Tensor) -> Tensor | dict[str, Tensor]:
        """The mask in the form that the model passes through untouched: one a kind of layer, where it has kinds."""
        return mask if len(self._kinds) == 1 else dict.fromkeys(self._kinds, mask)
