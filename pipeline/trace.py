"""A flight recorder's contents as a trace file: opens in Perfetto (ui.perfetto.dev), and can be replayed.

The format is the Trace Event Format in JSON (one track a node, one slice a frame, instants for events, flushes and
losses, counters for queues). Under the key `penstock`, which viewers pass over, it carries the exact events and what
of the graph a replay needs. No content: no words, no media, no field of any event.
"""

from __future__ import annotations

import base64
import gzip
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .edge import Full
from .faults import first_in_words
from .recorder import Kind
from .stage import StageError
from .units import written_as

if TYPE_CHECKING:
    from .session import Session

MAX_FILE = 256 << 20  # bytes, unpacked: a larger one is no trace of ours
MAX_EVENTS = 4_000_000


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class EdgeShape(_Model):
    """An edge as a replay makes it again. Times in ns."""

    source: Annotated[str, written_as(r"[^.]+\.[^.]+", "node.port")]
    node: str
    port: str
    full: Full
    span: int = Field(ge=1)
    count: int = Field(ge=1)
    thin: int = Field(default=0, ge=0)
    hold: int = Field(default=0, ge=0)
    delay: int = Field(default=0, ge=0)
    match: str = ""


class NodeShape(_Model):
    name: str
    outputs: list[str]
    scope: str = ""
    inline: bool = False
    driver: str = ""


class Shape(_Model):
    """What of a graph moves frames."""

    graph: str
    nodes: list[NodeShape]
    edges: list[EdgeShape]


class _Carried(_Model):
    version: int = Field(ge=1, le=1)
    session: str
    reason: str
    names: list[str]
    shape: Shape
    events: str


@dataclass(frozen=True, slots=True)
class Trace:
    """events: (n, 6), see `recorder.Kind`."""

    session: str
    reason: str
    names: list[str]
    shape: Shape
    events: NDArray[np.int64]


def take(session: Session, reason: str = "asked for") -> Trace:
    """What the session's recorder holds now. Raises: StageError when it keeps none."""
    if session.recorder is None:
        raise StageError(f"session {session.id!r} keeps no flight recorder: only those in real time do")
    session.pack()
    plan = session.plan
    nodes = [
        NodeShape(
            name=n.name,
            outputs=list(n.cls.ports.outputs),
            scope=n.scope,
            inline=n.cls.inline,
            driver=n.driver,
        )
        for n in plan.nodes.values()
    ]
    edges = [
        EdgeShape(
            source=e.source,
            node=e.node,
            port=e.port,
            full=e.bound.full,
            span=e.bound.span,
            count=e.bound.count,
            thin=e.filters.thin,
            hold=e.filters.hold,
            delay=e.filters.delay,
            match=e.filters.match,
        )
        for e in plan.edges()
    ]
    shape = Shape(graph=plan.name, nodes=nodes, edges=edges)
    return Trace(session.id, reason, list(session.recorder.names), shape, session.recorder.events)


# ---------------------------------------------------------------- for viewers


def perfetto(trace: Trace) -> dict[str, Any]:
    """The whole file's content."""
    packed = zlib.compress(trace.events.astype("<i8").tobytes(), 6)
    carried = {
        "version": 1,
        "session": trace.session,
        "reason": trace.reason,
        "names": trace.names,
        "shape": trace.shape.model_dump(),
        "events": base64.b64encode(packed).decode(),
    }
    return {"traceEvents": _slices(trace), "displayTimeUnit": "ms", "penstock": carried}


def _slices(trace: Trace) -> list[dict[str, Any]]:
    names = trace.names
    tracks = {node.name: i + 1 for i, node in enumerate(trace.shape.nodes)}
    readers = {f"{e.source}->{e.node}.{e.port}": e.node for e in trace.shape.edges}
    out: list[dict[str, Any]] = [
        _named("process_name", 0, f"{trace.shape.graph} {trace.session}"),
        *(_named("thread_name", tid, name) for name, tid in tracks.items()),
    ]
    began: dict[str, dict[str, Any]] = {}  # node → the slice of its last TAKE
    for kind, where, at, a, b, c in trace.events.tolist():
        name, us = names[where], at / 1000
        if kind in (Kind.TAKE, Kind.FUSED, Kind.GAP):
            node: str = readers.get(name) or name
            args: dict[str, Any] = {"pts_ms": a / 1e6, "age_ms": (at - a) / 1e6, "epoch": c}
            what = name.partition("->")[0]
            if kind == Kind.GAP:
                args, what = {"pts_ms": a / 1e6, "lost": b}, f"gap of {what}"
            slice_ = _event("X", what, us, tracks.get(node, 0), dur=0, args=args)
            out.append(slice_)
            began[node] = slice_
            if kind == Kind.TAKE:
                out.append(_event("C", f"queue {name}", us, 0, args={"frames": b}))
        elif kind == Kind.DONE and name in began:
            slice_ = began.pop(name)
            slice_["dur"] = max(0, us - slice_["ts"])
        elif kind == Kind.EVENT:
            out.append(_event("i", f"{name}.{names[b]}", us, tracks.get(name, 0), s="t"))
        elif kind == Kind.FLUSH:
            out.append(_event("i", f"flush {name}", us, 0, s="p", args={"epoch": c}))
        elif kind == Kind.LOST:
            args = {"edge": name, "frames": b}
            out.append(
                _event("i", f"lost: {names[a]}", us, tracks.get(readers.get(name, ""), 0), s="t", args=args)
            )
    return out


def _event(phase: str, name: str, us: float, tid: int, **more: Any) -> dict[str, Any]:
    return {"ph": phase, "name": name, "ts": us, "pid": 1, "tid": tid, **more}


def _named(what: str, tid: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "name": what, "pid": 1, "tid": tid, "args": {"name": name}}


# ---------------------------------------------------------------- files


def save(trace: Trace, path: Path) -> None:
    """Write it; packed when the name ends in .gz."""
    content = json.dumps(perfetto(trace), separators=(",", ":")).encode()
    path.write_bytes(gzip.compress(content, 5) if path.suffix == ".gz" else content)


def load(path: Path) -> Trace:
    """Raises: StageError when that is no trace of ours, OSError."""
    content = path.read_bytes()
    try:
        if content[:2] == b"\x1f\x8b":
            unpack = zlib.decompressobj(wbits=31)
            content = unpack.decompress(content, MAX_FILE)
            if unpack.unconsumed_tail:
                raise ValueError(f"more than {MAX_FILE >> 20} MB")
        return parse(json.loads(content))
    except (ValueError, zlib.error, RecursionError) as e:
        raise StageError(f"{path} is no Penstock trace: {_first_line(e)}") from None


def parse(document: Any) -> Trace:
    """A file's content. Raises: ValueError."""
    if not isinstance(document, dict) or "penstock" not in document:
        raise ValueError("it has no key 'penstock'")
    carried = _Carried.model_validate(document["penstock"])
    unpack = zlib.decompressobj()
    raw = unpack.decompress(base64.b64decode(carried.events, validate=True), MAX_EVENTS * 48)
    if unpack.unconsumed_tail or len(raw) % 48:
        raise ValueError("its events are cut off, or too many")
    events = np.frombuffer(raw, "<i8").astype(np.int64).reshape(-1, 6)
    n = len(carried.names)
    named = events[:, 1]
    if len(events) and (
        named.min() < 0
        or named.max() >= n
        or not np.isin(events[:, 0], [int(k) for k in Kind]).all()
        or _out_of(events, Kind.EVENT, 4, n)
        or _out_of(events, Kind.LOST, 3, n)
    ):
        raise ValueError("an event names nothing that it lists")
    return Trace(carried.session, carried.reason, carried.names, carried.shape, events)


def _out_of(events: NDArray[np.int64], kind: Kind, column: int, n: int) -> bool:
    values = events[events[:, 0] == kind, column]
    return bool(len(values)) and bool(values.min() < 0 or values.max() >= n)


def _first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return first_in_words(error)
    return (str(error).splitlines() or ["damaged"])[0]
