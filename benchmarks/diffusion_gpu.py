"""True shapes with random weights on a GPU: SD-Turbo at 512² and Wan 2.1 1.3B at 480p and 512². Speed only."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from penstock.models.stream_batch import StreamBatch
from penstock.models.stream_model import Settings
from report import line


def wall_ms(work: Callable[[], object], rounds: int) -> float:
    """Median milliseconds, the device's queue drained."""
    for _ in range(3):
        work()
    took: list[float] = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        took.append(time.perf_counter() - start)
    return float(np.median(took)) * 1e3


def turbo() -> StreamBatch:
    """SD-Turbo's UNet (SD 2.1's shape) and TAESD, bf16."""
    from diffusers import AutoencoderTiny, UNet2DConditionModel

    torch.manual_seed(0)
    with torch.device("cuda"):
        unet = UNet2DConditionModel(
            sample_size=64,
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
        )
        vae = AutoencoderTiny()
        prompt = torch.randn(77, 1024)
    unet = unet.to(dtype=torch.bfloat16).to(memory_format=torch.channels_last).eval()
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    vae = vae.to(dtype=torch.bfloat16).eval()
    return StreamBatch("sd-turbo", unet, vae, lambda text: prompt, (1 - betas).cumprod(0))


def run_turbo(rounds: int) -> None:
    """A stream's pictures a second at 1 and 4 steps, and the UNet's time by rows."""
    model = turbo()
    frame = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    for steps in (1, 4):
        for sessions in (1, 4, 8, 32):
            settings = Settings("a", strength=0.6, steps=steps)
            states = [model.init_state((512, 512), settings) for _ in range(sessions)]

            def tick(states: list[Any] = states) -> None:
                plans = [model.rows(s, frame) for s in states]
                results = model.forward([row for plan in plans for row in plan])
                for state, plan in zip(states, plans, strict=True):
                    mine, results = results[: len(plan)], results[len(plan) :]
                    model.commit(state, plan, mine)

            for _ in range(steps):
                tick()
            ms = wall_ms(tick, rounds)
            line(
                figure="sd_turbo_512",
                steps=steps,
                sessions=sessions,
                rows=steps * sessions,
                precision="bf16",
                compiled=False,
                ms=round(ms, 2),
                fps_each=round(1e3 / ms, 1),
                fps_all=round(sessions * 1e3 / ms, 1),
            )


def run_wan(rounds: int) -> None:
    """Wan 2.1 1.3B: pictures a second of the transformer, and of the autoencoder, apart and together."""
    from diffusers import AutoencoderKLWan
    from penstock.models import wan_vae
    from penstock.models.causal_wan import WAN_1_3B, CausalWan, WanStream, Window, warped

    torch.manual_seed(0)
    with torch.device("cuda"):
        model = CausalWan(**WAN_1_3B).to(torch.bfloat16).eval()
        vae = AutoencoderKLWan().to(torch.bfloat16).eval()
    model.window = Window(capacity=6, sink=1, block=1)
    # published by StreamDiffusionV2 for one H100: fps at 1, 2 and 4 steps
    published = {(480, 832): (20.5, 18.0, 14.0), (512, 512): (26.2, 24.0, 19.4)}
    for (height, width), theirs in published.items():
        shape = (16, 1, height // 8, width // 8)
        held = wan_vae.VaeState()
        pictures = torch.zeros(1, 3, 4, height, width, device="cuda", dtype=torch.bfloat16)
        z, held = wan_vae.encode(vae, held, pictures[:, :, :1])
        _, held = wan_vae.decode(vae, held, z)
        z, held = wan_vae.encode(vae, held, pictures)
        _, held = wan_vae.decode(vae, held, z)

        def code(held: wan_vae.VaeState = held, pictures: torch.Tensor = pictures) -> None:
            z, after = wan_vae.encode(vae, held, pictures)
            wan_vae.decode(vae, after, z)

        vae_ms = wall_ms(code, rounds)
        for steps, their_fps in zip((1, 2, 4), theirs, strict=True):
            stream = WanStream(model, warped([1000 - k * 1000 / steps for k in range(steps)]))
            text = model.text_kv(torch.randn(1, 512, 4096, device="cuda", dtype=torch.bfloat16))
            state = stream.init_state(shape[2], shape[3], text)
            latent = torch.randn(shape, device="cuda", dtype=torch.bfloat16)

            def tick(stream: WanStream = stream, state: Any = state, latent: torch.Tensor = latent) -> None:
                stream.enter(state, latent)
                rows = stream.rows(state)
                stream.commit(state, rows, stream.forward(rows))

            for _ in range(8):  # fill the caches: all rows alike
                tick()
            ms = wall_ms(tick, rounds)
            line(
                figure="wan_1_3b",
                size=f"{width}x{height}",
                steps=steps,
                precision="bf16",
                compiled=False,
                transformer_ms=round(ms, 1),
                vae_ms=round(vae_ms, 1),
                fps=round(4e3 / (ms + vae_ms), 1),  # one latent frame is four pictures
                published_h100_fps=their_fps,
                cache_mb_per_step=round(state.caches[0].nbytes / 1e6),
            )


def run(full: bool) -> None:
    """All of it, or a line in words when there is no GPU."""
    if not torch.cuda.is_available():
        line(figure="gpu", skipped="no CUDA device")
        return
    line(figure="gpu", device=torch.cuda.get_device_name())
    rounds = 50 if full else 15
    with torch.inference_mode():
        run_turbo(rounds)
        run_wan(rounds)
