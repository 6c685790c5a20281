"""What a graph promises at worst, before it runs: latency along each path, frames held, against its `slo`.

A frame waits in a queue for at most the queue's span (that is what bounding in milliseconds buys), then takes
at most the reader's declared `budget`: what is later dies or is counted. A `latest` mailbox waits while the
reader handles the frame before. Queues of tokens are bounded by count and wait for nobody in steady state:
they count as 0. A stage without a budget counts as 0 and is named, because the sum then promises nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .clock import MS, NEVER
from .frame import AudioFrame, Frame, VideoFrame
from .graph import EdgePlan, NodePlan, Plan


@dataclass(frozen=True, slots=True)
class PathBound:
    """The slowest way of one kind of media from a source to a sink."""

    kind: str  # "video" or "audio"
    nodes: tuple[str, ...]
    worst: int  # ns
    unknown: tuple[str, ...]  # nodes on it that declare no budget


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of the `slo` beside what the graph can promise. `worst` is None when that is not knowable."""

    name: str
    slo: int
    worst: int | None

    @property
    def kept(self) -> bool:
        return self.worst is None or self.worst <= self.slo


def queue_wait(edge: EdgePlan, reader: NodePlan) -> int:
    """The longest that a frame can stand in this queue and still be delivered, ns."""
    if edge.bound.full == "latest":
        return reader.budget
    return edge.bound.span if edge.bound.span != NEVER else 0


def paths(plan: Plan) -> list[PathBound]:
    """For each sink and kind of media, the slowest path from a source that stays in that kind."""
    found: list[PathBound] = []
    for kind, of in (("video", VideoFrame), ("audio", AudioFrame)):
        best: dict[str, tuple[int, tuple[str, ...]]] = {}
        for name, node in plan.nodes.items():  # topological: what a node reads comes before it
            ways = [
                (
                    best[e.source_node][0] + queue_wait(e, node) + e.filters.delay + node.budget,
                    best[e.source_node][1],
                )
                for e in node.inputs
                if e.source_node in best and _carries(plan, e, of)
            ]
            if ways:
                worst, way = max(ways)
                best[name] = (worst, (*way, name))
            elif not node.cls.ports.inputs and any(o.type is of for o in node.cls.ports.outputs.values()):
                best[name] = (node.budget, (name,))
        for name, (worst, way) in best.items():
            if not plan.nodes[name].cls.ports.outputs and len(way) > 1:
                unknown = tuple(n for n in way[1:-1] if not plan.nodes[n].budget)
                found.append(PathBound(kind, way, worst, unknown))
    return found


def unbounded(plan: Plan, bounded: list[PathBound]) -> list[tuple[str, ...]]:
    """The other ways into sinks, longest first in each: through words, which wait for nobody's deadline."""
    longest: dict[str, tuple[str, ...]] = {}
    for name, node in plan.nodes.items():  # topological
        longest[name] = (*max((longest[e.source_node] for e in node.inputs), key=len, default=()), name)
    known = {(path.kind, path.nodes[-1]) for path in bounded}
    kinds: dict[type[Frame], str] = {VideoFrame: "video", AudioFrame: "audio"}
    ways = [
        (*longest[edge.source_node], name)
        for name, node in plan.nodes.items()
        if not node.cls.ports.outputs
        for edge in node.inputs
        if (kinds.get(plan.nodes[edge.source_node].cls.ports.outputs[edge.source_port].type), name)
        not in known
    ]
    return sorted(dict.fromkeys(ways), key=len, reverse=True)


def _carries(plan: Plan, edge: EdgePlan, kind: type[Frame]) -> bool:
    return plan.nodes[edge.source_node].cls.ports.outputs[edge.source_port].type is kind


def verdicts(plan: Plan) -> list[Verdict]:
    """Each promise of the `slo` that follows from declared bounds."""
    bounds: Mapping[str, int | None] = {
        "glass_to_glass": max((p.worst for p in paths(plan) if p.kind == "video"), default=None),
        "barge_in_to_silence": max((r.within for r in plan.cancel if r.within), default=None),
    }
    return [Verdict(name, slo, bounds.get(name)) for name, slo in plan.slo.items()]


def explain(plan: Plan) -> str:
    """The bounds as text for a terminal."""
    lines = [f"{plan.name}: worst case by declared budgets and queue bounds", ""]
    if not (bounds := paths(plan)):
        lines.append("no picture and no sound goes all the way from a source to a sink: nothing to add up")
    for path in bounds:
        missing = f"   (no budget declared: {', '.join(path.unknown)})" if path.unknown else ""
        lines.append(f"{path.kind:6} {path.worst / MS:6g} ms  {' → '.join(path.nodes)}{missing}")
        for before, name in zip(path.nodes, path.nodes[1:], strict=False):
            node = plan.nodes[name]
            wait = max(queue_wait(e, node) for e in node.inputs if e.source_node == before)
            lines.append(f"         {wait / MS:6g} ms in the queue of {name}, {node.budget / MS:g} ms in it")
    if words := unbounded(plan, bounds):
        lines += [f"words  no bound   {' → '.join(way)}" for way in words]
        lines.append(
            "         text is neither dropped nor late, and lasts as long as it is: measured when it runs"
        )
    if plan.slo:
        lines.append("")
    for v in verdicts(plan):
        worst = (
            "not derivable from budgets: measured when it runs" if v.worst is None else f"{v.worst / MS:g} ms"
        )
        mark = "    " if v.worst is None else ("kept" if v.kept else "MISS")
        lines.append(f"{mark}  {v.name} ≤ {v.slo / MS:g} ms: {worst}")
    frames = sum(min(e.bound.count, 4096) for e in plan.edges() if e.bound.span == NEVER)
    media = sum(e.bound.span for e in plan.edges() if e.bound.span != NEVER)
    lines += [
        "",
        f"held at most: {media / MS:g} ms of media in timed queues, {frames} tokens and states in counted ones",
    ]
    return "\n".join(lines)
