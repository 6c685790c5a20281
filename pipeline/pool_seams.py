"""What stands between a pool's queue and a device: the backend that computes, the driver that calls it.

A backend may be this process, another one, or another machine: the pool cannot tell.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from .row_queue import Job
from .rows import ModelSpec, Row, RowModel

Commit: TypeAlias = Callable[[], Any]


class Rejected(Exception):
    """The backend is well, the work was not: the model raised there, as the words tell with the error's type."""


class Backend(Protocol):
    """Where forwards happen. Blocking: called from worker threads only, but for `key`."""

    @property
    def restarts(self) -> int:
        """Worker processes that were replaced."""
        ...

    @property
    def ready(self) -> bool:
        """False while it restarts: rows wait, as long as their deadlines let them."""
        ...

    def attach(self, wake: Callable[[], object]) -> None:
        """Call `wake`, from any thread, whenever `ready` becomes true again."""
        ...

    def load(self, spec: ModelSpec) -> None:
        """Make the model, once. Raises: whatever its factory does."""
        ...

    def adopt(self, name: str, model: RowModel) -> None:
        """Use a ready-made object. Raises: StageError where that cannot be."""
        ...

    def disown(self, name: str) -> None: ...

    def key(self, model: str, row: Row) -> Hashable: ...

    def forward(self, model: str, rows: Sequence[Row]) -> Sequence[Commit]:
        """For each row how to commit it; nothing has changed before that is called. Raises: anything."""
        ...

    def close(self) -> None: ...


class Turns(Protocol):
    """A pool as its driver sees it."""

    pushes: int  # changes that may have made rows runnable: a driver must not sleep over one

    @property
    def waiting(self) -> int: ...

    @property
    def next_deadline(self) -> int: ...

    def take(self) -> Batch | None: ...

    def execute(self, batch: Batch) -> None: ...


class Driver(Protocol):
    """Who calls `take` and `execute`."""

    def kick(self, pool: Turns) -> None:
        """There may be rows to run. From any thread; never blocks."""
        ...

    def blocking(self, work: Callable[[], None]) -> Coroutine[Any, Any, None]:
        """Run `work` off the loop."""
        ...

    def close(self) -> None: ...

    async def measure(self, model: str, forward: Callable[[], object], rows: int) -> int:
        """Run a forward of so many rows off the loop; how long it took, ns."""
        ...


@dataclass(slots=True)
class RowStats:
    """Ends of rows since the start; their sum is the rows that were asked for and have ended."""

    done: int = 0
    missed: int = 0
    flushed: int = 0
    failed: int = 0
    cancelled: int = 0
    late: int = 0  # of `done`: ran in good hope, ended after the deadline
    busy: int = 0  # ns of forwards
    retried: int = 0  # rows run again alone, because a batch with them failed
    batches: Counter[int] = field(default_factory=Counter[int])  # forwards by number of rows

    @property
    def ended(self) -> int:
        return self.done + self.missed + self.flushed + self.failed + self.cancelled


@dataclass(slots=True)
class Batch:
    """Rows that run together, since `start` (ns)."""

    jobs: list[Job]
    start: int

    @property
    def model(self) -> str:
        return self.jobs[0].model

    @property
    def rows(self) -> list[Row]:
        return [job.row for job in self.jobs]
