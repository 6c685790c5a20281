"""One running copy of a graph: builds it from a `Plan`, runs it, tells what it does, closes it in time.

The live ends (`webrtc.in`, `webrtc.out`) are bound when the session is made: to a peer, or to files. So
the same graph serves both.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from .clock import SECOND, Clock
from .delay import DelayEdge
from .edge import Bound, Edge, Waker
from .errors import CriticalFailure, of_node, one_line
from .faults import near
from .graph import EdgePlan, NodePlan, Plan
from .hops import Chain
from .node_params import changed
from .owned_tasks import end, watch_loop
from .playback import Playback
from .pools import DevicePool, Pools
from .recorder import Kind, Recorder
from .replacement import Replace
from .runner import Runner
from .stage import Flush, SetParams, Stage, StageError
from .stats import Lateness, NodeRates, node_stats, pool_stats

log = logging.getLogger(__name__)

START_BUDGET = 60 * SECOND  # model loading included
CLOSE_BUDGET = 2 * SECOND

Binding: TypeAlias = Callable[[Any, Any], Stage]
"""(options, params) → the stage that stands at this end."""


@dataclass(frozen=True, slots=True)
class SessionEvent:
    """What the session tells its listeners. `pts` is ns on the session's clock."""

    node: str
    name: str
    fields: Mapping[str, Any]
    pts: int


class Session:
    """Life: `start` → running → `wait` returns when the media ended or `close` was called."""

    def __init__(
        self,
        plan: Plan,
        session_id: str,
        clock: Clock,
        *,
        bindings: Mapping[str, Binding] | None = None,
        pools: Pools | None = None,
        realtime: bool = True,
        record: bool | None = None,
    ) -> None:
        """record: keep a flight recorder; by default a session in real time does."""
        self.plan = plan
        self.id = session_id
        self.clock = clock
        self.realtime = realtime
        self.epochs: dict[str, int] = dict.fromkeys(plan.scopes, 0)
        self.failure = ""
        self.playback = Playback(clock)
        self.recorder = Recorder() if (realtime if record is None else record) else None
        self.chain = Chain()
        self.runners: dict[str, Runner] = {}
        self._bindings = bindings or {}
        self._own_pools = pools is None
        self._pools = pools or Pools(clock=clock)
        self._listeners: list[Callable[[SessionEvent], None]] = []
        self._scope_edges: dict[str, list[Edge]] = {scope: [] for scope in plan.scopes}
        self._scope_nodes: dict[str, set[str]] = {scope: set() for scope in plan.scopes}
        self._ready = asyncio.Event()  # it runs, or will not
        self._main: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._side: set[asyncio.Task[None]] = set()
        self._rates: dict[str, NodeRates] = {}
        self._started = clock.now()

    @property
    def began(self) -> int:
        """When it started to run, ns on its clock."""
        return self._started

    # ------------------------------------------------------------ life

    async def start(self) -> None:
        """Make and set up all stages, and run them. Raises: StageError in words, leaving nothing open, also when it
        is closed meanwhile."""
        try:
            self._build()
            watch_loop(asyncio.get_running_loop())
            async with asyncio.timeout(START_BUDGET / SECOND):
                await asyncio.gather(*(self._setup(r) for r in self.runners.values()))
            if self._closing is not None:
                raise StageError("closed while it started")
        except TimeoutError:
            slow = [n for n, r in self.runners.items() if r.state == "starting"]
            await self._close_stages()
            raise StageError(f"not ready within {START_BUDGET // SECOND} s: {', '.join(slow)}") from None
        except BaseException:
            await self._close_stages()
            raise
        else:
            self._started = self.clock.now()
            self._main = asyncio.create_task(self._run(), name=f"{self.id}/main")
        finally:
            self._ready.set()

    async def _setup(self, runner: Runner) -> None:
        try:
            await runner.setup()
        except StageError as e:
            raise of_node(runner.node, e) from e

    async def wait(self) -> None:
        """Until the session has ended and given everything back, or could not start."""
        await self._ready.wait()
        if self._main is not None:
            await asyncio.wait([self._main])
        await self.close("ended")

    async def close(self, reason: str = "closed") -> None:
        """End now: bounded by CLOSE_BUDGET, idempotent, safe from any task."""
        if self._closing is None:
            log.info("session %s: %s", self.id, reason)
            self._closing = asyncio.create_task(self._close(), name=f"{self.id}/close")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._main is not None and not self._main.done():
            self._main.cancel()
            _, pending = await asyncio.wait([self._main], timeout=CLOSE_BUDGET / SECOND / 4)
            if pending:
                stuck = [n for n, r in self.runners.items() if r.state == "running"]
                log.error("session %s: tasks still running after cancel: %s", self.id, stuck)
        for task in self._side:
            task.cancel()
        await self._close_stages()
        for runner in self.runners.values():
            for edge in runner.inputs:
                edge.discard()
        self.notify("session", "closed", {"reason": self.failure or "closed"}, self.clock.now())
        self._listeners.clear()
        self._ready.set()
        self._pools.forget(self.id)
        if self._own_pools:
            self._pools.close()

    async def _close_stages(self) -> None:
        closing = [asyncio.ensure_future(r.close()) for r in self.runners.values()]
        if not closing:
            return
        _, pending = await asyncio.wait(closing, timeout=CLOSE_BUDGET / SECOND / 2)
        for task in pending:
            log.error("session %s: a stage did not close in time", self.id)
            task.cancel()
        runners = list(self.runners.values())
        for runner, left in zip(
            runners,
            await asyncio.gather(*(end(r.tasks, CLOSE_BUDGET / SECOND / 4) for r in runners)),
            strict=True,
        ):
            if left:
                log.warning("%s/%s left %d tasks behind: %s", self.id, runner.node, len(left), left[:3])

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                nodes = [
                    group.create_task(runner.run(), name=f"{self.id}/{name}")
                    for name, runner in self.runners.items()
                ]
                if self.realtime:  # a file run may take as long as it needs
                    watch = group.create_task(self._watch(), name=f"{self.id}/watch")
                    await asyncio.wait(nodes)
                    watch.cancel()
        except* CriticalFailure as failures:
            self.failure = str(failures.exceptions[0])
            log.error("session %s ends: %s", self.id, self.failure)

    async def _watch(self) -> None:
        lateness = Lateness()
        while True:
            await self.clock.sleep(SECOND)
            now = self.clock.now()
            self.pack()
            for runner in self.runners.values():
                runner.end_hang(now)
                if late := lateness.due(runner, now):
                    self.notify(runner.node, "late", {"count": late, "total": runner.late}, now)

    # ------------------------------------------------------------ building

    def _build(self) -> None:
        loop = asyncio.get_running_loop()
        wakers = {name: Waker(loop) for name in self.plan.nodes}
        ports: dict[str, dict[str, list[Edge]]] = {
            name: {port: [] for port in node.cls.ports.outputs} for name, node in self.plan.nodes.items()
        }
        inputs: dict[str, list[Edge]] = {name: [] for name in self.plan.nodes}
        for edge_plan in self.plan.edges():
            bound = edge_plan.bound
            if not self.realtime and bound.full != "latest":
                bound = replace(bound, full="block")  # a file run loses nothing
            edge = self._edge(edge_plan, bound, wakers[edge_plan.node])
            ports[edge_plan.source_node][edge_plan.source_port].append(edge)
            inputs[edge_plan.node].append(edge)
            scope = self.plan.nodes[edge_plan.source_node].scope
            if scope:
                self._scope_edges[scope].append(edge)
                self._scope_nodes[scope] |= {edge_plan.source_node, edge_plan.node}
        for name, node in self.plan.nodes.items():
            runner = Runner(self, node, self._factory(name), wakers[name], self.clock)
            same_scope = frozenset(
                e.source
                for e in inputs[name]
                if node.scope and self.plan.nodes[e.source.partition(".")[0]].scope == node.scope
            )
            runner.connect(ports[name], inputs[name], same_scope)
            if node.scope:
                self._scope_nodes[node.scope].add(name)
            self.runners[name] = runner
        for edge_plan in self.plan.edges():
            if edge_plan.filters.match:
                here = inputs[edge_plan.node]
                delayed = next(e for e in here if e.source == edge_plan.source)
                if isinstance(delayed, DelayEdge):
                    delayed.match([e for e in here if e.source.startswith(f"{edge_plan.filters.match}.")])
        for runner in self.runners.values():
            runner.fuse(self.runners)

    def _edge(self, plan: EdgePlan, bound: Bound, waker: Waker) -> Edge:
        f = plan.filters
        if self.realtime and (f.delay or f.match):  # a file run has no lateness to even out
            return DelayEdge(
                plan.source, plan.node, plan.port, bound, waker, self.clock, delay=f.delay, thin=f.thin
            )
        hold = f.hold if self.realtime else 0
        return Edge(plan.source, plan.node, plan.port, bound, waker, thin=f.thin, hold=hold)

    def chain_time(self) -> int:
        """Now, as the frames of a fused chain see it."""
        return self.chain.now or self.clock.now()

    def pack(self) -> None:
        """Bring the flight recorder up to date."""
        if self.recorder is not None:
            now = self.clock.now()
            self.recorder.losses((e for r in self.runners.values() for e in r.inputs), now)
            self.recorder.pack(now)

    def _factory(self, name: str) -> Callable[[], Stage]:
        node = self.plan.nodes[name]

        def make() -> Stage:
            runner = self.runners.get(name)
            params = runner.params if runner else node.params
            return self._bindings.get(node.use, node.cls)(node.options, params)

        return make

    def is_bound(self, use: str) -> bool:
        """Is this an end that the session was made for (a peer, a file)? It cannot be restarted."""
        return use in self._bindings

    def pool(self, name: str) -> DevicePool:
        return self._pools.get(name, self.plan.pools.get(name))

    # ------------------------------------------------------------ control

    def set_params(self, node: str, values: Mapping[str, object]) -> None:
        """Change live parameters of a node, all or nothing.

        Raises: StageError naming the node, the parameter, the value and what is accepted.
        """
        runner = self.runners.get(node)
        if runner is None:
            raise StageError(f"unknown node {node!r}{near(node, list(self.runners))}")
        runner.params = changed(runner.plan.cls.Params, runner.params, values, node)
        news = {key: getattr(runner.params, key) for key in values}
        runner.tell(SetParams(news), self._spawn)
        self.notify(node, "params", {"values": news}, self.clock.now())

    def replace_node(self, node: NodePlan) -> None:
        """Give a running node a new stage on its old edges. The old one works on until the new one is set
        up, and stays when that fails; told by the events `replaced` and `not_replaced`."""
        self._spawn(self._replace(self.runners[node.name], node))

    async def _replace(self, runner: Runner, node: NodePlan) -> None:
        def make() -> Stage:
            return self._bindings.get(node.use, node.cls)(node.options, runner.params)

        params = runner.params
        if runner.plan.params != node.params:
            runner.params = node.params
        stage = make()
        stage.ctx = runner
        try:
            async with asyncio.timeout(START_BUDGET / SECOND):
                await stage.setup()
        except Exception as e:  # boundary: whatever a new stage does, the old one works on
            runner.params = params
            trace = None if isinstance(e, (StageError, TimeoutError)) else e
            log.error("%s/%s keeps its old version: %s", self.id, node.name, one_line(e), exc_info=trace)
            self.notify(node.name, "not_replaced", {"error": one_line(e)}, self.clock.now())
            await stage.close()
        else:
            if runner.state == "running":
                runner.tell(Replace(stage, node, make), self._spawn)
            else:
                await stage.close()

    def interrupt(self, scope: str | None = None, cause: str = "client") -> None:
        """Void what is under way in `scope` (None: in all): queues, work, speech. Never blocks."""
        for name in self.epochs if scope is None else (scope,):
            if name not in self.epochs:
                raise StageError(f"no node has the scope {name!r}{near(name, list(self.epochs))}")
            self.epochs[name] += 1
            self._note(Kind.FLUSH, name, 0, 0, self.epochs[name])
            for edge in self._scope_edges[name]:
                edge.flush(self.epochs[name])
            self._pools.flush(self.id, name, self.epochs[name])
            message = Flush(name, self.epochs[name], cause)
            for node in self._scope_nodes[name]:
                self.runners[node].tell(message, self._spawn)

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine, name=f"{self.id}/control")
        self._side.add(task)
        task.add_done_callback(self._side.discard)

    # ------------------------------------------------------------ telling

    def listen(self, callback: Callable[[SessionEvent], None]) -> Callable[[], None]:
        """Call `callback` with each event, on the loop; it must not block. Returns how to stop that."""
        self._listeners.append(callback)

        def unlisten() -> None:
            if callback in self._listeners:
                self._listeners.remove(callback)

        return unlisten

    def _note(self, kind: Kind, name: str, a: int, b: int, c: int) -> None:
        if self.recorder is not None:
            self.recorder.note((kind, self.recorder.name(name), self.chain_time(), a, b, c))

    def notify(self, node: str, name: str, fields: Mapping[str, Any], pts: int) -> None:
        if self.recorder is not None:
            self._note(Kind.EVENT, node, pts, self.recorder.name(name), 0)
        for rule in self.plan.cancel:
            if rule.node == node and rule.event == name:
                self.interrupt(rule.scope, cause=f"{node}.{name}")
        event = SessionEvent(node, name, fields, pts)
        for callback in list(self._listeners):
            try:
                callback(event)
            except Exception:
                log.exception("session %s: a listener failed on %s.%s", self.id, node, name)

    def describe(self) -> list[dict[str, Any]]:
        """Each node with its live parameters and their JSON Schema, for `hello` (docs/protocol.md)."""
        return [
            {
                "name": name,
                "use": runner.plan.use,
                "params": runner.params.model_dump(mode="json"),
                "schema": runner.plan.cls.Params.model_json_schema(),
                "live": bool(runner.plan.cls.Params.model_fields),
            }
            for name, runner in self.runners.items()
        ]

    def stats(self) -> dict[str, Any]:
        """The live figures (docs/protocol.md, `stats`). Rates are over the time since the last call or so."""
        now = self.clock.now()
        nodes = [
            node_stats(runner, self._rates.setdefault(name, NodeRates(self._started)), now)
            for name, runner in self.runners.items()
        ]
        return {
            "nodes": nodes,
            "pools": pool_stats(self.runners.values()),
            "session": {
                "id": self.id,
                "graph": self.plan.name,
                "up_s": round((now - self._started) / SECOND, 1),
                "restarts": sum(r.restarts for r in self.runners.values()),
            },
        }
