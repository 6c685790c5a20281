"""Where blocking work runs: a few threads, earliest deadline first.

A stage never computes on the event loop. Work that can no longer start in time is dropped before it runs.
Threads are daemons: a wedged native call must not keep the process from exiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from .clock import NEVER, SECOND, Clock, MonotonicClock
from .stage import DeadlineMissed, StageError

T = TypeVar("T")

WEDGED = 30 * SECOND  # a call that runs for so long is given up for lost: another thread takes its place
SPARES = 3  # times `workers` threads at most, wedged ones included


@dataclass(slots=True)
class _Job:
    fn: Callable[..., Any]
    args: tuple[object, ...]
    deadline: int
    future: asyncio.Future[Any] | None  # None: nobody waits


@dataclass(slots=True)
class PoolStats:
    """Counts since the start."""

    done: int = 0
    missed: int = 0
    failed: int = 0
    waiting: int = 0
    running: int = 0
    busy: int = 0  # ns of work, summed over the threads


class ThreadPool:
    """Up to `workers` threads, started when first needed."""

    def __init__(self, name: str, workers: int, clock: Clock | None = None) -> None:
        if workers < 1:
            raise ValueError(f"pool {name!r} needs at least one worker, got {workers}")
        self.name = name
        self.workers = workers
        self.stats = PoolStats()
        self._clock: Clock = clock or MonotonicClock()
        self._ready = threading.Condition()
        self._heap: list[tuple[int, int, _Job]] = []
        self._order = itertools.count()  # first come first served among equal deadlines
        self._threads: list[threading.Thread] = []
        self._began: dict[int, int] = {}  # thread → when its present call began
        self._closed = False

    async def call(self, fn: Callable[..., T], *args: object, deadline: int = NEVER) -> T:
        """Run `fn(*args)` on a thread of the pool.

        Raises: DeadlineMissed when its turn came after `deadline`; StageError when the pool is closed;
        whatever `fn` raises. When the caller is cancelled, work that has not started never does.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        if not self._push(_Job(fn, args, deadline, future)):
            raise StageError(f"pool {self.name!r} is closed")
        return await future

    def post(self, fn: Callable[[], None], order: int) -> None:
        """Run `fn` too, from any thread, when its turn comes: `order` stands for its deadline but drops
        nothing. `fn` raises nothing. Nothing happens when the pool is closed."""
        self._push(_Job(fn, (), order, None))

    def close(self) -> None:
        """Refuse new work, cancel what waits; what runs is left to end. Idempotent."""
        with self._ready:
            self._closed = True
            for _, _, job in self._heap:
                _settle(job, None, asyncio.CancelledError())
            self._heap.clear()
            self._ready.notify_all()

    def _push(self, job: _Job) -> bool:
        with self._ready:
            if self._closed:
                return False
            heapq.heappush(self._heap, (job.deadline, next(self._order), job))
            self.stats.waiting = len(self._heap)
            free = len(self._threads) - len(self._began)
            if len(self._heap) > free and self._may_spawn():
                self._spawn()
            self._ready.notify()
        return True

    def _may_spawn(self) -> bool:
        lost = self._clock.now() - WEDGED
        sound = len(self._threads) - sum(began < lost for began in self._began.values())
        return sound < self.workers and len(self._threads) < SPARES * self.workers

    def _spawn(self) -> None:
        name = f"pool-{self.name}-{len(self._threads)}"
        thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _work(self) -> None:
        while True:
            with self._ready:
                while not self._heap:
                    if self._closed:
                        return
                    self._ready.wait()
                job = heapq.heappop(self._heap)[2]
                self.stats.waiting = len(self._heap)
                if job.future is not None and job.future.cancelled():
                    continue
                start = self._clock.now()
                if start > job.deadline and job.future is not None:
                    self.stats.missed += 1
                    _settle(job, None, DeadlineMissed(f"pool {self.name!r}: its turn came too late"))
                    continue
                self.stats.running += 1
                self._began[threading.get_ident()] = start
            result, error = _run(job)
            with self._ready:
                self.stats.running -= 1
                del self._began[threading.get_ident()]
                self.stats.busy += self._clock.now() - start
                if job.future is None:
                    pass  # a turn of the row pool, which counts its rows itself
                elif error is None:
                    self.stats.done += 1
                else:
                    self.stats.failed += 1
            _settle(job, result, error)
            del job, result, error  # a sleeping thread must not keep a frame alive


def _run(job: _Job) -> tuple[Any, BaseException | None]:
    try:
        return job.fn(*job.args), None
    except BaseException as e:  # noqa: BLE001 - the boundary: every error belongs to the caller, who awaits it
        return None, e


def _settle(job: _Job, result: object, error: BaseException | None) -> None:
    future = job.future
    if future is None:
        assert error is None or isinstance(error, asyncio.CancelledError), f"a posted function raised {error}"
        return

    def settle() -> None:
        if future.done():
            return
        if isinstance(error, asyncio.CancelledError):
            future.cancel()
        elif isinstance(error, StopIteration):  # a future refuses to carry it
            future.set_exception(RuntimeError("the work raised StopIteration"))
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        future.get_loop().call_soon_threadsafe(settle)
