"""The pools of a process: made when first asked for, shared by all sessions."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from .clock import MS, NEVER, Clock, MonotonicClock
from .pool_plan import PoolPlan
from .pool_seams import Backend, Driver
from .pool_threads import ThreadBackend, ThreadDriver
from .process_pool import ProcessBackend
from .row_pool import RowPool
from .thread_pool import ThreadPool

T = TypeVar("T")
log = logging.getLogger(__name__)

ENDS = ("done", "late", "missed", "flushed", "failed", "cancelled", "retried")  # of rows, see RowStats
MakeDriver: TypeAlias = Callable[[ThreadPool, int], Driver]


class DevicePool:
    """One named pool: its threads for calls, its rows, its device."""

    def __init__(
        self, name: str, plan: PoolPlan, clock: Clock, make_driver: MakeDriver = ThreadDriver
    ) -> None:
        self.name = name
        self.plan = plan
        self.threads = ThreadPool(name, plan.threads, clock)
        workers = plan.row_workers
        self.backend: Backend = (
            ProcessBackend(name, workers, hang=plan.hang) if plan.kind == "process" else ThreadBackend()
        )
        self.rows = RowPool(
            name,
            clock,
            self.backend,
            make_driver(self.threads, workers),
            max_rows=plan.batch.max,
            workers=workers,
            weights=plan.share,
        )

    async def call(self, fn: Callable[..., T], *args: object, deadline: int = NEVER) -> T:
        """Run a blocking function on a thread. Raises: see `ThreadPool.call`."""
        return await self.threads.call(fn, *args, deadline=deadline)

    @property
    def ended(self) -> int:
        """Calls and rows so far, well or not: while it grows the pool is at work."""
        rows, calls = self.rows.stats, self.threads.stats
        return sum(getattr(rows, name) for name in ENDS) + calls.done + calls.missed + calls.failed

    def stats(self) -> dict[str, Any]:
        """For people and dashboards; times in ms, utilisation 1.0 = all the device can do."""
        rows, calls = self.rows.stats, self.threads.stats
        batches = dict(rows.batches)  # at once: threads add to it
        forwards = sum(batches.values())
        return {
            "kind": self.plan.kind,
            "device": self.plan.device,
            "waiting": self.rows.waiting + calls.waiting,
            "utilisation": round(self.rows.utilisation(), 3),
            "admitted": round(self.rows.admissions.utilisation(), 3),
            "rows": {name: getattr(rows, name) for name in ENDS},
            "forwards": forwards,
            "batches": {str(size): n for size, n in sorted(batches.items())},
            "rows_per_forward": round(sum(size * n for size, n in batches.items()) / max(forwards, 1), 2),
            "forward_ms": round(rows.busy / max(forwards, 1) / MS, 2),
            "calls": {"done": calls.done, "missed": calls.missed, "failed": calls.failed},
            "restarts": self.backend.restarts,
        }

    def close(self) -> None:
        """Idempotent."""
        self.rows.close()
        self.threads.close()


@dataclass(slots=True)
class Pools:
    """By name. The first graph that uses a pool says how it is made."""

    clock: Clock = field(default_factory=MonotonicClock)
    make_driver: MakeDriver = ThreadDriver
    made: dict[str, DevicePool] = field(default_factory=dict[str, DevicePool])

    def get(self, name: str, plan: PoolPlan | None = None) -> DevicePool:
        """The pool `name`; `plan` is what the asking graph declares for it."""
        pool = self.made.get(name)
        if pool is None:
            made = plan or PoolPlan()
            pool = self.made[name] = DevicePool(name, made, self.clock, self.make_driver)
        elif plan is not None and plan != pool.plan:
            log.warning("pool %s is in use with another declaration: this graph's is ignored", name)
        return pool

    def stats(self) -> dict[str, dict[str, Any]]:
        """By pool: its queue, its batches, and how its rows ended."""
        return {name: pool.stats() for name, pool in self.made.items()}

    def flush(self, session: str, scope: str, epoch: int) -> None:
        """Rows of `scope` older than `epoch` are void, in all pools."""
        for pool in self.made.values():
            pool.rows.flush(session, scope, epoch)

    def forget(self, session: str) -> None:
        """The session is closed."""
        for pool in self.made.values():
            pool.rows.forget(session)

    def close(self) -> None:
        for pool in self.made.values():
            pool.close()
