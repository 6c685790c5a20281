"""Rows on threads of this process: the models are ordinary objects, shared by all sessions."""

from __future__ import annotations

import asyncio
import importlib
import threading
from collections.abc import Callable, Hashable, Sequence
from functools import partial

from .clock import Clock, MonotonicClock
from .errors import LastingError, one_line
from .owned_tasks import of_nobody
from .pool_seams import Commit, Turns
from .rows import ModelSpec, Row, RowModel
from .stage import StageError
from .thread_pool import SPARES, WEDGED, ThreadPool


class ThreadBackend:
    """Models in this process."""

    ready = True
    restarts = 0

    def __init__(self) -> None:
        self.models: dict[str, RowModel] = {}

    def attach(self, wake: Callable[[], object]) -> None:
        """It is always ready."""

    def load(self, spec: ModelSpec) -> None:
        self.models[spec.name] = make_model(spec)

    def adopt(self, name: str, model: RowModel) -> None:
        self.models[name] = model

    def disown(self, name: str) -> None:
        self.models.pop(name, None)

    def key(self, model: str, row: Row) -> Hashable:
        return self.models[model].batch_key(row)

    def forward(self, model: str, rows: Sequence[Row]) -> Sequence[Commit]:
        its = self.models[model]
        results = its.forward(rows)
        return [partial(its.commit, row, result) for row, result in zip(rows, results, strict=True)]

    def close(self) -> None:
        self.models.clear()


def make_model(spec: ModelSpec) -> RowModel:
    """Call the factory.

    Raises: LastingError in the factory's words, where the same call would fail again: a file that is broken or not there,
    a value that cannot be used, a factory that is not written "module:name". What the import raises.
    """
    try:
        if not isinstance(spec.factory, str):
            return spec.factory(**spec.args)
        module, _, name = spec.factory.partition(":")
        if not name:
            raise ValueError(f"a model's factory is written module:name, not {spec.factory!r}")
        return getattr(importlib.import_module(module), name)(**spec.args)
    except (ValueError, StageError, FileNotFoundError) as e:
        raise LastingError(one_line(e)) from e


class ThreadDriver:
    """Runs turns of a row pool on a `ThreadPool`, at most `workers` at a time.

    One turn is one forward: between two of them other calls of the same pool get their turn by deadline.
    """

    def __init__(self, threads: ThreadPool, workers: int, clock: Clock | None = None) -> None:
        self._threads = threads
        self._loader = ThreadPool(f"{threads.name}-load", 1, clock)
        self._clock: Clock = clock or MonotonicClock()
        self._workers = workers
        self._turns = 0
        self._active: dict[int, int] = {}  # turn → when it began
        self._lock = threading.Lock()

    def kick(self, pool: Turns) -> None:
        with self._lock:
            lost = self._clock.now() - WEDGED
            sound = sum(began >= lost for began in self._active.values())
            if sound >= self._workers or len(self._active) >= SPARES * self._workers or not pool.waiting:
                return
            self._turns += 1
            turn = self._turns
            self._active[turn] = self._clock.now()
        self._threads.post(partial(self._turn, pool, turn), pool.next_deadline)

    async def blocking(self, work: Callable[[], None]) -> None:
        await self._loader.call(work)  # seconds of loading must not stand before other sessions' rows

    def close(self) -> None:
        self._loader.close()

    async def measure(self, model: str, forward: Callable[[], object], rows: int) -> int:
        return await self._threads.call(self._timed, forward)

    def _timed(self, forward: Callable[[], object]) -> int:
        start = self._clock.now()
        forward()
        return self._clock.now() - start

    def _turn(self, pool: Turns, turn: int) -> None:
        with self._lock:
            self._active[turn] = self._clock.now()
        seen = pool.pushes
        batch = pool.take()
        if batch is not None:
            if pool.waiting:
                self.kick(pool)  # rows that could not join: another worker may be free
            pool.execute(batch)
        with self._lock:
            del self._active[turn]
        # what came since `take` found all workers active; what a batch left behind waits for this one
        if batch is not None or pool.pushes != seen:
            self.kick(pool)


class SimulatedDriver:
    """Turns on the virtual clock: a forward takes `latency(model, rows)` ns, and is made at its end."""

    def __init__(self, clock: Clock, latency: Callable[[str, int], int], workers: int = 1) -> None:
        self._clock = clock
        self._latency = latency
        self._workers = workers
        self._tasks: set[asyncio.Task[None]] = set()

    def kick(self, pool: Turns) -> None:
        if len(self._tasks) < self._workers and pool.waiting:
            task = of_nobody(self._turns(pool), "pool/device")
            self._tasks.add(task)

    async def blocking(self, work: Callable[[], None]) -> None:
        work()

    def close(self) -> None:
        """Its task ends with the rows."""

    async def measure(self, model: str, forward: Callable[[], object], rows: int) -> int:
        cost = self._latency(model, rows)
        await self._clock.sleep(cost)
        forward()
        return cost

    async def _turns(self, pool: Turns) -> None:
        try:
            while (batch := pool.take()) is not None:
                if pool.waiting:
                    self.kick(pool)
                await self._clock.sleep(self._latency(batch.model, len(batch.jobs)))
                pool.execute(batch)
        finally:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.discard(task)
