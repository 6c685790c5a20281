"""YAML to `Plan`: names, ports, types, options, cycles, all faults at once, each with its place.

A node's own keys (`use in params pool scope budget queue degrade critical`) belong to the engine; all others are
the stage's `Options`. An input reads `node.port`, or `node` alone where just one port fits, with filters
behind bars: `cam.video|every(500ms)`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Any

from .clock import MS
from .degrade import Quality, parse_ladder
from .edge import Bound
from .errors import Fault, GraphError
from .events import read_events
from .explain import verdicts
from .faults import Faults, near
from .filters import parse_filters
from .frame import Frame, kind_of
from .graph import CancelRule, EdgePlan, NodePlan, Plan, topological
from .pool_plan import PoolPlan, pool_faults
from .queues import FULL, QUEUES, parse_bound
from .registry import load as load_stage
from .stage import In, Stage, StageError
from .yaml_marks import Marks, Path, parse

VERSION = 1
TOP_KEYS = ("penstock", "graph", "title", "about", "slo", "queues", "pools", "nodes", "cancel", "events")
NODE_KEYS = ("use", "in", "params", "pool", "scope", "budget", "queue", "sync", "degrade", "critical")
SLO_KEYS = ("glass_to_glass", "turn_end_to_audio", "barge_in_to_silence", "caption")
CANCEL_KEYS = ("on", "within")
NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")
REFERENCE = re.compile(r"([a-z][a-z0-9_-]*)(?:\.([a-z][a-z0-9_]*))?")


def load(path: FilePath) -> Plan:
    """Compile a graph file. Raises: GraphError (all faults), OSError."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as e:
        raise GraphError(str(path), [Fault(1, 1, f"not UTF-8 text: {e.reason} at byte {e.start}")]) from e
    return compile_text(text, str(path))


def compile_text(text: str, path: str = "<graph>") -> Plan:
    """Compile YAML text. Raises: GraphError."""
    twice: list[Fault] = []
    data, marks = parse(text, path, twice)
    compiler = _Compiler(path, marks)
    compiler.faults += twice
    plan = compiler.plan(data)
    if compiler.faults:
        raise GraphError(path, compiler.faults)
    assert plan is not None
    for verdict in verdicts(plan):
        if not verdict.kept:
            assert verdict.worst is not None
            compiler.fault(
                ("slo", verdict.name),
                f"the graph can take {verdict.worst / MS:g} ms at worst; `penstock explain` shows where. "
                "Shorten budgets or queues, or promise less",
            )
    if compiler.faults:
        raise GraphError(path, compiler.faults)
    return plan


class _Compiler(Faults):
    """One compilation: collects faults instead of stopping at the first."""

    def __init__(self, path: str, marks: Marks) -> None:
        super().__init__(marks)
        self.path = path
        self.queues = dict(QUEUES)

    # ------------------------------------------------------------ the whole

    def plan(self, data: Any) -> Plan | None:
        if not isinstance(data, dict):
            self.fault((), f"a graph is a mapping that starts with 'penstock: 1', not {data!r:.60}")
            return None
        self.keys(data, (), TOP_KEYS, "a graph")
        if data.get("penstock") != VERSION:
            self.fault(
                ("penstock",),
                f"'penstock: {VERSION}' must say the file's version; got {data.get('penstock')!r}",
            )
        name = data.get("graph")
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            self.fault(("graph",), f"'graph' names it in lower case letters, digits, - and _; got {name!r}")
            name = "graph"
        self._read_queues(self.mapping(data.get("queues"), ("queues",), "'queues'"))
        slo = self._read_slo(self.mapping(data.get("slo"), ("slo",), "'slo'"))
        bodies = self.mapping(data.get("nodes"), ("nodes",), "'nodes'")
        if not bodies and not data.get("nodes"):
            self.fault(("nodes",), "'nodes' is missing or empty: a graph needs a source and a sink")
        classes = {n: c for n, body in bodies.items() if (c := self._stage_class(n, body))}
        nodes = {n: self._node(n, bodies[n], classes) for n in classes}
        order, cycle = topological({n: {e.source_node for e in p.inputs} for n, p in nodes.items()})
        if cycle:
            arrows = " -> ".join(reversed(cycle))
            self.fault(("nodes", cycle[0], "in"), f"nodes feed each other in a circle: {arrows}")
            order = list(nodes)
        cancel = self._read_cancel(self.mapping(data.get("cancel"), ("cancel",), "'cancel'"), bodies)
        pools = self._read_pools(self.mapping(data.get("pools"), ("pools",), "'pools'"), nodes)
        events = read_events(data.get("events"), nodes, self)
        # whose events leave by MQTT has a reader
        self._check_unread(nodes, {rule.node for rule in cancel} | events.nodes)
        return Plan(
            name=name,
            nodes={n: nodes[n] for n in order},
            title=str(data.get("title") or name),
            about=str(data.get("about") or ""),
            slo=slo,
            cancel=cancel,
            events=events,
            pools=pools,
            path=self.path,
        )

    def _read_slo(self, slo: Mapping[str, Any]) -> dict[str, int]:
        self.keys(slo, ("slo",), SLO_KEYS, "'slo'")
        return {key: self.duration(value, ("slo", key)) for key, value in slo.items()}

    def _read_queues(self, queues: Mapping[str, Any]) -> None:
        self.keys(queues, ("queues",), tuple(QUEUES), "'queues'")
        for origin in QUEUES:
            if origin in queues:
                self.queues[origin] = self.bound(queues[origin], ("queues", origin), self.queues[origin])

    def _read_pools(self, pools: Mapping[str, Any], nodes: Mapping[str, NodePlan]) -> dict[str, PoolPlan]:
        plans: dict[str, PoolPlan] = {}
        for name, body in pools.items():
            where: Path = ("pools", name)
            if not NAME.fullmatch(name):
                self.fault(where, f"pool name {name!r} must be lower case letters, digits, - and _")
            faults = len(self.faults)
            plan = self.model(PoolPlan, self.mapping(body, where, f"pool {name!r}"), where, f"pool {name!r}")
            if len(self.faults) == faults and isinstance(plan, PoolPlan):
                plans[name] = plan
        users = {n: node.pool for n, node in nodes.items()}
        here = {n: node.use for n, node in nodes.items() if node.cls.rows_stay}
        for where, message in pool_faults(plans, users, list(pools), here):
            self.fault(where, message)
        return plans

    def bound(self, value: Any, where: Path, base: Bound) -> Bound:
        """`{max: 40ms | 8f | 256 | 4MiB, full: drop_oldest | block | latest}` over `base`."""
        body = self.mapping(value, where, "a queue")
        self.keys(body, where, ("max", "full"), "a queue")
        full = body.get("full", base.full)
        if full not in FULL:
            self.fault((*where, "full"), f"unknown policy {full!r}{near(str(full), FULL)}")
            full = base.full
        try:
            return replace(parse_bound(body["max"]), full=full) if "max" in body else replace(base, full=full)
        except ValueError as e:
            self.fault((*where, "max"), str(e))
            return base

    # ------------------------------------------------------------ one node

    def _stage_class(self, name: str, body: Any) -> type[Stage] | None:
        where: Path = ("nodes", name)
        if not NAME.fullmatch(name):
            self.fault(where, f"node name {name!r} must be lower case letters, digits, - and _ (at most 32)")
        if not isinstance(body, dict) or "use" not in body:
            self.fault(where, f"node {name!r} needs 'use: STAGE'")
            return None
        try:
            return load_stage(str(body["use"]))
        except StageError as e:
            self.fault((*where, "use"), str(e))
            return None

    def _node(self, name: str, body: Mapping[str, Any], classes: Mapping[str, type[Stage]]) -> NodePlan:
        cls, where = classes[name], ("nodes", name)
        options = {k: v for k, v in body.items() if k not in NODE_KEYS}
        own_queue = body.get("queue")
        inputs = tuple(
            edge
            if own_queue is None
            else replace(edge, bound=self.bound(own_queue, (*where, "queue"), edge.bound))
            for edge in self._inputs(name, body.get("in"), classes)
        )
        if own_queue is not None and not inputs:
            self.bound(own_queue, (*where, "queue"), QUEUES["live"])
        scope = body.get("scope") or ""
        if scope and not (isinstance(scope, str) and NAME.fullmatch(scope)):
            self.fault((*where, "scope"), f"a scope is named in lower case letters; got {scope!r}")
        critical = body.get("critical", False)
        if not isinstance(critical, bool):
            self.fault((*where, "critical"), f"'critical' is true or false, not {critical!r}")
        return NodePlan(
            name=name,
            use=str(body["use"]),
            cls=cls,
            options=self.model(cls.Options, options, where, f"stage {body['use']!r}", extra=NODE_KEYS),
            params=self.model(
                cls.Params,
                self.mapping(body.get("params"), (*where, "params"), "'params'"),
                (*where, "params"),
                f"'params' of stage {body['use']!r}",
            ),
            inputs=inputs,
            pool=str(body.get("pool", "main")),
            scope=str(scope),
            budget=self.duration(body["budget"], (*where, "budget")) if "budget" in body else 0,
            critical=critical is True,
            degrade=self._ladder(body.get("degrade", list(cls.degrade)), (*where, "degrade")),
            driver=self._driver(body.get("sync"), (*where, "sync"), inputs),
            line=self.marks[where][0],
        )

    def _ladder(self, rungs: Any, where: Path) -> tuple[Quality, ...]:
        try:
            return parse_ladder(rungs if isinstance(rungs, list) else [rungs])
        except ValueError as e:
            self.fault(where, str(e))
            return parse_ladder([])

    def _driver(self, value: Any, where: Path, inputs: tuple[EdgePlan, ...]) -> str:
        """`sync: {driver: video}`: the port that sets the pace; also checks what `delay(match …)` names."""
        sources = sorted({e.source_node for e in inputs})
        for edge in inputs:
            other = edge.filters.match
            if other and other not in sources:
                self.fault(
                    (*where[:-1], "in"), f"delay(match {other}): not an input here{near(other, sources)}"
                )
        body = self.mapping(value, where, "'sync'")
        self.keys(body, where, ("driver",), "'sync'")
        driver = body.get("driver", "")
        ports = sorted({e.port for e in inputs})
        if driver and driver not in ports:
            self.fault((*where, "driver"), f"no connected input port {driver!r}{near(str(driver), ports)}")
        return str(driver)

    # ------------------------------------------------------------ inputs

    def _inputs(self, name: str, value: Any, classes: Mapping[str, type[Stage]]) -> list[EdgePlan]:
        cls, where = classes[name], ("nodes", name, "in")
        ports = cls.ports.inputs
        edges: list[EdgePlan] = []
        if value is not None and not ports:
            self.fault(where, f"node {name!r} is a source: it has no inputs")
            return []
        if isinstance(value, dict):
            for port, refs in value.items():
                if port not in ports:
                    self.fault(
                        (*where, port), f"node {name!r} has no input port {port!r}{near(port, list(ports))}"
                    )
                    continue
                for at, ref in self._references(refs, (*where, port)):
                    edges += self._edge(name, port, ref, at, classes)
        elif value is not None:
            for at, ref in self._references(value, where):
                edges += self._edge(name, None, ref, at, classes)
        for port, spec in ports.items():
            count = sum(e.port == port for e in edges)
            if count == 0 and spec.required and not self._broken_under(where):
                needs = " or ".join(kind_of(t) for t in spec.types)
                self.fault(
                    where if value is not None else ("nodes", name),
                    f"input port {name}.{port} ({needs}) is not connected",
                )
            if count > 1 and not spec.many:
                self.fault(where, f"input port {name}.{port} takes one edge, got {count}")
        return edges

    def _broken_under(self, where: Path) -> bool:
        """Did an input of this node already get a fault? Then a second one would only confuse."""
        places = {spot for path, spot in self.marks.items() if path[: len(where)] == where}
        return any((f.line, f.column) in places for f in self.faults)

    def _references(self, value: Any, where: Path) -> list[tuple[Path, str]]:
        items = list(enumerate(value)) if isinstance(value, list) else [(None, value)]
        refs: list[tuple[Path, str]] = []
        for index, ref in items:
            at: Path = where if index is None else (*where, index)
            if isinstance(ref, str):
                refs.append((at, ref))
            else:
                self.fault(at, f"an input is written node.port, not {ref!r}")
        return refs

    def _edge(
        self, name: str, port: str | None, ref: str, where: Path, classes: Mapping[str, type[Stage]]
    ) -> list[EdgePlan]:
        text, *filters = (part.strip() for part in ref.split("|"))
        match = REFERENCE.fullmatch(text)
        if not match:
            self.fault(where, f"an input is written node.port, not {ref!r}")
            return []
        source, source_port = match[1], match[2]
        if source not in classes:
            if source not in self._all_names():
                self.fault(where, f"unknown node {source!r}{near(source, sorted(self._all_names()))}")
            return []
        outputs = classes[source].ports.outputs
        inputs = classes[name].ports.inputs
        wanted = {port: inputs[port]} if port else inputs
        if source_port is None:
            fitting = [o for o, spec in outputs.items() if any(_fits(spec.type, i) for i in wanted.values())]
            if len(fitting) != 1:
                self.fault(
                    where, f"{ref!r} must name a port: {source!r} has {', '.join(outputs) or 'no outputs'}"
                )
                return []
            source_port = fitting[0]
        if source_port not in outputs:
            self.fault(
                where, f"node {source!r} has no output port {source_port!r}{near(source_port, list(outputs))}"
            )
            return []
        out = outputs[source_port]
        target = next((p for p, spec in wanted.items() if _fits(out.type, spec)), None)
        if target is None:
            takes = "; ".join(f"{p}: {' or '.join(kind_of(t) for t in s.types)}" for p, s in wanted.items())
            hints = "".join(f": {s.hint}" for s in wanted.values() if s.hint)
            self.fault(
                where,
                f"{source}.{source_port} carries {kind_of(out.type)}, but {name!r} takes {takes}{hints}",
            )
            return []
        try:
            chain = parse_filters(filters)
        except ValueError as e:
            self.fault(where, str(e))
            return []
        return [EdgePlan(source, source_port, name, target, self.queues[out.origin], chain)]

    def _all_names(self) -> set[str]:
        return {str(p[1]) for p in self.marks if len(p) == 2 and p[0] == "nodes"}

    # ------------------------------------------------------------ across nodes

    def _check_unread(self, nodes: Mapping[str, NodePlan], heard: set[str]) -> None:
        read = heard | {e.source_node for n in nodes.values() for e in n.inputs}
        for name, node in nodes.items():
            if node.cls.ports.outputs and name not in read and not self._broken_under(("nodes",)):
                self.fault(("nodes", name), f"nothing reads the outputs of {name!r}; connect or remove it")

    def _read_cancel(self, cancel: Mapping[str, Any], bodies: Mapping[str, Any]) -> tuple[CancelRule, ...]:
        rules: list[CancelRule] = []
        scopes = sorted({str(b["scope"]) for b in bodies.values() if isinstance(b, dict) and b.get("scope")})
        for scope, value in cancel.items():
            where: Path = ("cancel", scope)
            if scope not in scopes:
                self.fault(where, f"no node has the scope {scope!r}{near(scope, scopes)}")
            body = self.mapping(value, where, f"'cancel.{scope}'")
            self.keys(body, where, CANCEL_KEYS, f"'cancel.{scope}'")
            node, _, event = str(body.get("on", "")).partition(".")
            if node not in bodies or not event:
                self.fault(
                    (*where, "on"),
                    f"'on' names an event of a node, as vad.speech_start; got {body.get('on')!r}",
                )
            within = self.duration(body["within"], (*where, "within")) if "within" in body else 0
            rules.append(CancelRule(scope, node, event, within))
        return tuple(rules)


def _fits(carried: type[Frame], port: In) -> bool:
    return any(issubclass(carried, accepted) for accepted in port.types)
