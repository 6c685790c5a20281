"""Wan 2.1 as an endless stream: block-causal attention over a rolling cache of keys, a few denoising steps.

A subclass of diffusers' model that replaces nothing but `forward`'s work: modules, names and checkpoints stay diffusers'
own. Latent frames come in blocks; a block sees itself, the sink (the stream's first frames) and the last frames of the
window. Keys are stored without rotation and rotated when read, by their place in the window: positions never grow, so a
stream has no end. Each denoising step keeps a cache of its own, written while it runs; no extra clean pass is needed.

Needs the extra `hub` (diffusers).

Source: Huang et al., "Self Forcing" (2025), §3; Feng et al., "StreamDiffusionV2" (2025), §4; Xiao et al., "Efficient
Streaming Language Models with Attention Sinks" (2023) for the sink and positions relative to the cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from diffusers.models.transformers.transformer_wan import WanTransformer3DModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .checkpoint import misfit

TextKV = tuple[tuple[Tensor, Tensor], ...]  # per layer: keys and values (1, H, L, D) of the prompt


@dataclass(frozen=True, slots=True)
class Window:
    """What a block may look back on, in latent frames. `capacity` counts the sink and the block itself."""

    capacity: int = 6
    sink: int = 1
    block: int = 1

    def __post_init__(self) -> None:
        if not (self.block >= 1 and self.sink >= 0 and self.capacity >= self.sink + self.block):
            raise ValueError(
                f"window of {self.capacity} frames cannot hold a sink of {self.sink} and a block of {self.block}"
            )


@dataclass(slots=True)
class StepCache:
    """One denoising step's keys and values of one stream. Its size never changes."""

    keys: Tensor  # (layers, capacity, tokens a frame, H, D), not rotated
    values: Tensor  # the same shape
    frames: tuple[
        int, ...
    ] = ()  # absolute latent frames in slots 0, 1, …, not in order once the window rolls

    @property
    def nbytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


def kept(frames: Sequence[int], window: Window) -> tuple[list[int], list[int]]:
    """Slots a new block sees, in order of time, and the slots that it will be written to.

    The sink's frames are never overwritten; of the others the oldest go first.
    """
    order = sorted(range(len(frames)), key=lambda slot: frames[slot])
    free = list(range(len(frames), window.capacity))[: window.block]
    rolling = [slot for slot in order if frames[slot] >= window.sink]
    evicted = rolling[: window.block - len(free)]
    return [slot for slot in order if slot not in evicted], free + evicted


@dataclass(frozen=True, slots=True)
class WanRow:
    """One denoising step of one block of one stream."""

    latent: Tensor  # (C, F, h, w) at this step's noise level
    sigma: float
    cache: StepCache
    text: TextKV
    start: int  # absolute number of the block's first frame


@dataclass(frozen=True, slots=True)
class WanResult:
    """A row's prediction, and what its cache takes over when it is committed."""

    x0: Tensor  # (C, F, h, w)
    keys: Tensor  # (layers, F, tokens a frame, H, D)
    values: Tensor


class CausalWan(WanTransformer3DModel):
    """Diffusers' Wan with explicit caches. Rows of different streams, steps and prompts share a forward."""

    window = Window()

    def text_kv(self, embeddings: Tensor) -> TextKV:
        """Prompt embeddings (1, L, text_dim) → cross-attention's keys and values, once a prompt."""
        context = self.condition_embedder.text_embedder(embeddings)
        pairs: list[tuple[Tensor, Tensor]] = []
        for block in self._layers:
            attention = block.attn2
            heads = (attention.heads, -1)
            keys = attention.norm_k(attention.to_k(context)).unflatten(2, heads).transpose(1, 2)
            pairs.append((keys, attention.to_v(context).unflatten(2, heads).transpose(1, 2)))
        return tuple(pairs)

    @property
    def _layers(self) -> Sequence[Any]:
        return list(self.blocks)

    def init_cache(self, height: int, width: int) -> StepCache:
        """An empty cache for latents of (height, width)."""
        config: Any = self.config
        tokens = (height // config.patch_size[1]) * (width // config.patch_size[2])
        heads, dim = config.num_attention_heads, config.attention_head_dim
        shape = (config.num_layers, self.window.capacity, tokens, heads, dim)
        weight = self.patch_embedding.weight
        return StepCache(weight.new_zeros(shape), weight.new_zeros(shape))

    def _rotations(self, count: int, height: int, width: int) -> tuple[Tensor, Tensor]:
        """RoPE's cosines and sines for `count` frames from position 0: (count·h·w, 1, D/2) each."""
        rope: Any = self.rope
        parts = [rope.t_dim, rope.h_dim, rope.w_dim]
        tables: list[Tensor] = []
        for table, first in ((rope.freqs_cos, 0), (rope.freqs_sin, 1)):
            t, y, x = table.split(parts, 1)
            grid = [
                t[:count].view(count, 1, 1, -1).expand(count, height, width, -1),
                y[:height].view(1, height, 1, -1).expand(count, height, width, -1),
                x[:width].view(1, 1, width, -1).expand(count, height, width, -1),
            ]
            tables.append(torch.cat(grid, -1).reshape(count * height * width, 1, -1)[..., first::2])
        return tables[0], tables[1]

    @torch.inference_mode()
    def denoise(self, rows: Sequence[WanRow]) -> list[WanResult]:
        """Run rows whose caches hold equally many frames together. Changes no cache.

        Raises: ValueError for rows that cannot share a forward.
        """
        shapes = {(tuple(r.latent.shape), len(kept(r.cache.frames, self.window)[0])) for r in rows}
        if len(shapes) != 1:
            raise ValueError(f"rows of one forward need equal shapes and equally full caches, got {shapes}")
        latent = torch.stack([r.latent for r in rows])  # (B, C, F, h, w)
        sigma = torch.tensor([r.sigma for r in rows], device=latent.device, dtype=torch.float32)
        batch, _, frames, height, width = latent.shape
        pt, ph, pw = self.config.patch_size  # pyright: ignore[reportAttributeAccessIssue]
        gh, gw = height // ph, width // pw
        tokens = gh * gw
        hidden = self.patch_embedding(latent).flatten(2).transpose(1, 2)  # (B, F·T, D)
        embedder: Any = self.condition_embedder
        time = embedder.time_embedder(embedder.timesteps_proj(sigma * 1000).to(hidden.dtype))
        modulation = embedder.time_proj(embedder.act_fn(time)).unflatten(1, (6, -1))  # (B, 6, D)
        seen = [kept(r.cache.frames, self.window)[0] for r in rows]
        past = len(seen[0])
        rotations = self._rotations(past + frames, gh, gw)
        queries_at = tuple(table[past * tokens :] for table in rotations)
        new_keys: list[Tensor] = []
        new_values: list[Tensor] = []
        for layer, block in enumerate(self._layers):
            shift, scale, gate, shift2, scale2, gate2 = (block.scale_shift_table + modulation.float()).chunk(
                6, 1
            )
            attention = block.attn1
            x = (block.norm1(hidden.float()) * (1 + scale) + shift).type_as(hidden)
            heads = (attention.heads, -1)
            queries = _rotated(attention.norm_q(attention.to_q(x)).unflatten(2, heads), queries_at)
            keys = attention.norm_k(attention.to_k(x)).unflatten(2, heads)  # (B, F·T, H, D)
            values = attention.to_v(x).unflatten(2, heads)
            new_keys.append(keys)
            new_values.append(values)
            if past:
                before = torch.stack(
                    [r.cache.keys[layer, s].flatten(0, 1) for r, s in zip(rows, seen, strict=True)]
                )
                keys = torch.cat([before, keys], 1)
                before = torch.stack(
                    [r.cache.values[layer, s].flatten(0, 1) for r, s in zip(rows, seen, strict=True)]
                )
                values = torch.cat([before, values], 1)
            mixed = _attend(queries, _rotated(keys, rotations), values)
            hidden = (hidden.float() + attention.to_out[0](mixed) * gate).type_as(hidden)

            cross = block.attn2
            x = block.norm2(hidden.float()).type_as(hidden)
            queries = cross.norm_q(cross.to_q(x)).unflatten(2, heads).transpose(1, 2)
            text = [torch.cat([r.text[layer][i] for r in rows]) for i in (0, 1)]
            mixed = F.scaled_dot_product_attention(queries, text[0], text[1]).transpose(1, 2).flatten(2)
            hidden = hidden + cross.to_out[0](mixed)

            x = (block.norm3(hidden.float()) * (1 + scale2) + shift2).type_as(hidden)
            hidden = (hidden.float() + block.ffn(x).float() * gate2).type_as(hidden)
        shift, scale = (self.scale_shift_table + time.unsqueeze(1)).chunk(2, 1)
        hidden = (self.norm_out(hidden.float()) * (1 + scale) + shift).type_as(hidden)
        out = self.proj_out(hidden).view(batch, frames // pt, gh, gw, pt, ph, pw, -1)
        velocity = out.permute(0, 7, 1, 4, 2, 5, 3, 6).flatten(6, 7).flatten(4, 5).flatten(2, 3)
        x0 = (
            latent - sigma.to(latent.dtype)[:, None, None, None, None] * velocity
        )  # flow matching: x = x0 + σ v
        every_key = torch.stack(new_keys, 1).unflatten(2, (frames, tokens))  # (B, layers, F, T, H, D)
        every_value = torch.stack(new_values, 1).unflatten(2, (frames, tokens))
        return [WanResult(x0[i].clone(), every_key[i].clone(), every_value[i].clone()) for i in range(batch)]

    @torch.inference_mode()
    def commit(self, row: WanRow, result: WanResult) -> None:
        """Take a row's keys and values over into its cache; the oldest frames but the sink give way."""
        cache, count = row.cache, result.keys.shape[1]
        _, slots = kept(cache.frames, self.window)
        frames = [*cache.frames, *[-1] * (max(slots) + 1 - len(cache.frames))]
        for i, slot in enumerate(slots[:count]):
            cache.keys[:, slot] = result.keys[:, i]
            cache.values[:, slot] = result.values[:, i]
            frames[slot] = row.start + i
        cache.frames = tuple(frames)


def _rotated(x: Tensor, at: Sequence[Tensor]) -> Tensor:
    """Rotate pairs of (B, N, H, D) by angles (N, 1, D/2)."""
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = at
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).type_as(x)


def _attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """(B, N, H, D), (B, M, H, D) twice → (B, N, H·D)."""
    mixed = F.scaled_dot_product_attention(
        queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
    )
    return mixed.transpose(1, 2).flatten(2).type_as(queries)


# ---------------------------------------------------------------- noise levels


def warped(steps: Sequence[float], shift: float = 5.0) -> tuple[float, ...]:
    """Timesteps 1000…0 → noise levels σ' = kσ / (1 + (k − 1) σ), as Self-Forcing's were trained."""
    return tuple(shift * s / (1 + (shift - 1) * s) for s in (t / 1000 for t in steps))


# ---------------------------------------------------------------- checkpoints

_PREFIXES = ("generator_ema.", "generator.", "_fsdp_wrapped_module.", "model.")


def diffusers_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Self-Forcing's, StreamDiffusionV2's or Wan's own names → diffusers'. The averaged weights win over the others."""
    if any(k.startswith("generator_ema.") for k in state):
        state = {k: v for k, v in state.items() if k.startswith("generator_ema.")}
    plain: dict[str, Tensor] = {}
    for key, value in state.items():
        name = key.replace("_fsdp_wrapped_module.", "")
        while (prefix := next((p for p in _PREFIXES if name.startswith(p)), None)) is not None:
            name = name.removeprefix(prefix)
        plain[name] = value
    if any(k.startswith("condition_embedder.") for k in plain):
        return plain  # diffusers' names already
    return dict(convert_wan_transformer_to_diffusers(plain))


def load_causal_wan(
    files: Path | Sequence[Path], config: Mapping[str, Any], window: Window | None = None
) -> CausalWan:
    """The model of a config with the weights of safetensors files: every tensor there, none left over.

    Raises: ValueError for a file that is broken or holds another model.
    """
    paths = [files] if isinstance(files, Path) else list(files)
    read: dict[str, Tensor] = {}
    path = paths[0]
    try:
        for path in paths:
            read |= load_file(path)
        state = diffusers_keys(read)
    except (OSError, SafetensorError) as e:
        raise ValueError(f"{path} is no readable safetensors file: {e}") from e
    with torch.device("meta"):
        model = CausalWan(**config)
    if wrong := misfit(model, state):
        raise ValueError(f"{path} does not hold this Wan: {wrong}")
    model = CausalWan(**config)
    model.load_state_dict(state, strict=True)
    if window is not None:
        model.window = window
    return model.eval().requires_grad_(False)


WAN_1_3B: Mapping[str, Any] = {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}
