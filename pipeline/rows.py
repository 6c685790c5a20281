"""What a stage asks a device for: rows of work, and the model that runs many of them in one forward.

A row is one step of one stream. A pool batches compatible rows, of any sessions and any steps, orders them
earliest deadline first, and drops what can no longer be in time before it runs. A stage:

    class Sketch(Stage):
        degrade = ("steps-1", "passthrough")

        async def setup(self):
            self.pool, self.state = self.ctx.pool(), {}
            await self.pool.load("sketch", "penstock.stages.sketch:SketchRows", {"device": self.pool.device})
            await self.pool.warm("sketch", lambda: Row(EXAMPLE, state={}))       # measures its cost
            self.pool.admit(Demand("sketch", rate_hz=15, forwards=2, within=100 * MS))

        async def process(self, port, frame, out):
            if self.pool.quality.passthrough:
                return out.post("video", frame)
            row = Row(frame.image, state=self.state, deadline=frame.deadline, further=1)
            out.post("video", replace(frame, image=await self.pool.run("sketch", row)))

`DeadlineMissed` and `Flushed` may be left to the engine, which counts them and goes on. `PoolFailed` may be
too: the stage is then restarted. Rows of one `lane` run one after the other, in order; to keep several
frames in flight, `run` each in a task of its own (with `epoch=out.epoch` where the node has a scope), at
most as many as the model has steps. A row belongs to the pool until its `run` has ended.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

from .clock import NEVER
from .stage import DeadlineMissed, Flushed, StageError

__all__ = [
    "Admission",
    "Again",
    "DeadlineMissed",
    "Demand",
    "Flushed",
    "ModelSpec",
    "PoolFailed",
    "Row",
    "RowModel",
]


class PoolFailed(StageError):
    """The model, or the process that ran it, failed on this row. Its state is as it was before."""


@dataclass(slots=True, eq=False)
class Row:
    """One unit of device work of one stream.

    `session`, `node`, `scope` and `epoch` are filled in by `ctx.pool()` where they are left open.
    """

    payload: Any
    state: Any = None  # this stream's state: the model reads it, only commit changes it
    deadline: int = NEVER  # ns; of the whole frame, when further forwards follow
    lane: int = 0  # rows of one session, node and lane run in order; other lanes may share a forward
    further: int = 0  # forwards of this frame that follow this one: they must fit before the deadline too
    session: str = ""
    node: str = ""
    scope: str = ""
    epoch: int = -1


@dataclass(frozen=True, slots=True)
class Again:
    """What `commit` returns when the frame needs another forward: the row goes back with this payload.

    It is queued at once, on the next lane (or `lane`), and `further` goes down by one.
    """

    payload: Any
    lane: int | None = None


class RowModel(Protocol):
    """Adapts a model to rows. One object per pool serves all sessions, from several threads: no state."""

    def batch_key(self, row: Row) -> Hashable:
        """Rows with equal keys may share one forward. Called on the event loop: cheap, shapes only."""
        ...

    def forward(self, rows: Sequence[Row]) -> Sequence[Any]:
        """One result for each row. Never changes `row.state`: a row may be run again, or thrown away."""
        ...

    def commit(self, row: Row, result: Any) -> Any:
        """After success: advance `row.state` and return the stage's output, or `Again`.

        Compute first and assign last: what raises here must leave the state as it was.
        """
        ...


Factory: TypeAlias = Callable[..., RowModel]


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """How a pool makes a model. `factory` is "module:name" where the pool may be another process."""

    name: str
    factory: str | Factory
    args: Mapping[str, Any] = field(default_factory=dict[str, Any])  # JSON values


@dataclass(frozen=True, slots=True)
class Demand:
    """What a node will ask of a pool, for admission."""

    model: str
    rate_hz: float  # frames a second
    forwards: int = 1  # per frame
    within: int = NEVER  # ns, from a frame's arrival to its result
    key: Hashable = None  # the batch key of its rows; None: the costliest seen


Answer: TypeAlias = Literal["granted", "degraded", "refused", "unmeasured"]


@dataclass(frozen=True, slots=True)
class Admission:
    """The pool's answer. `level` counts the rungs of the stage's ladder that it must start down."""

    answer: Answer
    level: int = 0
    utilisation: float = 0.0  # of the pool with this demand in it, 1.0 = all its time
    reason: str = ""

    @property
    def admitted(self) -> bool:
        return self.answer != "refused"
