"""What must be equal is equal: Stream Batch, strangers in one forward, causal Wan, its autoencoder; a thousand frames."""

from __future__ import annotations

import gc
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from penstock.models.restyle_prompt import PHRASES
from penstock.models.stream_model import Picture, Settings
from penstock.models.tiny_restyle import TinyRestyle

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))


def together_or_apart(model: TinyRestyle) -> dict[str, Any]:
    """How far results differ that must not: Stream Batch against one picture after the other, strangers against alone."""
    rng = np.random.default_rng(2)
    frames = [rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(8)]

    def estimates(batched: bool) -> list[torch.Tensor]:
        state = model.init_state((64, 64), Settings("oil painting", steps=2))
        found: list[torch.Tensor] = []
        for frame in [*frames, None, None]:
            picture: Picture | None = frame
            while picture is not None or state.flights:
                rows = model.rows(state, picture)
                results = model.forward(rows)
                found += [d.estimate for r, d in zip(rows, results, strict=True) if r.last]
                model.commit(state, rows, results)
                picture = None
                if batched and frame is not None:
                    break
        return found

    sequence = max(float((a - b).abs().max()) for a, b in zip(estimates(True), estimates(False), strict=True))
    states = [model.init_state((64, 64), Settings(PHRASES[s][0], steps=2)) for s in list(PHRASES)[1:7]]
    rows = [model.rows(s, f)[0] for s, f in zip(states, frames, strict=False)]
    alone = [model.forward([row])[0].estimate for row in rows]
    strangers = max(
        float((a.estimate - b).abs().max()) for a, b in zip(model.forward(rows), alone, strict=True)
    )
    return {
        "figure": "equality",
        "stream_batch": sequence,
        "goal": 5e-5,
        "strangers": strangers,
        "goal_strangers": 1e-5,
    }


def wan_equality() -> dict[str, Any]:
    """The rolling cache against the whole video under a block-causal mask, and the autoencoder's chunks."""
    head: dict[str, Any] = {"figure": "equality_wan", "goal": 1e-5, "weights": "random, small"}
    try:
        from wan_stream import small_vae, streamed_and_whole, vae_streamed_and_whole
    except ModuleNotFoundError as e:
        return head | {"causal_wan": None, "vae": None, "reason": f"needs the extra hub ({e.name})"}

    def most(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a - b).abs().max())

    return head | {
        "causal_wan": max(most(*streamed_and_whole(block)) for block in (1, 3)),
        "vae": max(most(*pair) for pair in vae_streamed_and_whole(small_vae())),
    }


def thousand(model: TinyRestyle, frames: int = 1000, side: int = 64) -> dict[str, Any]:
    """Memory and time of the first against the last tenth of a stream."""
    state = model.init_state((side, side), Settings("neon glow", steps=2))
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (side, side, 3), np.uint8) for _ in range(8)]
    took: list[float] = []
    memory: list[int] = []
    for t in range(frames):
        start = time.thread_time()
        rows = model.rows(state, pictures[t % 8])
        model.commit(state, rows, model.forward(rows))
        took.append(time.thread_time() - start)
        if t in (frames // 10, frames - 1):
            gc.collect()
            memory.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    tenth = frames // 10
    return {
        "figure": "thousand_frames",
        "frames": frames,
        "side": side,
        "steps": 2,
        "time_last_over_first": round(
            float(np.median(took[-tenth:]) / np.median(took[tenth : 2 * tenth])), 3
        ),
        "peak_memory_grew_mb": round((memory[1] - memory[0]) / 1024, 1),
    }
