"""True shapes with random weights on a GPU: SD-Turbo at 512², Wan 2.1 1.3B at 480p and 512². Speed only.

make bench AREA=diffusion ARGS="--device cuda"            # the figures
make bench AREA=diffusion ARGS="--device cuda --tiny"     # the same code in small, also without a GPU: means nothing
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from penstock.models import stream_models
from penstock.models.stream_batch import StreamBatch
from penstock.models.stream_model import Entry, Picture, Settings
from penstock.pipeline.clock import MS, SECOND, MonotonicClock
from penstock.pipeline.pool_plan import BatchPlan, PoolPlan
from penstock.pipeline.pools import DevicePool
from penstock.stages.diffusion_params import DiffusionOptions, DiffusionParams
from report import line, percentile

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from diffusion_sessions import Session

# StreamDiffusion on one RTX 4090, SD-Turbo 512², ms a picture by steps (its paper, table 1)
PUBLISHED_TURBO = {1: 10.65, 2: 16.74, 4: 26.93}
# StreamDiffusionV2 on one H100: fps at 1, 2 and 4 steps
PUBLISHED = {(480, 832): (20.5, 18.0, 14.0), (512, 512): (26.2, 24.0, 19.4)}


@dataclass(frozen=True)
class Where:
    """A device, and whether shapes are true or tiny."""

    device: str
    tiny: bool
    rounds: int

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.device == "cpu" else torch.bfloat16

    @property
    def words(self) -> dict[str, object]:
        return {
            "precision": str(self.dtype).removeprefix("torch."),
            "shapes": "tiny" if self.tiny else "true",
        }

    def wait(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize()

    def ms(self, work: Callable[[], object], warm: int = 3) -> float:
        """Median milliseconds, the device's queue drained."""
        for _ in range(warm):
            work()
        took: list[float] = []
        for _ in range(self.rounds):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            took.append(time.perf_counter() - start)
        return float(np.median(took)) * 1e3


@dataclass
class Watts:
    """The GPU's power, asked for ten times a second."""

    samples: list[float] = field(default_factory=list[float])

    @contextmanager
    def during(self) -> Any:
        stop = threading.Event()

        def ask() -> None:
            query = ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
            while not stop.wait(0.1):
                try:
                    answer = subprocess.run(query, capture_output=True, text=True, check=True)
                except (OSError, subprocess.CalledProcessError):
                    return
                self.samples.append(float(answer.stdout.splitlines()[0]))

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            yield self
        finally:
            stop.set()
            thread.join()

    @property
    def mean(self) -> float | None:
        return float(np.mean(self.samples)) if self.samples else None


def turbo(where: Where) -> StreamBatch:
    """SD-Turbo's UNet (SD 2.1's shape) and TAESD."""
    from diffusers import AutoencoderTiny, UNet2DConditionModel

    torch.manual_seed(0)
    wide: dict[str, Any] = {
        "sample_size": 64,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    }
    small: dict[str, Any] = {
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 8,
        "norm_num_groups": 8,
    }
    thin: dict[str, Any] = {f"{s}_block_out_channels": (8,) * 4 for s in ("encoder", "decoder")}
    thin |= {"num_encoder_blocks": (1,) * 4, "num_decoder_blocks": (1,) * 4}
    with torch.device(where.device):
        unet = UNet2DConditionModel(**(small if where.tiny else wide))
        vae = AutoencoderTiny(**(thin if where.tiny else {}))
        prompt = torch.randn(77, 16 if where.tiny else 1024)
    unet = unet.to(dtype=where.dtype).to(memory_format=torch.channels_last).eval()
    vae = vae.to(dtype=where.dtype).eval()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    return StreamBatch("sd-turbo", unet, vae, lambda text: prompt, (1 - betas).cumprod(0))


def picture(height: int, width: int) -> Picture:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def run_turbo(where: Where) -> dict[str, Any]:
    """A stream's pictures a second at 1 and 4 steps, by rows; the first picture cold and warm."""
    side = 64 if where.tiny else 512
    start = time.perf_counter()
    model = turbo(where)
    built = time.perf_counter() - start
    frame = picture(side, side)

    def first() -> float:
        began = time.perf_counter()
        state = model.init_state((side, side), Settings("a", strength=0.6, steps=1))
        rows = model.rows(state, frame)
        model.commit(state, rows, model.forward(rows))
        return (time.perf_counter() - began) * 1e3

    summary: dict[str, Any] = {}
    cold = first()
    start = time.perf_counter()
    model.warm((side, side), Settings("a", strength=0.6, steps=1), 2 if where.tiny else 16)
    line(
        figure="first_frame",
        model="sd-turbo",
        side=side,
        built_s=round(built, 1),
        cold_ms=round(cold, 1),
        prepare_s=round(time.perf_counter() - start, 1),
        warm_ms=round(first(), 1),
        published_first_frame_s="< 0.5 (StreamDiffusionV2)",
        **where.words,
    )
    for steps in (1, 4):
        for rows in (1, 4) if where.tiny else (1, 2, 4, 8, 16, 32):
            if rows % steps:
                continue
            settings = Settings("a", strength=0.6, steps=steps)
            states = [model.init_state((side, side), settings) for _ in range(rows // steps)]

            def tick(states: list[Any] = states) -> None:
                plans = [model.rows(s, frame) for s in states]
                results = model.forward([row for plan in plans for row in plan])
                for state, plan in zip(states, plans, strict=True):
                    mine, results = results[: len(plan)], results[len(plan) :]
                    model.commit(state, plan, mine)

            ms = where.ms(tick, warm=steps + 3)
            if rows == steps:
                summary[f"sd_turbo_{steps}_steps_fps"] = round(1e3 / ms, 1)
            line(
                figure="sd_turbo",
                side=side,
                steps=steps,
                rows=rows,
                sessions=len(states),
                ms=round(ms, 2),
                fps_each=round(1e3 / ms, 1),
                fps_all=round(len(states) * 1e3 / ms, 1),
                published_4090_ms=PUBLISHED_TURBO.get(steps) if rows == steps else None,
                **where.words,
            )
    for still in (True, False):
        energy(where, model, side, still)
    most = sessions_at(where, model, "sd-turbo", (side, side), fps=16, steps=1)
    return summary | {"sd_turbo_sessions_16fps": most}


def energy(where: Where, model: StreamBatch, side: int, still: bool) -> None:
    """Joules a camera picture of a scene that rests three quarters of the time, with and without the filter."""
    seconds = 2 if where.tiny else 20
    moving = [np.roll(picture(side, side), 8 * i, 1) for i in range(4)]

    def shown(t: int) -> Picture:
        return moving[t % 4] if t % 64 < 16 else moving[0]

    with Watts().during() as watts:
        sessions = play(where, model, (side, side), 1, 30, 1, seconds, shown, skip_still=still)
    sent = sum(s.sent for s in sessions)
    line(
        figure="joules_per_frame",
        filter=still,
        side=side,
        watts=None if watts.mean is None else round(watts.mean),
        joules=None if watts.mean is None else round(watts.mean * seconds / sent, 2),
        reason=None if watts.mean is not None else "nvidia-smi tells no power here",
        **where.words,
    )


def play(
    where: Where,
    model: Any,
    size: tuple[int, int],
    sessions: int,
    fps: int,
    steps: int,
    seconds: float,
    shown: Callable[[int], Picture],
    *,
    skip_still: bool = False,
) -> list[Session]:
    """Sessions of the real stage on the real pool; size: the camera's (height, width)."""
    height, width = size

    async def main() -> list[Session]:
        clock = MonotonicClock()
        device = "cuda" if where.device != "cpu" else "cpu"
        pool = DevicePool("gpu", PoolPlan(device=device, workers=1, batch=BatchPlan(max=16)), clock)
        all_of = [Session(pool, clock, f"s{i}", simulated=False) for i in range(sessions)]
        ready = asyncio.Barrier(sessions)
        params = DiffusionParams(steps=steps, strength=0.6, skip_still=skip_still)
        async with asyncio.TaskGroup() as group:
            for i, session in enumerate(all_of):
                group.create_task(
                    session.run(
                        DiffusionOptions(
                            side=max(64, round((height * width) ** 0.5)), prepare=(f"{width}x{height}",)
                        ),
                        params,
                        shown,
                        frames=1 + 4 * round(seconds * fps / 4),  # whole chunks, of models that have them
                        fps=fps,
                        budget=250 * MS + (model.chunk(1) - 1) * SECOND // fps,
                        phase=i * SECOND // fps // sessions,
                        ready=ready,
                    )
                )
        pool.close()
        return all_of

    with mock.patch.object(stream_models, "load", return_value=model):
        return asyncio.run(main())


def sessions_at(where: Where, model: Any, name: str, size: tuple[int, int], *, fps: int, steps: int) -> int:
    """The most sessions of `fps` of which 98 % of the pictures are drawn in time at full quality."""
    best: dict[str, Any] = {"sessions": 0}
    frame = picture(*size)
    for sessions in (1, 2, 4, 6, 8, 12, 16, 24, 32):
        tried = play(where, model, size, sessions, fps, steps, 2 if where.tiny else 8, lambda _: frame)
        sent, shown = sum(s.sent for s in tried), sum(len(s.shown) for s in tried)
        ages = [age for s in tried for age in s.ages_ms[fps:]]
        if not ages or shown < 0.98 * sent:
            best["next"] = {"sessions": sessions, "shown": round(shown / sent, 3)}
            break
        p50, p99 = (round(percentile(ages, q), 1) for q in (0.5, 0.99))
        best = {"sessions": sessions, "p50_ms": p50, "p99_ms": p99, "shown": round(shown / sent, 3)}
        if where.tiny and sessions >= 2:
            break
    shape = f"{size[1]}x{size[0]}"
    line(figure="sessions_per_gpu", model=name, size=shape, fps=fps, steps=steps, **best, **where.words)
    return best["sessions"]


def run_wan(where: Where) -> dict[str, Any]:
    """Wan 2.1 1.3B: pictures a second, of the transformer and the autoencoder apart and together; the small decoder."""
    from diffusers import AutoencoderKLWan
    from penstock.models.causal_wan import WAN_1_3B, CausalWan, Window
    from penstock.models.taehv import TinyDecoder
    from penstock.models.wan_video import WanVideo

    torch.manual_seed(0)
    small = {
        "num_attention_heads": 2,
        "attention_head_dim": 24,
        "ffn_dim": 32,
        "num_layers": 2,
        "text_dim": 16,
    }
    few: dict[str, Any] = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
    with torch.device(where.device):
        transformer = CausalWan(**(small if where.tiny else WAN_1_3B)).to(where.dtype).eval()
        vae = AutoencoderKLWan(**(few if where.tiny else {})).to(where.dtype).eval()
        tiny = TinyDecoder(16, (16, 8, 8, 8) if where.tiny else (256, 128, 64, 64)).to(where.dtype).eval()
        words = torch.randn(1, 512, 16 if where.tiny else 4096, dtype=where.dtype)
    summary: dict[str, Any] = {}
    transformer.window = Window(capacity=6, sink=1, block=1)
    for (height, width), theirs in PUBLISHED.items():
        if where.tiny:
            height, width = height // 16 // 2 * 2, width // 16 // 2 * 2
            height, width = max(32, height // 16 * 16), max(32, width // 16 * 16)
        chunk = Entry(tuple(picture(height, width) for _ in range(4)), (0, 1, 2, 3))
        for decoder in (None, tiny):
            model = WanVideo("wan", transformer, vae, lambda text: words, decoder)
            for steps, their_fps in zip((1, 2, 4), theirs, strict=True):
                start = time.perf_counter()
                state = model.init_state((height, width), Settings("a", strength=0.7, steps=steps))

                def tick(entry: Entry = chunk, state: Any = state, model: WanVideo = model) -> None:
                    flights = [*state.flights, model.enter(state, entry)]
                    rows = [model.row(state, f) for f in flights]
                    model.commit(state, rows, model.forward(rows))

                tick(Entry(chunk.pictures[:1], (0,)))
                where.wait()
                first = (time.perf_counter() - start) * 1e3
                ms = where.ms(tick, warm=8)  # the caches are full: all rows alike
                summary[f"wan_{width}x{height}_{steps}_steps_fps"] = round(
                    4e3 / ms, 1
                )  # of the small decoder
                line(
                    figure="wan_1_3b",
                    size=f"{width}x{height}",
                    steps=steps,
                    decoder="small" if decoder else "its own",
                    first_frame_ms=round(first, 1),
                    ms_per_4_pictures=round(ms, 1),
                    fps=round(4e3 / ms, 1),
                    published_h100_fps=their_fps,
                    cache_mb_per_step=round(state.caches[0].nbytes / 1e6, 1),
                    **where.words,
                )
        most = sessions_at(where, model, "wan-1.3b", (height, width), fps=16, steps=2)
        summary[f"wan_{width}x{height}_sessions_16fps"] = most
    return summary


def run(full: bool, tiny: bool) -> dict[str, Any]:
    """All of it, or why not. Returns: the summary."""
    there = torch.cuda.is_available()
    if not there and not tiny:
        return {"gpu": None, "reason": "no CUDA device here; --tiny tries the code in small on the CPU"}
    where = Where("cuda" if there else "cpu", tiny, 2 if tiny else 50 if full else 15)
    device = torch.cuda.get_device_name() if there else "none"
    line(figure="gpu", device=device, **where.words)
    with torch.inference_mode():
        return {"gpu": device, **where.words, **run_turbo(where), **run_wan(where)}
