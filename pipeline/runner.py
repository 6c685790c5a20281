"""Runs one node of one session: takes frames, calls the stage, restarts it when it fails."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from .clock import SECOND, Clock
from .edge import Edge, Waker, earliest
from .errors import CriticalFailure, LastingError, one_line
from .frame import EventFrame, Frame, Gap
from .graph import NodePlan
from .hops import burst, fused_post
from .node_pool import NodePool
from .outputs import NodeOutputs
from .owned_tasks import OWNER, Owned
from .playback import Playback
from .progress import Progress
from .recorder import Kind, Note
from .replacement import Replace
from .stage import Control, Dropped, Flush, Pool, Stage, StageError

if TYPE_CHECKING:
    from .session import Session, SessionEvent

log = logging.getLogger(__name__)

RESTARTS = 3  # within RESTART_WINDOW, then the node is given up
RESTART_WINDOW = 60 * SECOND
HANG = 10 * SECOND  # one process() call without returning
BACKOFF = SECOND // 5  # before the first restart; doubled for each further one


class Runner:
    """One node: its stage, its edges, its state. Also the stage's `Context`."""

    def __init__(
        self, session: Session, plan: NodePlan, make: Callable[[], Stage], waker: Waker, clock: Clock
    ) -> None:
        self.plan = plan
        self.node = plan.name
        self.session = session.id
        self.clock = clock
        self.realtime = session.realtime
        self.params = plan.params
        self.state = "starting"  # running, restarting, failed, ended
        self.inputs: list[Edge] = []
        self.connected: frozenset[str] = frozenset()
        self.out = NodeOutputs(plan.name, {})
        self.stage = make()
        self.process = self.stage.process
        self._gaps = 0
        self.missed = 0  # rows dropped by a pool
        self.busy = 0  # ns inside process(), waiting included
        self.restarts = 0
        self.error = ""
        self.tasks: Owned = WeakSet()  # started by the stage, and by what it started
        self._session = session
        self._make = make
        self._waker = waker
        self.lane: deque[Control | Replace] = deque()
        self._failures: deque[int] = deque()
        self._processing = False
        self._error: Exception | None = None  # raised on a fused edge, for the node's own task
        self._fused: list[Edge] = []
        self._since = 0  # when the call that is being awaited began; 0 when none is
        self._hung = False
        self._progress = Progress()
        self._task: asyncio.Task[None] | None = None
        self._scope_sources: frozenset[str] = frozenset()
        self._tape = session.recorder
        self._views: dict[str, NodePool] = {}

    # ------------------------------------------------------------ Context

    @property
    def epoch(self) -> int:
        return self._session.epochs.get(self.plan.scope, 0)

    @property
    def playback(self) -> Playback:
        return self._session.playback

    def pool(self, name: str | None = None) -> Pool:
        name = name or self.plan.pool
        view = self._views.get(name)
        if view is None:
            view = self._views[name] = NodePool(
                self._session.pool(name),
                session=self.session,
                node=self.node,
                scope=self.plan.scope,
                epoch=self._row_epoch,
                levels=self.plan.degrade,
                clock=self.clock,
                realtime=self.realtime,
                emit=self.emit,
            )
        return view

    @property
    def pools(self) -> Collection[NodePool]:
        """The pools that the stage has asked for."""
        return self._views.values()

    @property
    def late(self) -> int:
        """Frames and rows of this node that died of their deadline."""
        return self.missed + sum(edge.lost["late"] for edge in self.inputs)

    def _row_epoch(self) -> int:
        """Of the frame that is being processed, which a flush may have overtaken; else the present one."""
        return self.out.epoch if self._processing and self.plan.scope else self.epoch

    def emit(self, event: str, **fields: object) -> None:
        self._session.notify(self.node, event, fields, self.clock.now())

    def listen(self, callback: Callable[[SessionEvent], None]) -> Callable[[], None]:
        return self._session.listen(callback)

    def set_params(self, node: str, values: Mapping[str, object]) -> None:
        self._session.set_params(node, values)

    def interrupt(self, scope: str) -> None:
        self._session.interrupt(scope, cause=self.node)

    # ------------------------------------------------------------ wiring, by the session

    def connect(
        self, ports: Mapping[str, list[Edge]], inputs: list[Edge], scope_sources: frozenset[str]
    ) -> None:
        """scope_sources: "node.port" of inputs that already carry the epoch of this node's scope."""
        self.out = NodeOutputs(self.node, ports, self._tape, self._session.chain_time)
        for port, spec in self.plan.cls.ports.outputs.items():
            if issubclass(spec.type, EventFrame) and spec.origin != "state":  # state is read, not announced
                self.out.hear(port, self._on_event)
        self.inputs = inputs
        fed = {port for port, edges in ports.items() if edges}
        self.connected = frozenset(fed | {edge.dst_port for edge in inputs})
        self._scope_sources = scope_sources

    async def setup(self) -> None:
        OWNER.set(self.tasks)
        self.stage.ctx = self
        await self.stage.setup()
        self.state = "running"

    def tell(self, message: Control | Replace, spawn: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        """Put on the control lane. A flush is not kept waiting behind a frame that is being processed."""
        if self.state != "running":
            return
        if isinstance(message, Flush) and self._processing:
            spawn(self._control_now(message))
        else:
            self.lane.append(message)
            for edge in self._fused:
                edge.armed = False
            self._waker.wake()

    async def _control_now(self, message: Control | Replace) -> None:
        if isinstance(message, Replace):
            await self._close_stage()
            self.stage, self.process = message.stage, message.stage.process
            self.plan, self._make = message.plan, message.make
            self.emit("replaced")
            return
        try:
            await self.stage.control(message)
        except asyncio.CancelledError:
            raise
        except Exception as e:
            log.exception("%s/%s: control failed", self.session, self.node)
            self.error = one_line(e)

    def _on_event(self, frame: Frame) -> None:
        assert isinstance(frame, EventFrame), f"{self.plan.use} put a {type(frame).__name__} on an event port"
        self._session.notify(self.node, frame.name, frame.fields, frame.pts)

    @property
    def processed(self) -> int:
        """Frames and gaps that the stage was given."""
        return self._gaps + sum(edge.taken + edge.inlined for edge in self.inputs)

    @property
    def waits_since(self) -> int:
        """When the call that is awaited now began or last moved, ns; 0 when none is."""
        return self._since and max(self._since, self._progress.moved)

    # ------------------------------------------------------------ running

    async def run(self) -> None:
        """Until the media ends or the session is cancelled. Raises: CriticalFailure."""
        self._task = asyncio.current_task()
        OWNER.set(self.tasks)
        try:
            while True:
                try:
                    if self.plan.cls.ports.inputs:
                        await self._consume()
                    else:
                        await self.stage.run(self.out)
                    self.state = "ended"
                    return
                except asyncio.CancelledError:
                    raise
                except Exception as e:  # noqa: BLE001 - supervisor's boundary
                    self._processing = False
                    if not await self._recover(e):
                        await self._pass_on()
                        return
        finally:
            self.out.close()

    async def _consume(self) -> None:
        """Take frames in media order over all inputs until all have ended."""
        inputs, control, blocking, waker = self.inputs, self.lane, self.out.blocking, self._waker
        single, now = inputs[0] if len(inputs) == 1 else None, self.clock.now
        bursts = {
            edge: burst(self, edge, enters=self._enters_scope(edge), alone=single is not None)
            for edge in inputs
        }
        only = bursts[single] if single else None
        while True:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            while control:
                await self._control_now(control.popleft())
            for output in blocking:
                if output.full:
                    await output.room()
            edge = single or earliest(inputs, self.plan.driver)
            if edge is None or not edge.queue:
                if single.closed if single else all(e.closed and not e.queue for e in inputs):
                    break
                if not control:
                    for fused in self._fused:  # they may be used while it sleeps
                        fused.armed = True
                    await waker.sleep()
                    for fused in self._fused:
                        fused.armed = False
                continue
            self._processing = True
            try:
                work = only() if only else bursts[edge]()
                if work is not None:
                    self._hung, self._since = False, (start := now())
                    try:
                        await work
                    finally:
                        self._since = 0
                        if self._tape is not None:
                            self._tape.note((Kind.DONE, self._tape.name(self.node), now(), 0, 0, 0))
                    self.busy += now() - start
            except Dropped:
                self.missed += 1
            except asyncio.CancelledError:
                if not self._hung:
                    raise
                self._hung = False
                raise StageError(f"no progress in {HANG // SECOND} s: the call was ended") from None
            self._processing = False
        self.out.epoch = self.epoch
        work = self.stage.finish(self.out)
        if inspect.isawaitable(work):
            await work

    def end_hang(self, now: int) -> None:
        """End a call that has made no progress for HANG: the stage is restarted as after any failure."""
        if not self._since or self._hung or self._task is None:
            return
        # a slow reader may take as long as it likes; so may those who have their turn in a pool before this node
        waits = True in [pool.in_turn() for pool in self.pools]  # each is to look
        excused = waits or self.stage.busy or any(e.full for e in self.out.blocking)
        if self._progress.look(self._since, now, self.out.total_puts(), excused=excused) > HANG:
            self._hung = True
            self._task.cancel()

    def marks(self, edge: Edge) -> tuple[Callable[[Note], None] | None, int, int]:
        """How to note in the flight recorder, and the indices of the edge's name and of this node's."""
        tape = self._tape
        return (None, 0, 0) if tape is None else (tape.note, tape.name(edge.name), tape.name(self.node))

    def take(self, edge: Edge, now: int) -> Awaitable[None] | None:
        """One frame the long way: something is out of the ordinary."""
        frame, out = edge.take(now), self.out
        if frame is None:
            return None
        out.epoch = self.epoch if self._enters_scope(edge) else frame.epoch
        note, here, _ = self.marks(edge)
        if note is not None:
            gap = frame if type(frame) is Gap else None
            left = gap.count if gap else len(edge.queue)
            note((Kind.GAP if gap else Kind.TAKE, here, now, frame.pts, left, frame.epoch))
        if type(frame) is Gap:
            self._gaps += 1
            return self.stage.gap(edge.dst_port, frame, out)
        return self.process(edge.dst_port, frame, out)

    def _enters_scope(self, edge: Edge) -> bool:
        """Does this edge lead into the node's scope from outside it?"""
        return bool(self.plan.scope) and edge.source not in self._scope_sources

    def fuse(self, nodes: Mapping[str, Runner]) -> None:
        """Let the one input of a cheap stage run it on the spot, without a task switch; see `hops`.

        Nothing is done when the stage is not `inline`, has several inputs, or its edge thins or holds back.
        """
        if not self.fuses:
            return
        edge = self.inputs[0]
        feeder = nodes[edge.source.partition(".")[0]]
        self._fused.append(edge)
        self.out.source = edge.source
        enters, scoped = self._enters_scope(edge), bool(feeder.plan.scope)
        post = fused_post(
            self, edge, feeder.out, self._session.chain, enters=enters, head=not feeder.fuses, scoped=scoped
        )
        feeder.out.fuse(edge, post)

    @property
    def fuses(self) -> bool:
        if not self.plan.cls.inline or len(self.inputs) != 1:
            return False
        edge = self.inputs[0]
        return type(edge) is Edge and not edge.thin and not edge.hold

    def fail(self, error: Exception) -> None:
        """A call on a fused edge raised: this node's own task deals with it."""
        self._error = error
        self._waker.wake()

    async def _recover(self, error: Exception) -> bool:
        """After a failure: a new stage on the same edges. False when it is given up."""
        trace = None if isinstance(error, LastingError) else error  # what it says is enough
        log.error("%s/%s failed: %s", self.session, self.node, one_line(error), exc_info=trace)
        self.error = one_line(error)
        self.state = "restarting"
        await self._close_stage()
        while True:
            now = self.clock.now()
            self._failures.append(now)
            while self._failures[0] < now - RESTART_WINDOW:
                self._failures.popleft()
            lasting = isinstance(error, LastingError) or self._session.is_bound(self.plan.use)
            if lasting or len(self._failures) > RESTARTS:
                self.state = "failed"
                self.emit("failed", error=self.error)
                if self._session.is_bound(self.plan.use) or self.plan.critical:
                    raise CriticalFailure(f"{self.node} failed: {self.error}") from error
                return False
            self.emit("restart", error=self.error, count=len(self._failures))
            await self.clock.sleep(BACKOFF << (len(self._failures) - 1))
            try:
                self.stage = self._make()
                self.process = self.stage.process
                await self.setup()
                self.restarts += 1
                return True
            except asyncio.CancelledError:
                raise
            except Exception as e:
                trace = None if isinstance(e, LastingError) else e
                log.error("%s/%s did not restart: %s", self.session, self.node, one_line(e), exc_info=trace)
                self.error, error = one_line(e), e
                await self._close_stage()

    async def _pass_on(self) -> None:
        """Given up: where input and output are of one kind the media goes through, else it is discarded."""
        ports = self.plan.cls.ports
        through = {
            name: name
            for name, port in ports.inputs.items()
            if name in ports.outputs and ports.outputs[name].type in port.types
        }
        while True:
            for edge in self.inputs:
                while (frame := edge.take(self.clock.now())) is not None:
                    if edge.dst_port in through and type(frame) is not Gap:
                        await self.out.send(edge.dst_port, frame)
            if all(e.closed and not e.queue for e in self.inputs):
                return
            await self._waker.sleep()

    async def _close_stage(self) -> None:
        try:
            await self.stage.close()
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("%s/%s: close failed", self.session, self.node)

    close = _close_stage
