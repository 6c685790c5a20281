"""Row models for tests of pools, and a pool on the virtual clock."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from penstock.pipeline.clock import MS, LoopClock
from penstock.pipeline.pool_threads import SimulatedDriver, ThreadBackend
from penstock.pipeline.row_pool import RowPool
from penstock.pipeline.rows import Again, ModelSpec, Row


class Counting:
    """state["sum"] grows by each payload committed; payload {"n": int, "steps": int, "bad": bool}."""

    def __init__(self, log: list[list[Row]] | None = None) -> None:
        self.log = log if log is not None else []

    def batch_key(self, row: Row) -> Hashable:
        return "one shape"

    def forward(self, rows: Sequence[Row]) -> list[Any]:
        self.log.append(list(rows))
        if any(row.payload.get("bad") for row in rows):
            raise ValueError("this row is bad")
        return [row.state["sum"] + row.payload["n"] for row in rows]

    def commit(self, row: Row, result: int) -> Any:
        row.state["sum"] = result
        steps = row.payload.get("steps", 1)
        return Again(row.payload | {"steps": steps - 1}) if steps > 1 else result


def virtual_pool(
    latency: Callable[[int], int] = lambda rows: (5 + 5 * rows) * MS,
    *,
    max_rows: int = 8,
    workers: int = 1,
    weights: dict[str, float] | None = None,
) -> tuple[RowPool, LoopClock]:
    """A pool whose device takes `latency(rows)` ns of the running virtual loop's time."""
    clock = LoopClock(asyncio.get_running_loop())
    driver = SimulatedDriver(clock, lambda _model, rows: latency(rows), workers)
    pool = RowPool("sim", clock, ThreadBackend(), driver, max_rows=max_rows, workers=workers, weights=weights)
    return pool, clock


async def loaded(pool: RowPool, model: Any = None) -> list[list[Row]]:
    """Load a `Counting` under "m"; the batches that it will run."""
    log: list[list[Row]] = []
    await pool.load(ModelSpec("m", (lambda: model) if model is not None else (lambda: Counting(log))))
    return log


# ---------------------------------------------------------------- by name, for worker processes


class Remote:
    """Adds pictures; can be told to raise, die, stop beating, or hang."""

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain

    def batch_key(self, row: Row) -> Hashable:
        return row.payload["x"].shape

    def forward(self, rows: Sequence[Row]) -> list[Any]:
        for row in rows:
            match row.payload.get("do"):
                case "raise":
                    raise ValueError("told to raise")
                case "die":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "stop":
                    os.kill(os.getpid(), signal.SIGSTOP)
                case "hang":
                    threading.Event().wait()
                case _:
                    pass
        return [row.payload["x"] * self.gain + row.state.get("last", 0) for row in rows]

    def commit(self, row: Row, result: Any) -> Any:
        row.state["last"] = result
        row.state["count"] = row.state.get("count", 0) + 1
        if row.payload.get("wide"):
            return {"wide": np.zeros(row.payload["wide"], np.uint8), "pid": os.getpid()}
        if row.payload.get("again"):
            return Again({"x": result}, 1)
        return {"sum": result, "pid": os.getpid(), "session": row.session}


def remote(gain: float = 1.0) -> Remote:
    return Remote(gain)


def row(session: str = "a", n: int = 1, state: Any = None, **fields: Any) -> Row:
    payload = {"n": n, "steps": fields.pop("steps", 1), "bad": fields.pop("bad", False)}
    return Row(payload, state={"sum": 0} if state is None else state, session=session, epoch=0, **fields)


async def ends(*runs: Any) -> list[Any]:
    return await asyncio.gather(*runs, return_exceptions=True)


class Checkpoint(Remote):
    """A model that is nothing without its file."""


def checkpoint(path: str) -> Checkpoint:
    if Path(path).read_text() != "weights":
        raise ValueError(f"{path} is no checkpoint")
    return Checkpoint(1.0)
