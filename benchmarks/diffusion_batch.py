"""What guidance costs in Stream Batch: a small UNet of the true kind with random weights, in turns."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from penstock.models.stream_batch import Guidance, StreamBatch
from penstock.models.stream_model import Settings

MODES: tuple[Guidance, ...] = ("full", "onetime", "self")


def small(guidance: Guidance) -> StreamBatch:
    """A UNet of 5 M parameters and a TAESD in small."""
    from diffusers import AutoencoderTiny, UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(64, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64,
        attention_head_dim=32,
    )
    vae = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    prompt = torch.randn(16, 64)
    return StreamBatch(
        "small", unet.eval(), vae.eval(), lambda text: prompt, (1 - betas).cumprod(0), guidance=guidance
    )


def guidance_cost(rounds: int, side: int = 256) -> list[dict[str, Any]]:
    """Cost of ordinary CFG over each mode, by steps. Ticks take turns, so that noise falls on all."""
    try:
        models = {mode: small(mode) for mode in MODES}
    except ModuleNotFoundError as e:
        return [{"figure": "rcfg", "skipped": f"needs the extra hub ({e.name})"}]
    frame = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    found: list[dict[str, Any]] = []
    for steps in (1, 2, 4):
        settings = Settings("a", "b", strength=0.8, steps=steps, guidance=1.5)
        states = {mode: m.init_state((side, side), settings) for mode, m in models.items()}
        took: dict[Guidance, list[float]] = {mode: [] for mode in MODES}
        for i in range(rounds + steps):
            for mode, model in models.items():
                start = time.thread_time()
                rows = model.rows(states[mode], frame)
                model.commit(states[mode], rows, model.forward(rows))
                if i >= steps:
                    took[mode].append(time.thread_time() - start)
        ms = {mode: float(np.median(t)) * 1e3 for mode, t in took.items()}
        found.append(
            {
                "figure": "rcfg",
                "steps": steps,
                "latent": side // 8,
                "precision": "fp32",
                "threads": 1,
                **{f"{mode}_ms": round(v, 1) for mode, v in ms.items()},
                "full_over_self": round(ms["full"] / ms["self"], 2),
                "full_over_onetime": round(ms["full"] / ms["onetime"], 2),
            }
        )
    return found
