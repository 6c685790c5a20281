"""Where blocking work runs: a few threads per pool, earliest deadline first.

A stage never computes on the event loop. Work that can no longer start in time is dropped before it runs.
Threads are daemons: a wedged native call must not keep the process from exiting.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from .clock import NEVER, Clock, MonotonicClock
from .stage import DeadlineMissed, StageError

T = TypeVar("T")


@dataclass(slots=True)
class _Job:
    fn: Callable[..., Any]
    args: tuple[object, ...]
    deadline: int
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]


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
        self._closed = False

    async def call(self, fn: Callable[..., T], *args: object, deadline: int = NEVER) -> T:
        """Run `fn(*args)` on a thread of the pool.

        Raises: DeadlineMissed when its turn came after `deadline`; StageError when the pool is closed;
        whatever `fn` raises. When the caller is cancelled, work that has not started never does.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        with self._ready:
            if self._closed:
                raise StageError(f"pool {self.name!r} is closed")
            heapq.heappush(self._heap, (deadline, next(self._order), _Job(fn, args, deadline, loop, future)))
            self.stats.waiting = len(self._heap)
            if len(self._threads) < self.workers and self.stats.running + len(self._heap) > len(
                self._threads
            ):
                self._spawn()
            self._ready.notify()
        return await future

    def close(self) -> None:
        """Refuse new work, cancel what waits; what runs is left to end. Idempotent."""
        with self._ready:
            self._closed = True
            for _, _, job in self._heap:
                _settle(job, None, asyncio.CancelledError())
            self._heap.clear()
            self._ready.notify_all()

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
                if job.future.cancelled():
                    continue
                start = self._clock.now()
                if start > job.deadline:
                    self.stats.missed += 1
                    _settle(job, None, DeadlineMissed(f"pool {self.name!r}: its turn came too late"))
                    continue
                self.stats.running += 1
            result, error = _run(job)
            with self._ready:
                self.stats.running -= 1
                self.stats.busy += self._clock.now() - start
                if error is None:
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
    def settle() -> None:
        if job.future.done():
            return
        if isinstance(error, asyncio.CancelledError):
            job.future.cancel()
        elif isinstance(error, StopIteration):  # a future refuses to carry it
            job.future.set_exception(RuntimeError("the work raised StopIteration"))
        elif error is not None:
            job.future.set_exception(error)
        else:
            job.future.set_result(result)

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        job.loop.call_soon_threadsafe(settle)


@dataclass(slots=True)
class Pools:
    """The pools of a process, by name, made when first asked for and shared by all sessions."""

    workers: Mapping[str, int] = field(default_factory=dict[str, int])
    clock: Clock = field(default_factory=MonotonicClock)
    made: dict[str, ThreadPool] = field(default_factory=dict[str, ThreadPool])

    def get(self, name: str) -> ThreadPool:
        if name not in self.made:
            # two at least: one wedged call must not stop every session
            count = self.workers.get(name, max(2, os.cpu_count() or 2))
            self.made[name] = ThreadPool(name, count, self.clock)
        return self.made[name]

    def close(self) -> None:
        for pool in self.made.values():
            pool.close()
