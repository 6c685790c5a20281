"""Rows in spawned processes: a model that crashes or hangs there costs the rows it ran, and no more.

Weights live in the process, states here: each row brings its state along and takes it back, through shared
memory. A dead or silent process is replaced in the background, while rows wait as long as they may.
"""

from __future__ import annotations

import logging
import queue
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
CHECKOUT_S = 15.0  # only waited for when a process dies between the queue's look and ours
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
        self._broken: dict[str, str] = {}  # models that a new process could not load again → why
        self._free: queue.SimpleQueue[WorkerProcess] = queue.SimpleQueue()
        self._wake: Callable[[], object] = _nothing
        self._lock = threading.Lock()
        self._losses = 0  # in a row
        self._closed = threading.Event()

    @property
    def ready(self) -> bool:
        return not self._free.empty()

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
                self._free.put(self.workers[-1])
            for worker in list(self.workers):
                worker.load(spec)
            self._specs[spec.name] = spec
            self._broken.pop(spec.name, None)

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
        if why := self._broken.get(model):
            raise LastingError(why)
        try:
            worker = self._free.get(timeout=CHECKOUT_S)
        except queue.Empty:
            raise WorkerLost(f"pool {self.name!r} has no process to run on") from None
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

    def _give_back(self, worker: WorkerProcess) -> None:
        if worker.alive:
            self._free.put(worker)
            self._wake()
        else:
            self._replace(worker)

    def _died(self, worker: WorkerProcess) -> None:
        """A process ended, perhaps while idle; called from its reader thread."""
        waiting: list[WorkerProcess] = []
        while True:
            try:
                other = self._free.get_nowait()
            except queue.Empty:
                break
            if other is worker:
                self._replace(worker)
            else:
                waiting.append(other)
        for other in waiting:
            self._free.put(other)

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
                    self._load_again(fresh)
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
            self._free.put(fresh)
            self._wake()
            return

    def _load_again(self, fresh: WorkerProcess) -> None:
        """What was loaded before. A model whose file is broken by now must not hold up the others, nor be tried for
        ever: it is told once, and its rows fail until somebody loads it anew. Raises: WorkerLost, Rejected."""
        for spec in list(self._specs.values()):
            try:
                fresh.load(spec)
            except LastingError as e:
                del self._specs[spec.name]
                self._broken[spec.name] = str(e)
                log.error("pool %s: model %s cannot be loaded again: %s", self.name, spec.name, e)


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
