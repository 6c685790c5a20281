"""The neural voice: its streaming against one pass, and what a chunk costs."""

from __future__ import annotations

import time

import numpy as np
import torch
from penstock.models import flow_voice
from penstock.models.flow_acoustic import FlowAcoustic, FlowState
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
    size = model.dims.chunk
    state, parts, costs = model.init_state(), list[torch.Tensor](), list[float]()

    def step(at: int, stream: FlowState) -> float:
        """CPU ms."""
        begun = time.thread_time()
        parts.append(model.step(condition[at : at + size], stream))
        return (time.thread_time() - begun) * 1000

    for at in range(0, len(condition), size):
        costs.append(step(at, state))
    # after 60 s against after 2 s, in turns: the machine's other work meets both alike
    young, ratios = model.init_state(), list[float]()
    for at in range(0, 60 * size, size):
        ratios.append(step(at, state) / step(at, young))
    short = condition[:1500]
    apart = float(
        (torch.cat(parts)[: len(short) - model.dims.chunk] - model.forward(short)[: -model.dims.chunk])
        .abs()
        .max()
    )
    figures: dict[str, float | str] = {
        "flow_weights": weights,
        "flow_streaming_apart": apart,
        "flow_chunk_ms": round(float(np.median(costs)), 2),
        "flow_chunk_growth": round(float(np.median(ratios[10:])), 3),
        "flow_rtf": round(sum(costs) / 60_000, 4),
    }
    line(part="flow", **figures)
    return figures
