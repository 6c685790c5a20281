"""A compiled graph: what a session instantiates. Made by `compiler.load`, immutable, shared by sessions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pydantic import BaseModel

from .degrade import Quality
from .edge import Bound
from .event_plan import EventsPlan
from .filters import NO_FILTERS, Filters
from .pool_plan import PoolPlan
from .stage import Stage


@dataclass(frozen=True, slots=True)
class EdgePlan:
    """`source` is "node.port"."""

    source_node: str
    source_port: str
    node: str
    port: str
    bound: Bound
    filters: Filters = NO_FILTERS

    @property
    def source(self) -> str:
        return f"{self.source_node}.{self.source_port}"


@dataclass(frozen=True, slots=True)
class NodePlan:
    """One node. `budget` is the time one frame may take, ns; 0 when not declared."""

    name: str
    use: str
    cls: type[Stage]
    options: BaseModel
    params: BaseModel
    inputs: tuple[EdgePlan, ...] = ()
    pool: str = "main"
    scope: str = ""
    budget: int = 0
    critical: bool = False
    degrade: tuple[Quality, ...] = (Quality(),)  # its ladder, full quality first
    driver: str = ""  # the input port whose frames set the pace; "" takes all in media order
    line: int = 0


@dataclass(frozen=True, slots=True)
class CancelRule:
    """When `event` of `node` comes, `scope` starts a new epoch."""

    scope: str
    node: str
    event: str
    within: int = 0  # ns, the bound promised to the user; 0 when not declared


@dataclass(frozen=True, slots=True)
class Plan:
    """A whole graph, in topological order of its nodes."""

    name: str
    nodes: Mapping[str, NodePlan]
    title: str = ""
    about: str = ""
    slo: Mapping[str, int] = field(default_factory=dict[str, int])  # ns
    cancel: tuple[CancelRule, ...] = ()
    pools: Mapping[str, PoolPlan] = field(default_factory=dict[str, PoolPlan])  # those that are declared
    events: EventsPlan = field(default_factory=EventsPlan)
    path: str = ""

    def edges(self) -> Iterator[EdgePlan]:
        for node in self.nodes.values():
            yield from node.inputs

    def find(self, use: str) -> NodePlan | None:
        """The first node of that kind."""
        return next((n for n in self.nodes.values() if n.use == use), None)

    @property
    def scopes(self) -> set[str]:
        return {n.scope for n in self.nodes.values() if n.scope}

    def uses_port(self, node: str, port: str) -> bool:
        """Does anything read this output?"""
        return any(e.source_node == node and e.source_port == port for e in self.edges())


def topological(inputs: Mapping[str, set[str]]) -> tuple[list[str], list[str]]:
    """Order nodes so that each follows those it reads.

    inputs: node → the nodes it reads. Returns (order, nodes of one cycle); one of the two is complete.
    """
    waiting = {name: set(sources) for name, sources in inputs.items()}
    order: list[str] = []
    while waiting:
        ready = [name for name, sources in waiting.items() if not sources]
        if not ready:
            return order, _cycle(waiting)
        for name in ready:
            del waiting[name]
        for sources in waiting.values():
            sources.difference_update(ready)
        order += ready
    return order, []


def _cycle(waiting: Mapping[str, set[str]]) -> list[str]:
    """One cycle among nodes that each still wait for another: follow any source until one repeats."""
    path: list[str] = [min(waiting)]
    while True:
        nxt = min(waiting[path[-1]])
        if nxt in path:
            return [*path[path.index(nxt) :], nxt]
        path.append(nxt)
