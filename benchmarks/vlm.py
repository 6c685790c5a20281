"""Streaming VLM figures: is the rolling cache exact, flat and fast; does interleaving help; is the reporter right.

    make bench AREA=vlm [ARGS="--full"] [ARGS="--device cuda"]

Models here have the true architectures and tiny random weights, so figures are about the cache and the scheduler.
`--device cuda` adds Qwen2.5-VL's true shapes, random weights, bf16.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch
from penstock.models.ring_kv import lay_out
from penstock.models.rolling_kv import Budget
from report import line, note, rss_mb
from torch import Tensor

sys.path.append(str(Path(__file__).parent.parent / "tests"))
GRID, N, SINKS, ASK = (1, 2, 3), 6, 5, 4


def random(seed: int, tokens: int, width: int, device: str = "cpu", dtype: Any = torch.float32) -> Tensor:
    x = torch.randn(1, tokens, width, generator=torch.Generator().manual_seed(seed)) * 0.5
    return x.to(device, dtype)


def run(model: Any, x: Tensor, positions: Tensor, cache: Any, mask: Any = None) -> Tensor:
    return model(
        inputs_embeds=x,
        position_ids=positions.to(x.device),
        cache=cache,
        use_cache=True,
        attention_mask=mask,
    ).last_hidden_state


def filled(model: Any, frames: range, tokens: int, **options: Any) -> Any:
    from penstock.models.rolling_cache import RollingCache

    cache = RollingCache(model, Budget(tokens, **options))
    run(model, random(1, SINKS, 64), cache.reserve("pinned", SINKS), cache)
    cache.pin()
    for i in frames:
        run(model, random(100 + i, N, 64), cache.reserve("frame", GRID, tag=i), cache)
    return cache


def answer(model: Any, cache: Any, **options: Any) -> Tensor:
    branch = cache.fork(**options)
    return run(model, random(2, ASK, 64), branch.reserve(ASK), branch)


def scratch(model: Any, axes: int, frames: list[int]) -> Tensor:
    from transformers.cache_utils import DynamicCache

    xs = [random(1, SINKS, 64), *[random(100 + i, N, 64) for i in frames], random(2, ASK, 64)]
    positions, _ = lay_out((SINKS, *[GRID] * len(frames), ASK), axes, 0)
    return run(model, torch.cat(xs, 1), positions, DynamicCache())[:, -ASK:]


def equality() -> float:
    """Largest absolute difference of hidden states, by family and property."""
    from penstock.models.rolling_cache import RollingCache
    from penstock.models.snapshot import restore, snapshot
    from penstock.models.static_cache import StaticCache
    from tiny_vlms import FAMILIES, tiny_text_model

    worst = 0.0
    for family in FAMILIES:
        model, one = tiny_text_model(family), tiny_text_model(family, layers=1)

        def far(a: Tensor, b: Tensor) -> float:
            return float((a - b).abs().max())

        row: dict[str, float] = {}
        whole = filled(model, range(8), 400)
        axes = whole.rope.axes
        full = answer(model, whole)
        row["no_eviction"] = far(full, scratch(model, axes, list(range(8))))
        cache = filled(one, range(20), SINKS + 4 * N)
        row["one_layer_evicted"] = far(answer(one, cache), scratch(one, axes, [16, 17, 18, 19]))
        a, b = (
            filled(model, range(40), SINKS + 4 * N, rebase_at=at) for at in (1 << 15, 2 * (SINKS + 4 * N))
        )
        row["rebase"] = far(answer(model, a), answer(model, b))
        blocks = []
        for _ in range(3):
            blocks.append((whole.export(whole.window[0]), whole.window[0].advance))
            whole.evict_oldest()
        row["retrieve"] = far(answer(model, whole, retrieved=blocks), full)
        other = RollingCache(model, Budget(SINKS + 4 * N))
        restore(other, snapshot(a))
        row["snapshot"] = far(answer(model, other), answer(model, a))
        static = StaticCache(model, rows=1, sinks=SINKS, frame=(GRID,), frames=4, scratch=8)
        positions, mask = static.reserve_sinks()
        run(model, random(1, SINKS, 64), positions, static, static.model_mask(mask))
        static.seal()
        for i in range(40):
            positions, mask = static.reserve_frame([0])
            run(model, random(100 + i, N, 64), positions, static, static.model_mask(mask))
        positions, mask = static.reserve_words([0], ASK)
        said = run(model, random(2, ASK, 64), positions, static, static.model_mask(mask))
        row["static_vs_rolling"] = far(said, answer(model, a))
        worst = max(worst, *row.values())
        line(equality=family, **{k: float(f"{v:.2g}") for k, v in row.items()})
    return worst


def flat(frames: int) -> tuple[float, float]:
    """Median ms of the last tenth over that of the second tenth, and MB of growth between."""
    from tiny_vlms import tiny_text_model

    model = tiny_text_model("qwen2_5_vl", layers=2)
    cache = filled(model, range(0), 256, text=32)
    x, word = random(7, N, 64), random(8, 2, 64)
    spent: list[float] = []
    tenth = frames // 10
    rss = 0.0
    for i in range(frames):
        if i == 2 * tenth:
            rss = rss_mb()
        t = time.process_time()
        run(model, x, cache.reserve("frame", GRID, tag=i), cache)
        if i % 5 == 0:
            run(model, word, cache.reserve("text", 2), cache)
        spent.append((time.process_time() - t) * 1e3)
    trend = statistics.median(spent[-tenth:]) / statistics.median(spent[tenth : 2 * tenth])
    grown = rss_mb() - rss
    line(flat="rolling", frames=frames, window=256, layers=2, width=64, ms_per_frame=round(statistics.median(spent), 2),
         trend=round(trend, 3), rss_growth_mb=round(grown, 2), rebases=cache.rebases, moves=cache.moves)  # fmt: skip
    return trend, grown


def speedup(full: bool) -> dict[str, float]:
    """Next tokens on a full rolling window against computing the whole window again, by "window+new"; paired, CPU time."""
    import transformers

    width, layers = 128, 4
    table: dict[str, float] = {}
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32768, attn_implementation="sdpa",
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = transformers.LlamaModel(config).eval().requires_grad_(False)
    from penstock.models.rolling_cache import RollingCache

    for window in (512, 1024, 4096):
        for new in (1, 16, 64):
            cache = RollingCache(model, Budget(window, text=0))
            run(model, random(1, 4, width), cache.reserve("pinned", 4), cache)
            cache.pin()
            while cache.visible < window - 64:
                run(model, random(2, 64, width), cache.reserve("frame", 64), cache)
            rounds = 5 if full else (3 if window < 4096 else 2)
            x, everything = random(3, new, width), random(4, window, width)
            at = torch.arange(window)[None]
            rolling, recompute = [], []
            for _ in range(rounds):
                t = time.process_time()
                for _ in range(4):
                    run(model, x, cache.reserve("frame", new), cache)
                rolling.append((time.process_time() - t) / 4)
                t = time.process_time()
                model(inputs_embeds=everything, position_ids=at, use_cache=False)
                recompute.append(time.process_time() - t)
            ratio = statistics.median(recompute) / statistics.median(rolling)
            table[f"{window}+{new}"] = round(ratio, 1)
            line(speedup_vs_recompute=round(ratio, 1), window=window, new_tokens=new, layers=layers, width=width,
                 threads=1, rolling_ms=round(1e3 * statistics.median(rolling), 2),
                 recompute_ms=round(1e3 * statistics.median(recompute), 1))  # fmt: skip
    return table


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--tiny", action="store_true", help="try the device block with tiny shapes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    if args.device != "cpu" or args.tiny:
        import vlm_device

        vlm_device.main(args.device, tiny=args.tiny)
        return
    import vlm_scene

    note("scene reporter")
    scene = vlm_scene.main()
    note("equality")
    worst = equality()
    note("memory and time")
    trend, grown = flat(10_000)
    note("speed")
    table = speedup(args.full)
    note("load")
    import vlm_load

    rows = vlm_load.model()
    seconds = 30 if args.full else 8
    run_out, interleaved = (vlm_load.load(rows, 1, mode, seconds) for mode in (False, True))
    four = vlm_load.load(rows, 4, True, seconds)
    batched = vlm_load.batching(rows)
    overload = vlm_load.overload()
    import vlm_questions
    import vlm_toy

    note("bad input")
    questions = vlm_questions.main()
    note("toy")
    toy = vlm_toy.main(args.full)
    line(
        area="vlm", equality_worst=float(f"{worst:.2g}"), ms_per_frame_10k_trend=round(trend, 3),
        rss_growth_mb_10k=round(grown, 2), speedup_vs_recompute=table, speedup_vs_recompute_best=max(table.values()),
        frame_lag_p95_ms=interleaved["frame_lag_ms_p95"], frame_lag_p95_ms_run_to_completion=run_out["frame_lag_ms_p95"],
        ttft_ms_p50=interleaved["ttft_ms_p50"], ttft_ms_p99=interleaved["ttft_ms_p99"],
        frame_lag_p95_ms_4_sessions=four["frame_lag_ms_p95"], ttft_ms_p99_4_sessions=four["ttft_ms_p99"],
        speedup_of_16_rows_in_one_pass=round(batched, 1), **overload, **questions, **scene, **toy,
        gpu="not measured: run with --device cuda on a machine that has one",
    )  # fmt: skip


if __name__ == "__main__":
    main()
