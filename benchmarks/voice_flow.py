"""The neural voice: its streaming against one pass, and what a chunk costs."""

from __future__ import annotations

import time

import numpy as np
import torch
from penstock.models import flow_voice
from penstock.models.flow_acoustic import FlowAcoustic
from penstock.models.voice import NoVoice
from report import line


def flow() -> dict[str, float | str]:
    """Streaming against one pass, and CPU per chunk over 60 s."""
    torch.set_num_threads(1)
    try:
        model, weights = flow_voice.load(), "trained"
    except NoVoice:
        torch.manual_seed(0)
        model, weights = FlowAcoustic().eval().requires_grad_(False), "random"
    condition = torch.randn(6000, model.dims.width, generator=torch.Generator().manual_seed(0))
    state, parts, costs = model.init_state(), [], []
    for at in range(0, len(condition), model.dims.chunk):
        begun = time.thread_time()
        parts.append(
            model.step(condition[at : at + model.dims.chunk], state, last=at + model.dims.chunk >= 6000)
        )
        costs.append((time.thread_time() - begun) * 1000)
    short = condition[:1500]
    apart = float(
        (torch.cat(parts)[: len(short) - model.dims.chunk] - model.forward(short)[: -model.dims.chunk])
        .abs()
        .max()
    )
    early, late = (float(np.median(costs[a:b])) for a, b in ((5, 55), (-50, None)))
    figures: dict[str, float | str] = {
        "flow_weights": weights,
        "flow_streaming_apart": apart,
        "flow_chunk_ms": round(late, 2),
        "flow_chunk_growth": round(late / early, 3),
        "flow_rtf": round(sum(costs) / 60_000, 4),
    }
    line(part="flow", **figures)
    return figures
