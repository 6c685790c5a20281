"""Live figures of a node, made when asked for: the data path only counts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .clock import MS, SECOND

if TYPE_CHECKING:
    from .runner import Runner

EVERY = 5 * SECOND  # between two `late` events of a node
LEAST_WINDOW = 250 * MS  # several readers may ask at once; each then sees the same rates


class NodeRates:
    """What two readings tell: rates over the time between them."""

    __slots__ = ("_ages", "_at", "_busy", "_count", "age_ms", "age_p95_ms", "busy_pct", "fps")

    def __init__(self, now: int) -> None:
        self.fps = 0.0
        self.busy_pct = 0.0
        self.age_ms = 0.0
        self.age_p95_ms = 0.0
        self._at = now
        self._count = 0
        self._busy = 0
        self._ages: list[int] = []

    def update(self, count: int, busy: int, ages: list[int], now: int) -> None:
        """count, busy (ns): totals; ages: the summed age histogram, see `Edge.ages`."""
        elapsed = now - self._at
        if elapsed < LEAST_WINDOW:
            return
        self.fps = (count - self._count) * SECOND / elapsed
        self.busy_pct = min(100.0, (busy - self._busy) * 100 / elapsed)
        recent = [a - b for a, b in zip(ages, self._ages, strict=True)] if self._ages else ages
        self.age_ms = percentile_ms(recent, 0.5)
        self.age_p95_ms = percentile_ms(recent, 0.95)
        self._at, self._count, self._busy, self._ages = now, count, busy, ages


def percentile_ms(ages: list[int], q: float) -> float:
    """`q` in [0, 1] of a histogram with buckets of 2^20 ns; 0.0 when it is empty."""
    total = sum(ages)
    seen = 0
    for bucket, n in enumerate(ages):
        seen += n
        if n and seen >= q * total:
            return (bucket + 0.5) * (1 << 20) / MS
    return 0.0


def pool_stats(runners: Iterable[Runner]) -> dict[str, dict[str, Any]]:
    """By name: what all sessions together do in the pools that these nodes use."""
    return {pool.name: pool.stats() for runner in runners for pool in runner.pools}


class Lateness:
    """Tells of nodes whose frames die of their deadline: at once, then every `EVERY` while it goes on."""

    def __init__(self) -> None:
        self._told: dict[str, tuple[int, int]] = {}  # node → frames told of, when

    def due(self, runner: Runner, now: int) -> int:
        """Late frames to tell of now: those since the last time; 0 for none."""
        late = runner.late
        told, at = self._told.get(runner.node, (0, -EVERY))
        if late == told or now - at < EVERY:
            return 0
        self._told[runner.node] = (late, now)
        return late - told


def node_stats(runner: Runner, rates: NodeRates, now: int) -> dict[str, Any]:
    """One row of `stats` (docs/protocol.md)."""
    edges = runner.inputs
    outputs = runner.out.puts()
    count = runner.processed if edges else outputs
    ages = [sum(column) for column in zip(*(e.ages for e in edges), strict=True)] if edges else []
    rates.update(count, runner.busy, ages, now)
    lost: dict[str, int] = {}
    for edge in edges:
        for reason, n in edge.lost.items():
            lost[reason] = lost.get(reason, 0) + n
    late = lost.pop("late", 0) + runner.missed
    level, rungs = max((pool.rung for pool in runner.pools), default=(0, 0))
    lost.pop("thinned", 0)  # asked for in the graph: no loss
    flushed = lost.pop("flushed", 0)  # a barge-in's work
    return {
        "name": runner.node,
        "fps": round(rates.fps, 1),
        "age_ms": round(rates.age_ms, 1),
        "age_p95_ms": round(rates.age_p95_ms, 1),
        "drops": sum(lost.values()),
        "late": late,
        "flushed": flushed,
        "queue": sum(len(e.queue) for e in edges),
        "busy_pct": round(rates.busy_pct, 1),
        "frames": count,
        "pool": ", ".join(sorted(pool.name for pool in runner.pools)),
        "level": level,  # how far down its ladder it stands; 0: full quality
        "levels": rungs,
        "restarts": runner.restarts,
        "state": runner.state,
        "error": runner.error,
    }
