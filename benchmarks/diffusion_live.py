"""`diffusion.stream` with several sessions on one pool: on the virtual clock, and live on this machine's threads."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import numpy as np
from penstock.models.stream_model import Picture
from penstock.pipeline.clock import MS, SECOND, MonotonicClock
from penstock.pipeline.pool_plan import BatchPlan, PoolPlan
from penstock.pipeline.pools import DevicePool
from penstock.stages.diffusion_params import DiffusionOptions, DiffusionParams
from report import percentile

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from diffusion_sessions import Session, simulated

GOALS_MS = {1: (25, 36), 3: (32, 52), 5: (83, 107)}  # p50/p99 of the pool's own simulation
FPS, STEPS = 15, 2
MOST = 0.8  # of the device, that admission promises


def _ages(sessions: list[Session]) -> dict[str, Any]:
    ages = [age for s in sessions for age in s.ages_ms[FPS:]]  # the first second settles
    if not ages:
        return {"p50_ms": None, "p99_ms": None}
    return {"p50_ms": round(percentile(ages, 0.5), 1), "p99_ms": round(percentile(ages, 0.99), 1)}


def in_simulation(sessions: int, seconds: float) -> dict[str, Any]:
    """L(rows) = 5.0 + 5.65·rows ms, cameras of 15 fps with 6 ms of jitter, 100 ms from capture: exact."""
    all_of, device, late = simulated(sessions, steps=STEPS, fps=FPS, seconds=seconds)
    sent, shown = sum(s.sent for s in all_of), sum(len(s.shown) for s in all_of)
    rows = 10  # in a forward at most
    offered = sessions * FPS * STEPS * (5.0 + 5.65 * rows) / rows / 1e3
    return {
        "figure": "sessions_simulated",
        "sessions": sessions,
        "steps": STEPS,
        "fps": FPS,
        **_ages(all_of),
        "goal_ms": GOALS_MS.get(sessions),
        "shown": round(shown / sent, 3),
        "offered_load": round(offered, 2),
        "fits": round(min(1.0, MOST / offered), 2),  # what admission lets through: the rest is thinned evenly
        "late": round(sum(late) / sent, 4),
        "rows_per_forward": device.stats()["rows_per_forward"],
    }


def live(sessions: int, seconds: float, side: int = 128) -> dict[str, Any]:
    """tiny-restyle on one worker thread of this machine, wall clock; each picture carries its session's mark."""

    def picture(session: int, frame: int) -> Picture:
        image = np.full((side, side, 3), 20 + 20 * (frame % 10), np.uint8)
        image[:, : side // 2] = (30 + 30 * session, 120, 220 - 30 * session)
        return image

    async def main() -> tuple[list[Session], DevicePool, int]:
        clock = MonotonicClock()
        device = DevicePool("cpu", PoolPlan(device="cpu", workers=1, batch=BatchPlan(max=8)), clock)
        all_of = [Session(device, clock, f"s{i}", simulated=False) for i in range(sessions)]
        ready = asyncio.Barrier(sessions)
        params = DiffusionParams(steps=STEPS, skip_still=False)
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(
                    s.run(
                        DiffusionOptions(side=side, device="cpu"),
                        params,
                        lambda t, i=i: picture(i, t),
                        frames=int(seconds * FPS),
                        fps=FPS,
                        budget=150 * MS,
                        phase=i * SECOND // FPS // sessions,
                        ready=ready,
                    )
                )
                for i, s in enumerate(all_of)
            ]
        device.close()
        return all_of, device, sum(t.result().late for t in tasks)

    all_of, device, late = asyncio.run(main())
    mixed = 0
    for i, session in enumerate(all_of):
        for frame in session.shown:
            whose = frame.image[8:-8, 8 : side // 2 - 8].reshape(-1, 3).mean(0)
            mixed += int(np.abs(whose - picture(i, 0)[0, 0]).max() > 15)
    sent, shown = sum(s.sent for s in all_of), sum(len(s.shown) for s in all_of)
    return {
        "figure": "sessions_live",
        "sessions": sessions,
        "side": side,
        "steps": STEPS,
        "fps": FPS,
        "within_ms": 150,
        **_ages(all_of),
        "shown": round(shown / sent, 3),
        "passed_through": round(sum(s.passed for s in all_of) / sent, 3),
        "late": round(late / sent, 3),
        "mixed_up": mixed,
        "rows_per_forward": device.stats()["rows_per_forward"],
    }
