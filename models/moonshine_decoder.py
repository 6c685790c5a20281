"""The decoder of Moonshine streaming over rows of many streams, with keys and values outside: what `text_writer` needs.

The weights are the modules of transformers. A row's result is what transformers' decoder gives for it alone.

Source: Moonshine v2, arXiv 2602.12241; rotary positions over part of a head: arXiv 2104.09864.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .attention_kv import KvBuffer
from .causal_whisper import TextRow, packed_text


class MoonshineDecoder:
    """Holds the weights and no stream."""

    pad = False  # stack streams' buffers as on a GPU, wherever it runs

    def __init__(self, model: Any, window: int) -> None:
        """model: `MoonshineStreamingForConditionalGeneration`. window: most frames of audio."""
        from transformers.models.moonshine_streaming import modeling_moonshine_streaming

        self._rotate: Any = modeling_moonshine_streaming.apply_rotary_pos_emb
        self._net: Any = model.model.decoder
        self._out: Any = model.proj_out
        self._layers: Sequence[Any] = self._net.layers
        self._window = window
        self._heads: int = self._net.config.num_key_value_heads
        self._width: int = self._layers[0].self_attn.head_dim

    @property
    def like(self) -> Tensor:
        """Has the dtype and device of a stream's tensors."""
        return self._out.weight

    def _buffers(self, capacity: int) -> list[KvBuffer]:
        return [KvBuffer.empty(self._heads, capacity, self._width, self.like) for _ in self._layers]

    def start(self, capacity: int) -> list[KvBuffer]:
        """Empty buffers for `capacity` tokens, one a layer."""
        return self._buffers(capacity)

    def ears(self) -> list[KvBuffer]:
        """Empty buffers for the keys and values of a window's audio, one a layer."""
        return self._buffers(self._window)

    def hear(self, frames: Sequence[Tensor], caches: Sequence[list[KvBuffer]], ats: Sequence[int]) -> None:
        """Write the keys and values of each stream's new frames (n, D) at their place in its window."""
        placed = [f + self._net.pos_emb.weight[at : at + len(f)] for f, at in zip(frames, ats, strict=True)]
        x = self._net.proj(torch.cat(placed))  # (N, D)
        counts = [len(f) for f in frames]
        for index, layer in enumerate(self._layers):
            attention = layer.encoder_attn
            new = zip(
                *(self._split(p(x)).split(counts, 1) for p in (attention.k_proj, attention.v_proj)),
                strict=True,
            )
            for (k, v), cache, at in zip(new, caches, ats, strict=True):
                cache[index].put(k, v, at)

    def step(self, rows: Sequence[TextRow], *, align: bool = False) -> Tensor:
        """All rows' tokens in one forward → hidden states (N, D), row after row. Writes `past` beyond `start`.

        With `align`, each row's `attention` gets the cross-attention of the upper half of the layers.
        """
        ids, places, text, audio = packed_text(rows, self.like.device, self.pad)
        x = self._net.embed_tokens(ids)  # (N, D)
        cos, sin = self._net.rotary_emb(x, places[None])
        for index, layer in enumerate(self._layers):
            own, other = layer.self_attn, layer.encoder_attn
            h = layer.input_layernorm(x)
            q, k, v = (self._split(p(h)) for p in (own.q_proj, own.k_proj, own.v_proj))
            q, k = (y[0] for y in self._rotate(q[None], k[None], cos, sin))  # (H, N, Dh)
            pasts = [row.past[index] for row in rows]
            text.put(pasts, k, v)
            x = x + own.o_proj(text.attend(q, pasts)[0])
            q = self._split(other.q_proj(layer.post_attention_layernorm(x)))
            aligned = align and index >= len(self._layers) // 2
            y, spread = audio.attend(q, [row.audio[index] for row in rows], aligned)
            for row, one in zip(rows, spread, strict=False):
                row.attention.append(one)
            x = x + other.o_proj(y)
            x = x + layer.mlp(layer.final_layernorm(x))
        return self._net.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(R, D) → (R, V), float32."""
        return self._out(hidden).float()

    def _split(self, x: Tensor) -> Tensor:
        """(n, H·Dh) → (H, n, Dh)."""
        return x.unflatten(-1, (-1, self._width)).transpose(0, 1)
