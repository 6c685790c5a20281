"""What a stage promises and what it is given.

A stage is a class with `ports`, an `Options` model (fixed at start, from the node's YAML keys) and a
`Params` model (live, from `params:` and from clients). The engine owns its tasks, queues and deadlines.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict

from .clock import NEVER, Clock
from .frame import Frame, Gap

if TYPE_CHECKING:
    from .degrade import Quality
    from .playback import Playback
    from .rows import Admission, Demand, Row, RowModel
    from .session import SessionEvent

T = TypeVar("T")

Origin: TypeAlias = Literal["live", "generated", "token", "state"]
"""Where data comes from decides what a full queue does: live capture drops its oldest, generated speech
and tokens wait, state keeps the latest only."""


@dataclass(frozen=True, slots=True)
class In:
    """An input port. `many` takes several edges; a port that is not `required` may stay unconnected.

    hint: what to say to who connects something else, where the types' names say too little.
    """

    type: type[Frame] | tuple[type[Frame], ...]
    required: bool = True
    many: bool = False
    hint: str = ""

    @property
    def types(self) -> tuple[type[Frame], ...]:
        return self.type if isinstance(self.type, tuple) else (self.type,)


@dataclass(frozen=True, slots=True)
class Out:
    """An output port and the origin of what it carries."""

    type: type[Frame]
    origin: Origin = "live"


@dataclass(frozen=True, slots=True)
class Ports:
    """A stage's typed ports. Without inputs it is a source, without outputs a sink."""

    inputs: Mapping[str, In] = field(default_factory=dict[str, In])
    outputs: Mapping[str, Out] = field(default_factory=dict[str, Out])


class NoFields(BaseModel):
    """The default `Options` and `Params`: nothing to set."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# ---------------------------------------------------------------- control lane


@dataclass(frozen=True, slots=True)
class Flush:
    """Everything of `scope` older than `epoch` is void (a barge-in): stop, and forget what is queued."""

    scope: str
    epoch: int
    cause: str = ""


@dataclass(frozen=True, slots=True)
class SetParams:
    """New values of live parameters, already validated as a whole: `values` holds the changed ones."""

    values: Mapping[str, Any]


Control: TypeAlias = Flush | SetParams


# ---------------------------------------------------------------- what a stage is given


class Outputs(Protocol):
    """Where a stage puts its frames. One object per stage."""

    epoch: int  # stamp it on every frame made for the current input
    source: str  # "node.port" that the current input came from

    def post(self, port: str, frame: Frame, /) -> None:
        """Put without waiting. A full live edge drops its oldest; a full waiting edge is let over its
        bound by what one `process` call posts, and the stage is not called again before there is room."""
        ...

    def send(self, port: str, frame: Frame, /) -> Awaitable[None]:
        """Put, waiting for room where the edge's policy is to wait. Long outputs use this."""
        ...


class Pool(Protocol):
    """A device and its queue, earliest deadline first. How to use rows: see `rows`."""

    @property
    def device(self) -> str:
        """As the graph names it: auto, cpu, mps, cuda, cuda:1."""
        ...

    @property
    def quality(self) -> Quality:
        """What to do now, by the node's ladder (`degrade`). Read it for each frame."""
        ...

    @property
    def max_rows(self) -> int:
        """In one forward."""
        ...

    async def call(self, fn: Callable[..., T], *args: object, deadline: int = NEVER) -> T:
        """Run a blocking function off the loop. Raises: DeadlineMissed when it could not start in time."""
        ...

    async def load(
        self, name: str, factory: str | Callable[..., RowModel], args: Mapping[str, Any] | None = None
    ) -> None:
        """Make a model, once for all sessions, off the loop. `factory`: "module:name", or a function where
        the pool computes in this process; it is given `args` (JSON values). Raises: StageError."""
        ...

    async def warm(self, model: str, example: Callable[[], Row]) -> None:
        """Measure what rows like the example cost. Raises: PoolFailed."""
        ...

    def admit(self, demand: Demand) -> Admission:
        """Ask for a share before media comes. Raises: StageError when there is none at any quality."""
        ...

    async def run(self, model: str | RowModel, row: Row) -> Any:
        """The output for one row, batched with others'. Raises: DeadlineMissed, Flushed, PoolFailed."""
        ...


class Context(Protocol):
    """A stage's view of its session."""

    session: str
    node: str
    clock: Clock
    realtime: bool  # False in file runs: nothing is dropped, time is the media's
    connected: frozenset[str]  # the node's ports, of both directions, that have an edge

    @property
    def playback(self) -> Playback:
        """What the session's listener has heard, and the way to hold it."""
        ...

    @property
    def epoch(self) -> int:
        """The present epoch of this node's scope; 0 outside any scope."""
        ...

    def pool(self, name: str | None = None) -> Pool:
        """The pool named in the node's YAML, the default one when it names none."""
        ...

    def emit(self, event: str, **fields: object) -> None:
        """Tell the session's listeners (page, MQTT, cancel rules). Never blocks."""
        ...

    def listen(self, callback: Callable[[SessionEvent], None]) -> Callable[[], None]:
        """Hear each event of the session, on the loop; it must not block. Returns how to stop that."""
        ...

    def set_params(self, node: str, values: Mapping[str, object]) -> None:
        """Change another node's live parameters. Raises: StageError, naming what is accepted."""
        ...

    def interrupt(self, scope: str) -> None:
        """Start a new epoch of `scope`: all that is older dies. Never blocks."""
        ...


class Dropped(Exception):
    """Work was given up on purpose: nothing is wrong, there is just no result."""


class DeadlineMissed(Dropped):
    """The work was dropped because it could not be done in time."""


class Flushed(Dropped):
    """The work was dropped because its epoch is over (a barge-in), or its session."""


class StageError(Exception):
    """A failure in words a user can act on: names the thing, the value and what is accepted."""


class Stage:
    """Base of all stages. Subclasses override `process` (or `run` for a source) and what else they need.

    `process` may be a plain function when it never waits: that saves a coroutine per frame.
    """

    ports: ClassVar[Ports] = Ports()
    Options: ClassVar[type[BaseModel]] = NoFields
    Params: ClassVar[type[BaseModel]] = NoFields

    degrade: ClassVar[tuple[str, ...]] = ()
    """The rungs it can step down when its pool is short (see `degrade`); `degrade:` in YAML replaces them."""

    inline: ClassVar[bool] = False
    """`process` is a plain function that takes microseconds: a chain of such stages runs as one task."""

    rows_stay: ClassVar[bool] = False
    """Its rows hold state that other processes cannot be given: a pool of `kind: process` does not run them."""

    ctx: Context  # set by the engine before setup

    def __init__(self, options: BaseModel | None = None, params: BaseModel | None = None) -> None:
        self.options: Any = options if options is not None else self.Options()
        self.params: Any = params if params is not None else self.Params()

    async def setup(self) -> None:
        """Load and warm up. The session starts when all stages have returned. Raises: StageError."""

    async def loaded(self) -> None:
        """After `setup`: until what it left to load in the background is there. Raises: StageError when it will not be."""

    def process(self, port: str, frame: Frame, out: Outputs) -> Awaitable[None] | None:
        """Take one frame of an input port. Late, flushed and lost frames never get here."""
        raise NotImplementedError(f"{type(self).__name__} has no process()")

    def gap(self, port: str, gap: Gap, out: Outputs) -> Awaitable[None] | None:
        """Frames of `port` were lost in [gap.pts, gap.until]; streaming state may reset."""

    async def run(self, out: Outputs) -> None:
        """A source: produce until the media ends (return) or the session does (cancelled)."""
        raise NotImplementedError(f"{type(self).__name__} is no source")

    def finish(self, out: Outputs) -> Awaitable[None] | None:
        """All inputs have ended: put what is still held back."""

    async def control(self, message: Control) -> None:
        """Read before each media frame. The default takes over new parameters."""
        if isinstance(message, SetParams):
            self.params = self.params.model_copy(update=dict(message.values))

    async def close(self) -> None:
        """Give back everything. Called once, also after a failed setup."""

    @property
    def busy(self) -> bool:
        """True while work started by earlier frames still runs: the progress watchdog leaves it alone."""
        return False
