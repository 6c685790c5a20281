"""A pool as one node of one session sees it: what `ctx.pool()` gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from .clock import NEVER, Clock
from .degrade import Ladder, Quality
from .pools import DevicePool
from .rows import Admission, DeadlineMissed, Demand, Factory, ModelSpec, Row, RowModel
from .stage import StageError

T = TypeVar("T")


class NodePool:
    """Stamps rows with their session, node and epoch, and keeps the node's place on its ladder.

    realtime: False in file runs, which take the time they need at full quality.
    """

    def __init__(
        self,
        pool: DevicePool,
        *,
        session: str,
        node: str,
        scope: str,
        epoch: Callable[[], int],
        levels: Sequence[Quality],
        clock: Clock,
        realtime: bool,
        emit: Callable[..., None],
    ) -> None:
        self._pool = pool
        self._session = session
        self._node = node
        self._scope = scope
        self._epoch = epoch
        self._clock = clock
        self._realtime = realtime
        self._emit = emit
        self._ladder = Ladder(levels)
        self._queued: set[object] = set()  # calls whose turn has not come
        self._seen = -1  # what the pool had ended when `in_turn` was last asked

    @property
    def device(self) -> str:
        """As the graph names it: auto, cpu, mps, cuda, cuda:1."""
        return self._pool.plan.device

    @property
    def max_rows(self) -> int:
        """In one forward."""
        return self._pool.plan.batch.max

    @property
    def quality(self) -> Quality:
        """What to do now, by the node's ladder. Read it for each frame."""
        self._update()
        return self._ladder.quality

    @property
    def name(self) -> str:
        return self._pool.name

    @property
    def rung(self) -> tuple[int, int]:
        """How far down its ladder the node stands, and how long the ladder is."""
        return self._ladder.level, len(self._ladder.levels) - 1

    def stats(self) -> dict[str, Any]:
        """Of the whole pool, see `DevicePool.stats`."""
        return self._pool.stats()

    async def call(self, fn: Callable[..., T], *args: object, deadline: int = NEVER) -> T:
        """Run a blocking function off the loop. Raises: DeadlineMissed when it could not start in time."""
        ticket = object()

        def begin() -> T:
            self._queued.discard(ticket)
            return fn(*args)

        self._queued.add(ticket)
        try:
            return await self._pool.call(begin, deadline=deadline)
        finally:
            self._queued.discard(ticket)

    def in_turn(self) -> bool:
        """Does work of this node wait for its turn, in a pool that has ended some since this was last asked?"""
        ended, before = self._pool.ended, self._seen
        self._seen = ended
        return ended != before and (bool(self._queued) or self._pool.rows.waits(self._session, self._node))

    async def load(self, name: str, factory: str | Factory, args: Mapping[str, Any] | None = None) -> None:
        """Make a model once per pool, off the loop. `factory` is "module:name", or a function where the
        pool is of kind thread; it is called with `args` (JSON values). Raises: StageError in words."""
        await self._pool.rows.load(ModelSpec(name, factory, dict(args or {})))

    async def warm(self, model: str, example: Callable[[], Row]) -> None:
        """Measure what rows like the example cost, once per shape. Raises: PoolFailed."""
        await self._pool.rows.warm(model, lambda: self._stamped(example()))

    def admit(self, demand: Demand) -> Admission:
        """Ask for a share of the pool before media comes. A degraded answer has set `quality` already.

        Raises: StageError when there is no room even at the node's lowest quality.
        """
        if not self._realtime:
            return Admission("granted")
        answer = self._pool.rows.admissions.admit(self._flow, demand, self._ladder.levels)
        if not answer.admitted:
            raise StageError(f"pool {self._pool.name!r} is full: {answer.reason}")
        self._ladder.start_at(answer.level, self._clock.now())
        return answer

    async def run(self, model: str | RowModel, row: Row) -> Any:
        """The output for one row: what the model's `commit` returned.

        Raises: DeadlineMissed, Flushed (both may be left to the engine), PoolFailed, StageError.
        """
        if not isinstance(model, str):
            model = self._pool.rows.adopt(model, self._session)
        if not self._realtime:
            row.deadline = NEVER
        try:
            output = await self._pool.rows.run(model, self._stamped(row))
        except DeadlineMissed:
            self._ladder.ended(self._clock.now(), missed=True)
            self._update()
            raise
        now = self._clock.now()
        self._ladder.ended(now, missed=now > row.deadline)
        self._update()
        return output

    # ------------------------------------------------------------ inside

    @property
    def _flow(self) -> tuple[str, str]:
        return (self._session, self._node)

    def _stamped(self, row: Row) -> Row:
        row.session = row.session or self._session
        row.node = row.node or self._node
        row.scope = row.scope or self._scope
        if row.epoch < 0:
            row.epoch = self._epoch()
        return row

    def _update(self) -> None:
        if len(self._ladder.levels) == 1 or not self._realtime:
            return
        rows, before = self._pool.rows, self._ladder.quality
        granted = rows.admissions.granted(self._flow)
        if granted > before.level:  # others were let in
            self._ladder.start_at(granted, self._clock.now())
            self._emit("degraded", level=granted, of=len(self._ladder.levels) - 1)
            return
        if self._ladder.update(self._clock.now(), rows.utilisation(), self._fits):
            rows.admissions.moved(self._flow, self._ladder.level)
            quality = self._ladder.quality
            event = "degraded" if quality.level > before.level else "recovered"
            self._emit(event, level=quality.level, of=len(self._ladder.levels) - 1)

    def _fits(self, level: int) -> bool:
        return self._pool.rows.admissions.fits(self._flow, level)
