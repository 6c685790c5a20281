"""A graph as text, Mermaid or Graphviz dot."""

from __future__ import annotations

from .clock import MS, NEVER
from .edge import Bound
from .frame import kind_of
from .graph import EdgePlan, Plan


def bound_text(bound: Bound) -> str:
    """`≤40ms drop_oldest`: what a queue holds and does when full."""
    if bound.full == "latest":
        return "latest"
    if bound.span != NEVER:
        size = f"{bound.span / MS:g}ms"
    elif bound.nbytes != NEVER:
        size = f"{bound.nbytes}B"
    else:
        size = f"{bound.count}f"
    return f"≤{size} {bound.full}"


def _edge_text(edge: EdgePlan) -> str:
    f = edge.filters
    parts = [
        f"every {f.thin / MS:g}ms" if f.thin else "",
        f"hold {f.hold / MS:g}ms" if f.hold else "",
        f"delay {f.delay / MS:g}ms" if f.delay else "",
        f"as late as {f.match}" if f.match else "",
        bound_text(edge.bound),
    ]
    return f"{edge.source} → {edge.port} ({', '.join(p for p in parts if p)})"


def as_text(plan: Plan) -> str:
    """One block a node, in the order media flows."""
    lines = [f"{plan.name}: {plan.title}"]
    if plan.about:
        lines.append(f"  {plan.about}")
    for node in plan.nodes.values():
        scope = f"  scope {node.scope}" if node.scope else ""
        budget = f"  budget {node.budget / MS:g}ms" if node.budget else ""
        lines.append(f"\n{node.name}  [{node.use}]{scope}{budget}")
        lines += [f"  ← {_edge_text(edge)}" for edge in node.inputs]
        lines += [f"  {port} ⇒ {kind_of(spec.type)}" for port, spec in node.cls.ports.outputs.items()]
    lines += [f"\ncancel {r.scope} on {r.node}.{r.event}" for r in plan.cancel]
    return "\n".join(lines)


def as_mermaid(plan: Plan) -> str:
    """For a README or a wiki."""
    lines = ["flowchart LR"]
    lines += [f'  {n.name}["{n.name}<br/><small>{n.use}</small>"]' for n in plan.nodes.values()]
    lines += [f"  {e.source_node} -- {e.source_port} --> {e.node}" for e in plan.edges()]
    lines += [
        f"  {r.node} -. cancels {r.scope} .-> {n}" for r in plan.cancel for n in _in_scope(plan, r.scope)
    ]
    return "\n".join(lines)


def as_dot(plan: Plan) -> str:
    """For Graphviz."""
    lines = [
        f'digraph "{plan.name}" {{',
        "  rankdir=LR; node [shape=box, fontname=sans]; edge [fontname=sans]",
    ]
    lines += [f'  "{n.name}" [label="{n.name}\\n{n.use}"]' for n in plan.nodes.values()]
    lines += [
        f'  "{e.source_node}" -> "{e.node}" [label="{e.source_port}\\n{bound_text(e.bound)}"]'
        for e in plan.edges()
    ]
    return "\n".join([*lines, "}"])


def _in_scope(plan: Plan, scope: str) -> list[str]:
    return [n.name for n in plan.nodes.values() if n.scope == scope]


PICTURES = {"text": as_text, "mermaid": as_mermaid, "dot": as_dot}
