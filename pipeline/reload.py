"""What changed between two versions of a graph, and how a running session takes it over.

Changed parameters are set live; a node whose options changed gets a new stage on its old edges; nodes that
did not change keep their stage, its state and what is queued for them. What a running session cannot take
over (nodes or edges that came or went, live ends, sources) holds for new sessions only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .graph import NodePlan, Plan
from .session import Session
from .stage import StageError


@dataclass(frozen=True, slots=True)
class PlanDiff:
    """params: node → changed values. restart: nodes that need a new stage. later: why a running session
    keeps what it has, by node."""

    params: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])
    restart: tuple[str, ...] = ()
    later: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def is_empty(self) -> bool:
        return not (self.params or self.restart or self.later)


def diff(old: Plan, new: Plan) -> PlanDiff:
    """Compare two plans of one graph, node by node."""
    params: dict[str, Mapping[str, Any]] = {}
    restart: list[str] = []
    later: dict[str, str] = {}
    for name in old.nodes.keys() | new.nodes.keys():
        if name not in new.nodes:
            later[name] = "the node was removed"
        elif name not in old.nodes:
            later[name] = "the node is new"
        else:
            _compare(old.nodes[name], new.nodes[name], params, restart, later)
    if old.cancel != new.cancel:
        later["cancel"] = "the rules of barge-in changed"
    order = [name for name in new.nodes if name in restart]
    return PlanDiff(params, tuple(order), later)


def _compare(
    old: NodePlan,
    new: NodePlan,
    params: dict[str, Mapping[str, Any]],
    restart: list[str],
    later: dict[str, str],
) -> None:
    if (old.inputs, old.scope, old.pool, old.driver) != (new.inputs, new.scope, new.pool, new.driver):
        later[new.name] = "its inputs, scope or pool changed"
    elif old.cls.ports != new.cls.ports or old.cls.inline != new.cls.inline:
        later[new.name] = f"{new.use} has other ports than {old.use}"
    elif old.use != new.use or old.options != new.options:
        if old.cls.ports.inputs:
            restart.append(new.name)
        else:
            later[new.name] = "a source cannot be replaced while its media runs"
    elif old.params != new.params:
        before, after = old.params.model_dump(), new.params.model_dump()
        params[new.name] = {key: value for key, value in after.items() if before[key] != value}


def apply(session: Session, new: Plan, changes: PlanDiff) -> list[str]:
    """Take the changes over in a running session. Returns what it could not, in words."""
    refused = [f"{node}: {why}" for node, why in changes.later.items()]
    for node, values in changes.params.items():
        try:
            session.set_params(node, values)
        except StageError as e:
            refused.append(str(e))
    for node in changes.restart:
        if session.is_bound(new.nodes[node].use):
            refused.append(f"{node}: a live end cannot be replaced while its client is connected")
        else:
            session.replace_node(new.nodes[node])
    return refused
