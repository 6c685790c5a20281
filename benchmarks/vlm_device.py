"""Qwen2.5-VL's true shapes with random weights on a device: pictures a second by window and by sessions."""

from __future__ import annotations

import statistics
import time
from typing import Any

import torch
from penstock.models.packed import Packed, Run, install
from penstock.models.retrieval_store import RetrievalStore
from penstock.models.ring_kv import Part
from penstock.models.rolling_cache import RollingCache
from penstock.models.rolling_kv import Budget
from penstock.models.static_cache import StaticCache
from report import line, note

SHAPES: dict[str, dict[str, Any]] = {
    "3B": {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2, "section": [16, 24, 24]},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "section": [16, 24, 24]},
}  # fmt: skip
TINY: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "section": [2, 3, 3]},
}  # fmt: skip
GRID: tuple[Part, ...] = ((1, 8, 8),)  # 64 tokens a picture
TOKENS, SINKS = 64, 16


def build(shape: dict[str, Any], device: str, dtype: torch.dtype) -> Any:
    """The text model alone: the window's cost is its."""
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel

    shape = dict(shape)
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": shape.pop("section")}
    config = Qwen2_5_VLTextConfig(
        vocab_size=1024, max_position_embeddings=65536, rope_parameters=rope, **shape
    )
    config._attn_implementation = "sdpa"
    with torch.device(device):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            return Qwen2_5_VLTextModel(config).eval().requires_grad_(False)
        finally:
            torch.set_default_dtype(before)


def sync(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def rolling(name: str, model: Any, device: str, dtype: torch.dtype, window: int, frames: int) -> None:
    """One session: warm the window up, then time pictures."""
    width = model.config.hidden_size
    cache = RollingCache(model, Budget(window, text=64))
    x = torch.randn(1, TOKENS, width, device=device, dtype=dtype)

    def step(parts: tuple[Part, ...], kind: Any, tokens: int) -> None:
        positions = cache.reserve(kind, *parts).to(device)
        model(inputs_embeds=x[:, :tokens], position_ids=positions, cache=cache, use_cache=True)

    step((SINKS,), "pinned", SINKS)
    cache.pin()
    while cache.visible + TOKENS <= window:
        step(GRID, "frame", TOKENS)
    spent: list[float] = []
    for _ in range(frames):
        sync(device)
        t = time.perf_counter()
        step(GRID, "frame", TOKENS)
        sync(device)
        spent.append(time.perf_counter() - t)
    tenth = max(1, frames // 10)
    memory = torch.cuda.max_memory_allocated() / 1e9 if device.startswith("cuda") else 0.0
    line(device_block="rolling", model=name, window=window, tokens_per_picture=TOKENS, frames=frames,
         fps=round(1 / statistics.median(spent), 1), times_8_fps_of_an_h100=round(1 / statistics.median(spent) / 8, 1),
         ms_p95=round(1e3 * sorted(spent)[int(0.95 * len(spent))], 1),
         trend=round(statistics.median(spent[-tenth:]) / statistics.median(spent[:tenth]), 3),
         memory_gb=round(memory, 2))  # fmt: skip


def rows(
    name: str, model: Any, device: str, dtype: torch.dtype, window: int, count: int, frames: int
) -> None:
    """Many sessions as rows of one static ring, eager."""
    width = model.config.hidden_size
    ring = StaticCache(
        model,
        rows=count,
        sinks=SINKS,
        frame=GRID,
        frames=(window - SINKS) // TOKENS,
        scratch=64,
        device=device,
    )
    x = torch.randn(count, TOKENS, width, device=device, dtype=dtype)
    positions, mask = ring.reserve_sinks()
    model(
        inputs_embeds=x[:, :SINKS],
        position_ids=positions,
        cache=ring,
        attention_mask=ring.model_mask(mask),
    )
    ring.seal()
    spent: list[float] = []
    for _ in range(frames):
        sync(device)
        t = time.perf_counter()
        positions, mask = ring.reserve_frame(range(count))
        model(
            inputs_embeds=x,
            position_ids=positions,
            cache=ring,
            attention_mask=ring.model_mask(mask),
        )
        sync(device)
        spent.append(time.perf_counter() - t)
    line(device_block="rows", model=name, window=window, sessions=count,
         fps_in_all=round(count / statistics.median(spent), 1), ms_per_step=round(1e3 * statistics.median(spent), 1))  # fmt: skip


def packed(name: str, model: Any, device: str, window: int, count: int, frames: int) -> None:
    """Many sessions with rolling caches, all tiers kept, in one pass: a picture each, then a word each."""
    width, dtype = model.config.hidden_size, next(model.parameters()).dtype
    caches = [RollingCache(model, Budget(window, text=64)) for _ in range(count)]
    x = torch.randn(1, TOKENS, width, device=device, dtype=dtype)

    def step(whom: list[Any], positions: list[torch.Tensor], tokens: int) -> None:
        one = Packed([Run(c, tokens) for c in whom])
        at = torch.cat(positions, -1).to(device)
        many = x[:, :tokens].repeat(1, len(whom), 1)
        model(inputs_embeds=many, position_ids=at, cache=one, use_cache=True, packed=one)

    step(caches, [c.reserve("pinned", SINKS) for c in caches], SINKS)
    for cache in caches:
        cache.pin()
    pictures: list[float] = []
    filling = (window - SINKS) // TOKENS
    for i in range(filling + frames):
        sync(device)
        t = time.perf_counter()
        step(caches, [c.reserve("frame", *GRID) for c in caches], TOKENS)
        sync(device)
        if i >= filling:
            pictures.append(time.perf_counter() - t)
    branches = [c.fork(room=frames + 1) for c in caches]
    words: list[float] = []
    for _ in range(frames):
        sync(device)
        t = time.perf_counter()
        step(branches, [b.reserve(1) for b in branches], 1)
        sync(device)
        words.append(time.perf_counter() - t)
    line(device_block="packed", model=name, window=window, sessions=count,
         fps_in_all=round(count / statistics.median(pictures), 1), words_per_s_in_all=round(count / statistics.median(words), 1),
         ms_per_pass=round(1e3 * statistics.median(pictures), 1))  # fmt: skip


def retrieval(name: str, model: Any, device: str, dtype: torch.dtype) -> None:
    """What one evicted picture costs to store and to fetch, against ReKV's 286 ms a frame."""
    config = model.config
    heads, dim = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    block = torch.randn(config.num_hidden_layers, 2, 1, heads, TOKENS, dim, device=device, dtype=dtype)
    query = torch.randn(config.num_hidden_layers, config.num_attention_heads, dim)
    with RetrievalStore(
        layers=config.num_hidden_layers, heads=heads, tokens=TOKENS, dim=dim, slots=256
    ) as store:
        put: list[float] = []
        for i in range(24):
            t = time.perf_counter()
            store.put(block, 8, i)
            put.append(time.perf_counter() - t)
        t = time.perf_counter()
        found = store.find(query, 16)
        find = time.perf_counter() - t
        t = time.perf_counter()
        store.get(found, dtype)
        get = (time.perf_counter() - t) / len(found)
        line(device_block="retrieval", model=name, slot_mb=round(store.nbytes / 256 / 1e6, 2),
             put_ms=round(1e3 * statistics.median(put), 2), find_ms=round(1e3 * find, 2), get_ms=round(1e3 * get, 2),
             of_rekv_286_ms=round((statistics.median(put) + get) / 0.286, 4))  # fmt: skip


def main(device: str, *, tiny: bool) -> None:
    if device.startswith("cuda") and not torch.cuda.is_available():
        line(area="vlm", device=device, skipped="no CUDA device in this machine; the other figures need none")
        return
    dtype = torch.float32 if tiny else torch.bfloat16
    with torch.inference_mode():
        for name, shape in (TINY if tiny else SHAPES).items():
            note(f"building {name} on {device}")
            model = build(shape, device, dtype)
            for window in (256, 512) if tiny else (1024, 4096, 8192, 16384):
                rolling(name, model, device, dtype, window, 30 if tiny else 200)
            rolling(name, model, device, dtype, 256 if tiny else 4096, 100 if tiny else 20_000)
            for count in (1, 4) if tiny else (1, 4, 8, 16, 32):
                rows(name, model, device, dtype, 256 if tiny else 2048, count, 20 if tiny else 60)
            retrieval(name, model, device, dtype)
            install(model)  # from here on it takes packed rows only
            for count in (1, 4) if tiny else (1, 4, 8, 16, 32):
                packed(name, model, device, 256 if tiny else 2048, count, 20 if tiny else 60)
            del model
    line(
        area="vlm",
        device=device,
        tiny=tiny,
        note="rows: one static ring, eager; packed: rolling caches in one pass",
    )
