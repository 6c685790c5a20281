"""Rows in spawned processes: a model that crashes or hangs there costs the rows it ran, and no more.

Weights live in the process, states here: each row brings its state along and takes it back, through shared
memory. A dead or silent process is replaced in the background, while rows wait as long as they may.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

from .clock import SECOND, Clock, MonotonicClock
from .errors import LastingError
from .pool_seams import Commit, Rejected
from .rows import Again, ModelSpec, Row, RowModel
from .shared_arrays import signature
from .stage import StageError
from .worker_process import WorkerLost, WorkerProcess

log = logging.getLogger(__name__)

BACKOFF = SECOND // 5  # before a replacement; doubled for each further one in a row
MAX_BACKOFF = 10 * SECOND
# pauses before a model is tried again whose file may be about to be replaced
RELOADS = (SECOND // 2, SECOND, 2 * SECOND)
# waited for when a process dies between the queue's look and ours, or the free ones lack the model
CHECKOUT_S = 15.0
SOUND = 60 * SECOND  # a process that lived so long starts from the first backoff again


class ProcessBackend:
    """`count` processes, started with the first model."""

    def __init__(
        self, name: str, count: int = 1, *, hang: int = 10 * SECOND, clock: Clock | None = None
    ) -> None:
        self.name = name
        self.restarts = 0
        self.workers: list[WorkerProcess] = []
        self._count = count
        self._hang = hang
        self._clock: Clock = clock or MonotonicClock()
        self._specs: dict[str, ModelSpec] = {}
        self._free: list[WorkerProcess] = []  # the one that waits longest first
        self._freed = threading.Condition()
        self._wake: Callable[[], object] = _nothing
        self._lock = threading.Lock()
        self._losses = 0  # in a row
        self._closed = threading.Event()

    @property
    def ready(self) -> bool:
        return bool(self._free)

    def attach(self, wake: Callable[[], object]) -> None:
        self._wake = wake

    def load(self, spec: ModelSpec) -> None:
        if not isinstance(spec.factory, str):
            raise StageError(
                f"pool {self.name!r} computes in another process: name the factory of {spec.name!r} as "
                f"'module:function', not {spec.factory!r}"
            )
        with self._lock:  # one at a time: each is told to all processes
            while len(self.workers) < self._count:
                self.workers.append(self._start())
                self._put(self.workers[-1])
            for worker in list(self.workers):
                worker.load(spec)
                worker.broken.pop(spec.name, None)
            self._specs[spec.name] = spec

    def adopt(self, name: str, model: RowModel) -> None:
        raise StageError(
            f"pool {self.name!r} computes in another process: load {type(model).__name__} by the name of its "
            f"factory, 'module:function'"
        )

    def disown(self, name: str) -> None:
        """Nothing was ever adopted."""

    def key(self, model: str, row: Row) -> Hashable:
        return signature(row.payload), signature(row.state)

    def forward(self, model: str, rows: Sequence[Row]) -> Sequence[Commit]:
        """Raises: LastingError, WorkerLost, Rejected."""
        worker = self._checkout(model)
        try:
            ends = worker.run(model, rows, self._hang)
        except (Rejected, LastingError, TypeError):  # the process is as good as before
            self._give_back(worker)
            raise
        except WorkerLost:
            self._replace(worker)
            raise
        self._give_back(worker)
        return [partial(_commit, row, end) for row, end in zip(rows, ends, strict=True)]

    def close(self) -> None:
        self._closed.set()
        for worker in self.workers:
            worker.close()

    # ------------------------------------------------------------ inside

    def _start(self) -> WorkerProcess:
        return WorkerProcess(self.name, self._clock, self._died)

    def _checkout(self, model: str) -> WorkerProcess:
        """A free process that has the model. Raises: LastingError when none has it any more, WorkerLost."""

        def fit() -> WorkerProcess | None:
            return next((w for w in self._free if model not in w.broken), None)

        def any_has() -> bool:
            return any(model not in w.broken for w in self.workers)

        with self._freed:
            self._freed.wait_for(lambda: fit() or not any_has(), CHECKOUT_S)
            if (worker := fit()) is not None:
                self._free.remove(worker)
                return worker
            if not any_has():
                raise LastingError(self.workers[0].broken[model])
            raise WorkerLost(f"pool {self.name!r} has no process to run on")

    def _put(self, worker: WorkerProcess) -> None:
        with self._freed:
            self._free.append(worker)
            self._freed.notify_all()

    def _give_back(self, worker: WorkerProcess) -> None:
        if worker.alive:
            self._put(worker)
            self._wake()
        else:
            self._replace(worker)

    def _died(self, worker: WorkerProcess) -> None:
        """A process ended, perhaps while idle; called from its reader thread."""
        with self._freed:
            idle = worker in self._free
            if idle:
                self._free.remove(worker)
        if idle:
            self._replace(worker)

    def _replace(self, worker: WorkerProcess) -> None:
        """In the background: a new process for a lost one."""
        worker.close()
        if self._closed.is_set():
            return
        thread = threading.Thread(
            target=self._restart, args=(worker,), name=f"pool-{self.name}-restart", daemon=True
        )
        thread.start()

    def _restart(self, old: WorkerProcess) -> None:
        if self._clock.now() - old.started > SOUND:
            self._losses = 0
        while True:
            pause = min(BACKOFF << min(self._losses, 10), MAX_BACKOFF)
            self._losses += 1
            log.warning("pool %s: its process is lost; a new one in %d ms", self.name, pause // 1_000_000)
            if self._closed.wait(pause / SECOND):
                return
            fresh: WorkerProcess | None = None
            try:
                fresh = self._start()
                with self._lock:
                    self._load_again(old, fresh)
                    self.workers[self.workers.index(old)] = fresh
            except (WorkerLost, Rejected, OSError) as e:
                log.error("pool %s: no new process: %s", self.name, e)
                if fresh is not None:
                    fresh.close()
                continue
            if self._closed.is_set():
                fresh.close()
                return
            self.restarts += 1
            self._put(fresh)
            self._wake()
            return

    def _load_again(self, old: WorkerProcess, fresh: WorkerProcess) -> None:
        """What was loaded before. A model whose file is broken by now is tried for some seconds, in which others wait; then
        it is told, and its rows go to the processes that have it still. Where none has they fail, until somebody
        loads it anew. Raises: WorkerLost, Rejected."""
        for spec in list(self._specs.values()):
            why, pauses = "", () if spec.name in old.broken else RELOADS
            for pause in (*pauses, 0):
                try:
                    fresh.load(spec)
                    break
                except LastingError as e:
                    why = str(e)
                if pause and self._closed.wait(pause / SECOND):
                    return
            else:
                fresh.broken[spec.name] = why
                log.error("pool %s: model %s cannot be loaded again: %s", self.name, spec.name, why)


def _commit(row: Row, end: dict[str, Any]) -> Any:
    """Take over what the process made of a row. Raises: Rejected, leaving the state as it was."""
    if "error" in end:
        raise Rejected(end["error"])
    state = end["state"]
    if isinstance(row.state, dict) and isinstance(state, dict):
        row.state.clear()  # in place: the stage holds on to it
        row.state.update(state)
    elif isinstance(row.state, list) and isinstance(state, list):
        row.state[:] = state
    else:
        row.state = state
    return Again(end["again"], end["lane"]) if "again" in end else end["output"]


def _nothing() -> None:
    return None
