"""A pool of rows: sessions await results, a driver runs batches, the queue decides.

The pool itself has no threads. A driver calls `take` and `execute`: `ThreadDriver` from the threads of a
`ThreadPool`, a simulation from a task on the virtual clock. A backend does the forward: in this process,
or in another one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

from .admission import Admissions
from .clock import NEVER, SECOND, Clock
from .cost_model import CostModel
from .errors import LastingError
from .owned_tasks import of_nobody
from .pool_seams import Backend, Batch, Commit, Driver, Rejected, RowStats
from .row_queue import Job, RowQueue
from .rows import Again, DeadlineMissed, Flushed, ModelSpec, PoolFailed, Row, RowModel
from .shares import Shares
from .stage import StageError

log = logging.getLogger(__name__)

WARM_BUDGET = 10 * SECOND  # for measuring one model: slow ones are measured at fewer sizes


class RowPool:
    """Rows of all sessions on one device. `run`, `load` and `warm` on the loop; the rest from any thread."""

    def __init__(
        self,
        name: str,
        clock: Clock,
        backend: Backend,
        driver: Driver,
        *,
        max_rows: int = 8,
        workers: int = 1,
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.name = name
        self.stats = RowStats()
        self.costs = CostModel()
        self.shares = Shares(weights, workers)
        self.pushes = 0
        self._clock = clock
        self._backend = backend
        self._driver = driver
        self._max_rows = max_rows
        self._queue = RowQueue(self.costs, self.shares, max_rows)
        self._lock = threading.Lock()
        self.admissions = Admissions(self.costs, max_rows, workers, lock=self._lock)
        self._loads: dict[str, tuple[ModelSpec, asyncio.Task[None]]] = {}
        self._ready: set[str] = set()
        self._adopted: dict[str, set[str]] = {}  # name → sessions that use it
        self._epochs: dict[tuple[str, str], int] = {}
        self._closed = False
        backend.attach(self._wake)

    # ------------------------------------------------------------ on the loop

    async def load(self, spec: ModelSpec) -> None:
        """Make a model off the loop, once for all sessions. Raises: StageError in words; LastingError where another
        try would fail the same way."""
        known = self._loads.get(spec.name)
        if known is not None and known[0] != spec and isinstance(spec.factory, str):
            raise StageError(
                f"pool {self.name!r} has another model under the name {spec.name!r}: "
                f"{known[0].factory} {dict(known[0].args)}, not {spec.factory} {dict(spec.args)}"
            )
        if known is None:
            # it serves all sessions: it must not end with the one that asked first
            task = of_nobody(self._driver.blocking(partial(self._backend.load, spec)), f"load {spec.name}")
            task.add_done_callback(_seen)
            known = self._loads[spec.name] = (spec, task)
        try:
            await asyncio.shield(known[1])
        except asyncio.CancelledError:
            raise
        except Exception as e:
            self._loads.pop(spec.name, None)  # the next session may have better luck
            what = f"model {spec.name!r} cannot be loaded"
            if isinstance(e, LastingError):
                raise LastingError(f"{what}: {e}") from e
            raise StageError(f"{what}: {error_words(e)}") from e
        self._ready.add(spec.name)

    def adopt(self, model: RowModel, session: str) -> str:
        """Take over a model object that a stage made itself; it stays as long as a session uses it.

        Returns its name for `run`. Raises: StageError when the pool computes in another process.
        """
        name = f"{type(model).__qualname__}@{id(model):x}"
        if name not in self._ready:
            self._backend.adopt(name, model)
            self._ready.add(name)
        self._adopted.setdefault(name, set()).add(session)
        return name

    async def run(self, model: str, row: Row) -> Any:
        """The stage's output for one row.

        Raises: DeadlineMissed, Flushed, PoolFailed; LastingError when the model cannot be loaded any more; StageError
        when there is no such model or pool.
        """
        self._check(model)
        now = self._clock.now()
        if row.deadline < now:
            self.stats.missed += 1
            raise DeadlineMissed(f"pool {self.name!r}: the row came {(now - row.deadline) / 1e6:.0f} ms late")
        loop = asyncio.get_running_loop()
        job = Job(row, model, self._backend.key(model, row), loop.create_future())
        with self._lock:
            if self._stale(row):
                self.stats.flushed += 1
                raise Flushed(f"pool {self.name!r}: the row's epoch is over")
            if not self._queue.push(job):
                self.stats.failed += 1
                raise PoolFailed(f"pool {self.name!r}: session {row.session!r} has too many rows waiting")
            self.pushes += 1
        self._driver.kick(self)
        assert isinstance(job.waiter, asyncio.Future)
        if row.deadline == NEVER:
            return await job.waiter
        # while a forward takes long, or hangs, those who wait behind it must not
        timer = loop.call_later((row.deadline - now) / SECOND, self._expire, job)
        try:
            return await job.waiter
        finally:
            timer.cancel()

    async def warm(self, model: str, example: Callable[[], Row]) -> None:
        """Measure the model at 1, 2, 4, … rows before media comes; nothing is committed.

        Done once per batch key. Raises: PoolFailed when the model fails on the example.
        """
        self._check(model)
        key = self._backend.key(model, example())
        with self._lock:
            if self.costs.measured(model, key):
                return
        spent = 0
        sizes = [n for n in (1, 2, 4, 8, 16, 32, 64) if n < self._max_rows] + [self._max_rows]
        for size in sizes:
            # the first one of each size pays for caches and compilation: the second counts
            for _ in range(3 if size == 1 else 2):
                if spent > WARM_BUDGET:
                    return
                rows = [example() for _ in range(size)]
                try:
                    forward = partial(self._backend.forward, model, rows)
                    cost = await self._driver.measure(model, forward, size)
                except Exception as e:
                    raise PoolFailed(f"model {model!r} failed on its example: {error_words(e)}") from e
                spent += cost
                with self._lock:
                    self.costs.observe(model, key, size, cost)
                    self._queue.ran(model, key, 1, self._clock.now())

    def flush(self, session: str, scope: str, epoch: int) -> None:
        """Rows of `scope` older than `epoch` are void: those that wait end now, those that run uncommitted."""
        with self._lock:
            self._epochs[session, scope] = epoch
            gone = self._queue.remove(lambda job: job.row.session == session and self._stale(job.row))
            self.stats.flushed += len(gone)
        self._end([(job, None, Flushed(f"pool {self.name!r}: flushed")) for job in gone])

    def forget(self, session: str) -> None:
        """The session is closed: nothing of it stays."""
        with self._lock:
            gone = self._queue.remove(lambda job: job.row.session == session)
            self.stats.flushed += len(gone)
            self._queue.forget(session)
            for key in [k for k in self._epochs if k[0] == session]:
                del self._epochs[key]
        self.admissions.release(session)
        for name, users in list(self._adopted.items()):
            users.discard(session)
            if not users:
                del self._adopted[name]
                self._ready.discard(name)
                self._backend.disown(name)
        self._end([(job, None, Flushed(f"pool {self.name!r}: the session is closed")) for job in gone])

    def close(self) -> None:
        """Refuse new rows and end those that wait. Idempotent."""
        with self._lock:
            self._closed = True
            gone = self._queue.remove(lambda job: True)
            self.stats.flushed += len(gone)
        self._end([(job, None, Flushed(f"pool {self.name!r} is closed")) for job in gone])
        self._driver.close()
        self._backend.close()

    def utilisation(self) -> float:
        """Share of what the device can do that rows took in the last seconds."""
        with self._lock:
            return self.shares.utilisation(self._clock.now())

    @property
    def waiting(self) -> int:
        return self._queue.waiting

    def waits(self, session: str, node: str) -> bool:
        with self._lock:
            return self._queue.holds(lambda job: job.row.session == session and job.row.node == node)

    # ------------------------------------------------------------ for drivers

    @property
    def next_deadline(self) -> int:
        """Of the most urgent row that waits."""
        with self._lock:
            return self._queue.next_deadline()

    def take(self) -> Batch | None:
        """What to run next; None when nothing can run now. The caller must `execute` it."""
        if not self._backend.ready:
            return None
        with self._lock:
            now = self._clock.now()
            taken = self._queue.take(now)
            self.stats.missed += len(taken.missed)
            self.stats.cancelled += len(taken.unwanted)
        late = f"pool {self.name!r}: there is not enough time left"
        self._end([(job, None, DeadlineMissed(late)) for job in taken.missed])
        return Batch(taken.run, now) if taken.run else None

    def execute(self, batch: Batch) -> None:
        """Run the forward, commit what is still wanted, tell everybody. Never raises."""
        try:
            commits = self._backend.forward(batch.model, batch.rows)
            if len(commits) != len(batch.jobs):
                raise ValueError(f"{len(commits)} results for {len(batch.jobs)} rows")
        except BaseException as e:  # noqa: BLE001 - the boundary: a model's error belongs to its rows
            self._failed(batch, e)
            return
        now = self._clock.now()
        cost = now - batch.start
        with self._lock:
            self.stats.busy += cost
            self.stats.batches[len(batch.jobs)] += 1
            self.costs.observe(batch.model, batch.jobs[0].key, len(batch.jobs), cost)
            # at the price of a full batch: a device that runs small ones all the time still has room
            unit = self.costs.per_row(batch.model, batch.jobs[0].key, self._max_rows, 1, NEVER)
            for job in batch.jobs:
                self.shares.charge(job.flow, unit, now)
        ends = [self._commit(job, commit, now) for job, commit in zip(batch.jobs, commits, strict=True)]
        self._end([end for end in ends if end is not None])

    # ------------------------------------------------------------ inside

    def _check(self, model: str) -> None:
        if self._closed:
            raise StageError(f"pool {self.name!r} is closed")
        if model not in self._ready:
            names = ", ".join(sorted(self._ready)) or "none"
            raise StageError(f"pool {self.name!r} has no model {model!r}; loaded: {names}")

    def _wake(self) -> None:
        """The backend is ready again."""
        with self._lock:
            self.pushes += 1
        self._driver.kick(self)

    def _stale(self, row: Row) -> bool:
        return row.epoch < self._epochs.get((row.session, row.scope), -1)

    def _expire(self, job: Job) -> None:
        """The deadline has come: a row that still waits ends now, one that runs is let finish."""
        with self._lock:
            gone = self._queue.remove(lambda other: other is job)
            self.stats.missed += len(gone)
        late = f"pool {self.name!r}: its turn did not come in time"
        self._end([(job, None, DeadlineMissed(late)) for job in gone])

    def _commit(self, job: Job, commit: Commit, now: int) -> _End | None:
        """None when the row goes on with another forward."""
        with self._lock:
            if ended := self._unwanted(job):
                return ended
        step, key = job.row, job.key
        try:
            output = commit()
            if isinstance(output, Again):
                lane = job.row.lane + 1 if output.lane is None else output.lane
                step = replace(
                    job.row, payload=output.payload, lane=lane, further=max(0, job.row.further - 1)
                )
                key = self._backend.key(job.model, step)
        except BaseException as e:  # noqa: BLE001 - the boundary, as above
            return self._give_up(job, e)
        with self._lock:
            if not isinstance(output, Again):
                self._queue.done(job)
                self.stats.done += 1
                self.stats.late += job.row.deadline < now
                return (job, output, None)
            if ended := self._unwanted(job):
                return ended
            self._queue.done(job)  # of its old lane: only now may that go on
            job.row.payload, job.row.lane, job.row.further = step.payload, step.lane, step.further
            job.key, job.alone, job.started = key, False, True
            self._queue.push_again(job, front=False)
            self.pushes += 1
        return None

    def _unwanted(self, job: Job) -> _End | None:
        """The end of a row that nobody waits for any more; its state stays as it is."""
        if job.waiter.done():
            self.stats.cancelled += 1
        elif self._closed or self._stale(job.row):
            self.stats.flushed += 1
        else:
            return None
        self._queue.done(job)
        return (job, None, Flushed(f"pool {self.name!r}: flushed while it ran"))

    def _failed(self, batch: Batch, error: BaseException) -> None:
        if len(batch.jobs) == 1:
            self._end([self._give_up(batch.jobs[0], error)])
            return
        # one of them is to blame: each runs again by itself, the others lose nothing but time
        log.warning(
            "pool %s: a forward of %d rows failed: %s", self.name, len(batch.jobs), error_words(error)
        )
        ends: list[_End] = []
        with self._lock:
            for job in batch.jobs:
                if ended := self._unwanted(job):
                    ends.append(ended)
                    continue
                self._queue.done(job)
                job.alone = True
                self._queue.push_again(job, front=True)
                self.pushes += 1
                self.stats.retried += 1
        self._end(ends)

    def _give_up(self, job: Job, error: BaseException) -> _End:
        failure: StageError
        if isinstance(error, LastingError):  # the backend has told it
            failure = LastingError(f"pool {self.name!r}: model {job.model!r} cannot be loaded: {error}")
            self._loads.pop(job.model, None)  # the next session may have better luck
        else:
            log.error(
                "pool %s: model %s failed: %s", self.name, job.model, error_words(error), exc_info=error
            )
            failure = PoolFailed(f"pool {self.name!r}: model {job.model!r} failed: {error_words(error)}")
        failure.__cause__ = error
        with self._lock:
            self._queue.done(job)
            self._queue.suspect(job.row.session)
            self.stats.failed += 1
        return (job, None, failure)

    def _end(self, ends: Sequence[_End]) -> None:
        """Tell those who wait, each on its loop."""
        loops: dict[asyncio.AbstractEventLoop, list[_End]] = {}
        for end in ends:
            assert isinstance(end[0].waiter, asyncio.Future)
            loops.setdefault(end[0].waiter.get_loop(), []).append(end)
        for loop, its in loops.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(_settle, its)


_End: TypeAlias = tuple[Job, Any, BaseException | None]


def _seen(task: asyncio.Task[None]) -> None:
    if not task.cancelled():  # whoever still waits hears of a failure; nobody else needs to
        task.exception()


def _settle(ends: Sequence[_End]) -> None:
    for job, output, error in ends:
        assert isinstance(job.waiter, asyncio.Future)
        if job.waiter.done():
            continue
        if error is None:
            job.waiter.set_result(output)
        else:
            job.waiter.set_exception(error)


def error_words(error: BaseException) -> str:
    """The error's first line, for people."""
    text = str(error).strip().splitlines()
    if text and isinstance(error, Rejected):
        return text[0][:300]
    return f"{type(error).__name__}: {text[0]}"[:300] if text else type(error).__name__
