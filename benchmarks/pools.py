"""Pool figures: latency of few-step video on one shared device, and what is in time under overload.

Simulated on the virtual clock with the published cost of a two-step restyling model on one GPU,
L(rows) = 5.0 + 5.65·rows ms, cameras of 15 fps with 6 ms of jitter: exact, the same on every machine.

    make bench AREA=pools [ARGS=--full]
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from penstock.pipeline.clock import MS, NEVER, SECOND, LoopClock, MonotonicClock
from penstock.pipeline.degrade import parse_ladder
from penstock.pipeline.node_pool import NodePool
from penstock.pipeline.pool_plan import BatchPlan, PoolPlan
from penstock.pipeline.pool_threads import SimulatedDriver
from penstock.pipeline.pools import DevicePool
from penstock.pipeline.rows import Again, Demand, ModelSpec, Row
from penstock.pipeline.stage import Dropped
from penstock.pipeline.virtual_loop import run_virtual
from report import line, note, percentile

FPS = 15
STEPS = 2
BATCH = 10
BUDGET = 100 * MS  # from capture, where frames have a deadline
JITTER_MS = 6.0


def latency(rows: int) -> int:
    return round((5.0 + 5.65 * rows) * MS)


@dataclass
class Tally:
    """Frames of all sessions."""

    sent: int = 0
    admitted: int = 0  # taken up by the device at the quality it granted
    in_time: int = 0
    missed: int = 0  # dropped unrun
    late: int = 0  # shown, but after the deadline
    ages_ms: list[float] = field(default_factory=list[float])


def arrivals(sessions: int, seconds: float, seed: int) -> list[tuple[int, int, int]]:
    """(arrival, session, capture) in ns, in order; the same cameras for every policy."""
    rng = np.random.default_rng(seed)
    period = SECOND / FPS
    out: list[tuple[int, int, int]] = []
    for session in range(sessions):
        offset = rng.uniform(0, period)
        for k in range(int(seconds * FPS)):
            captured = offset + k * period
            out.append((round(captured + abs(rng.normal(0, JITTER_MS)) * MS), session, round(captured)))
    return sorted(out)


# ---------------------------------------------------------------- ours


class TwoSteps:
    """Counts its steps; the device's time is simulated by the driver."""

    def batch_key(self, row: Row) -> str:
        return "steps"

    def forward(self, rows: Sequence[Row]) -> list[int]:
        return [row.payload for row in rows]

    def commit(self, row: Row, result: int) -> Any:
        return Again(result - 1) if result > 1 else None


class Session:
    """A camera, a mailbox of one frame (newest wins), at most two frames in flight."""

    def __init__(self, pool: NodePool, tally: Tally, deadline: int, clock: LoopClock) -> None:
        self.pool, self.tally, self.deadline, self.clock = pool, tally, deadline, clock
        self.waiting: int | None = None
        self.flying = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.credit = 0.0

    def camera(self, captured: int) -> None:
        self.tally.sent += 1
        quality = self.pool.quality
        if quality.passthrough:
            return
        self.credit += quality.fps
        if self.credit < 1 - 1e-9:
            return
        self.credit -= 1
        self.tally.admitted += 1
        if self.waiting is not None:
            self.tally.missed += 1
        self.waiting = captured
        self.pump()

    def pump(self) -> None:
        if self.waiting is None or self.flying >= STEPS:
            return
        captured, self.waiting = self.waiting, None
        self.flying += 1
        task = asyncio.get_running_loop().create_task(self.frame(captured))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def frame(self, captured: int) -> None:
        steps = max(1, STEPS - self.pool.quality.steps_less)
        due = NEVER if self.deadline == NEVER else captured + self.deadline
        try:
            await self.pool.run("steps", Row(steps, deadline=due, further=steps - 1))
        except Dropped:
            self.tally.missed += 1
        else:
            now = self.clock.now()
            self.tally.ages_ms.append((now - captured) / MS)
            self.tally.in_time += now <= due
            self.tally.late += now > due
        self.flying -= 1
        self.pump()


async def ours(
    sessions: int, seconds: float, seed: int, deadline: int, batch: int, ladder: Sequence[str]
) -> tuple[Tally, DevicePool]:
    """All sessions on one pool; with a ladder they ask for admission first."""
    loop = asyncio.get_running_loop()
    clock = LoopClock(loop)
    plan = PoolPlan(device="cuda", batch=BatchPlan(max=batch))
    device = DevicePool(
        "gpu", plan, clock, lambda _threads, n: SimulatedDriver(clock, lambda _model, rows: latency(rows), n)
    )
    tally, users = Tally(), list[Session]()
    for i in range(sessions):
        view = NodePool(
            device,
            session=f"s{i}",
            node="restyle",
            scope="",
            epoch=lambda: 0,
            levels=parse_ladder(ladder),
            clock=clock,
            realtime=True,
            emit=lambda *_args, **_fields: None,
        )
        await view.load("steps", TwoSteps)
        await view.warm("steps", lambda: Row(1))
        if ladder:
            view.admit(Demand("steps", rate_hz=FPS, forwards=STEPS, within=deadline))
        users.append(Session(view, tally, deadline, clock))
    start = clock.now()
    for at, session, captured in arrivals(sessions, seconds, seed):
        loop.call_at((start + at) / SECOND, users[session].camera, start + captured)
    await asyncio.sleep(seconds + 2)
    device.close()
    return tally, device


# ---------------------------------------------------------------- what others do


def lockstep(sessions: int, seconds: float, seed: int, deadline: int = NEVER) -> Tally:
    """StreamDiffusion's batch over all sessions: frames move on one step when their session's next one comes."""
    tally = Tally()
    frames = arrivals(sessions, seconds, seed)
    waiting: dict[int, int] = {}
    flying: dict[int, list[int]] = {s: [] for s in range(sessions)}  # newest first
    now = i = 0
    while i < len(frames) or waiting:
        if not waiting:
            now = max(now, frames[i][0])
        while i < len(frames) and frames[i][0] <= now:
            tally.missed += frames[i][1] in waiting
            waiting[frames[i][1]] = frames[i][2]
            tally.sent += 1
            i += 1
        rows, chosen = 0, list[int]()
        for session in sorted(waiting, key=lambda s: waiting[s]):
            if rows + len(flying[session]) + 1 > BATCH:
                break
            chosen.append(session)
            rows += len(flying[session]) + 1
        now += latency(rows)
        for session in chosen:
            flying[session].insert(0, waiting.pop(session))
            if len(flying[session]) >= STEPS:
                shown(tally, flying[session].pop(), now, deadline)
    tally.admitted = tally.sent
    return tally


def fifo(sessions: int, seconds: float, seed: int, deadline: int = NEVER) -> Tally:
    """One frame after the other, all its steps, as a lock around the model does."""
    tally = Tally()
    now = 0
    for at, _, captured in arrivals(sessions, seconds, seed):
        now = max(now, at) + STEPS * latency(1)
        shown(tally, captured, now, deadline)
    tally.sent = tally.admitted = len(tally.ages_ms)
    return tally


def shown(tally: Tally, captured: int, now: int, deadline: int) -> None:
    age = now - captured
    tally.ages_ms.append(age / MS)
    tally.in_time += age <= deadline
    tally.late += age > deadline


# ---------------------------------------------------------------- the figures


def latencies(seconds: float, seeds: Sequence[int]) -> dict[str, float]:
    """p50 and p99 of a frame's age when it is shown, no deadlines, all policies on the same cameras."""
    summary: dict[str, float] = {}
    for sessions in (1, 3, 5, 6):
        ages: dict[str, list[float]] = {"ours": [], "lockstep": [], "fifo": []}
        skipped = sent = 0
        for seed in seeds:
            tally, _ = run_virtual(ours(sessions, seconds, seed, SECOND, BATCH, ()))
            ages["ours"] += tally.ages_ms
            skipped, sent = skipped + tally.missed, sent + tally.sent
            ages["lockstep"] += lockstep(sessions, seconds, seed).ages_ms
            ages["fifo"] += fifo(sessions, seconds, seed).ages_ms
        for policy, its in ages.items():
            p50, p99 = percentile(its, 0.5), percentile(its, 0.99)
            line(
                figure="pool_latency",
                policy=policy,
                sessions=sessions,
                p50_ms=round(p50, 1),
                p99_ms=round(p99, 1),
                frames=len(its),
                skipped_share=round(skipped / sent, 4) if policy == "ours" else None,
            )
            if policy == "ours":
                summary |= {
                    f"pool_p50_ms_{sessions}": round(p50, 1),
                    f"pool_p99_ms_{sessions}": round(p99, 1),
                }
    return summary


def overload(seconds: float, seeds: Sequence[int]) -> dict[str, float]:
    """1.5 times what the device can do: eight sessions, each frame due 100 ms after its capture."""
    sessions = 8  # 240 rows a second; at batches of 8 the device does 159
    summary: dict[str, float] = {}
    plans: dict[str, Callable[[int], tuple[Tally, DevicePool | None]]] = {
        "ours, admission and ladder": lambda seed: run_virtual(
            ours(sessions, seconds, seed, BUDGET, 8, ("steps-1", "fps*0.5", "passthrough"))
        ),
        "ours, everybody let in": lambda seed: run_virtual(ours(sessions, seconds, seed, BUDGET, 8, ())),
        "lockstep": lambda seed: (lockstep(sessions, seconds, seed, BUDGET), None),
        "fifo": lambda seed: (fifo(sessions, seconds, seed, BUDGET), None),
    }
    for policy, run in plans.items():
        total = Tally()
        for seed in seeds:
            tally, _ = run(seed)
            for name in ("sent", "admitted", "in_time", "missed", "late"):
                setattr(total, name, getattr(total, name) + getattr(tally, name))
        missed = (total.admitted - total.in_time) / total.admitted
        shown_fps = total.in_time / len(seeds) / seconds / sessions
        line(
            figure="overload",
            policy=policy,
            sessions=sessions,
            load=1.5,
            in_time_fps_per_session=round(shown_fps, 2),
            admitted_share=round(total.admitted / total.sent, 3),
            miss_rate=round(missed, 4),
            shown_late_share=round(total.late / max(1, total.in_time + total.late), 4),
        )
        if policy == "ours, admission and ladder":
            summary = {"overload_miss_rate": round(missed, 4), "overload_in_time_fps": round(shown_fps, 2)}
        elif policy == "ours, everybody let in":
            summary["overload_no_admission_late_share"] = round(
                total.late / max(1, total.in_time + total.late), 4
            )
    return summary


# ---------------------------------------------------------------- what a row costs, in real time


def picture_model() -> Picture:
    return Picture()


class Picture:
    """Gives a picture back: all that is measured is the way there and back."""

    def batch_key(self, row: Row) -> tuple[int, ...]:
        return row.payload.shape

    def forward(self, rows: Sequence[Row]) -> list[Any]:
        return [row.payload for row in rows]

    def commit(self, row: Row, result: Any) -> Any:
        row.state["previous"] = result
        return result


async def overhead(kind: Literal["thread", "process"], shape: tuple[int, ...], rows: int) -> float:
    """ms per row: one after the other, its picture and its state of the same size there and back."""
    clock = MonotonicClock()
    device = DevicePool("b", PoolPlan(kind=kind, workers=1), clock)
    await device.rows.load(ModelSpec("picture", "pools:picture_model"))
    x, state = np.zeros(shape, np.uint8), dict[str, Any]()
    times: list[float] = []
    for _ in range(rows):
        start = clock.now()
        await device.rows.run("picture", Row(x, state=state, session="s", epoch=0))
        times.append((clock.now() - start) / MS)
    device.close()
    return percentile(times, 0.5)


def overheads(rows: int) -> dict[str, float]:
    summary: dict[str, float] = {}
    for kind in ("thread", "process"):
        for shape in ((256, 256, 3), (480, 640, 3)):
            ms = asyncio.run(overhead(kind, shape, rows))
            line(figure="row_overhead", kind=kind, shape=shape, p50_ms=round(ms, 3), rows=rows)
            summary[f"{kind}_row_ms_{shape[0]}p"] = round(ms, 3)
    return summary


def main() -> None:
    full = "--full" in sys.argv
    seconds, seeds = (60.0, range(8)) if full else (60.0, range(1))
    line(
        conditions={
            "L_ms": "5.0 + 5.65 rows",
            "fps": FPS,
            "steps": STEPS,
            "max_rows": BATCH,
            "jitter_ms": JITTER_MS,
            "seconds": seconds,
            "seeds": len(seeds),
            "clock": "virtual",
        }
    )
    note("latency of 1, 3, 5, 6 sessions …")
    summary = latencies(seconds, list(seeds))
    note("overload …")
    summary |= overload(seconds, list(seeds))
    note("overhead …")
    summary |= overheads(1000 if full else 200)
    line(area="pools", **summary)


if __name__ == "__main__":
    main()
