"""How many pictures of its client does a graph look at? More than that need not be sent."""

from __future__ import annotations

from ..pipeline.clock import SECOND
from ..pipeline.graph import Plan

LEAST_FPS = 1.0  # where nobody looks: enough to notice that the camera lives


def consumed_fps(plan: Plan, watched: bool) -> float | None:
    """Pictures a second that the graph's readers of `webrtc.in` video take at most; None: as they come.

    watched: the client gets pictures back. Otherwise what only makes such pictures does not count.
    """
    rates: list[float] = []
    for edge in plan.edges():
        source = plan.nodes[edge.source_node]
        if source.use != "webrtc.in" or edge.source_port != "video":
            continue
        if not _useful(plan, edge.node, edge.port, watched, frozenset()):
            continue
        if not edge.filters.thin:
            declared = getattr(getattr(source.options, "video", None), "fps", None)
            if not declared:
                return None
            rates.append(float(declared))
        else:
            rates.append(SECOND / edge.filters.thin)
    return max([LEAST_FPS, *rates])


def _useful(plan: Plan, node: str, port: str, watched: bool, seen: frozenset[str]) -> bool:
    if plan.nodes[node].use == "webrtc.out":
        return port != "video" or watched
    out = [e for e in plan.edges() if e.source_node == node and e.node not in seen]
    return not out or any(_useful(plan, e.node, e.port, watched, seen | {node}) for e in out)
