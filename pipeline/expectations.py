"""What a graph's test expects of a run, as a file says it, and how a run compares with that."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, field_validator

from .clock import MS, SECOND
from .errors import GraphError
from .faults import Faults, near
from .frame import TokenFrame
from .graph import Plan
from .units import Duration
from .yaml_marks import parse

Kind: TypeAlias = Literal["text", "frames", "event"]

KEYS = ("in", "params", "expect", "slo", "speed")
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TextExpectation(_Strict):
    """Of a port that carries text. Case and punctuation do not count."""

    words: str | None = None
    wer: float = Field(default=0.0, ge=0, le=1, description="word error rate that is let pass")
    contains: tuple[str, ...] = ()
    lacks: tuple[str, ...] = ()
    matches: str | None = Field(default=None, description="a regular expression somewhere in the text")

    @field_validator("contains", "lacks", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("matches")
    @classmethod
    def _expression(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as e:
            raise ValueError(f"not a regular expression: {e}") from e
        return value


class CountExpectation(_Strict):
    """Of events by name, or of a port's frames; `at` and `within` of events only."""

    count: int | None = Field(default=None, ge=0)
    min: int | None = Field(default=None, ge=0)
    max: int | None = Field(default=None, ge=0)
    at: tuple[Duration, ...] | None = None
    within: Duration = 100 * MS


class CaseModel(_Strict):
    """One run."""

    source: str | None = None
    params: dict[str, dict[str, Any]] = Field(default_factory=dict)
    expect: dict[str, Any] = Field(default_factory=dict)
    slo: bool = False
    speed: float | None = Field(default=None, gt=0, description="times real time, at least")


@dataclass(frozen=True, slots=True)
class Expected:
    """target: "node.port" or "node.event"."""

    target: str
    kind: Kind
    model: TextExpectation | CountExpectation


@dataclass(frozen=True, slots=True)
class Case:
    """source: a file, found from where the test's file stands; "synthetic:3s"; or None."""

    name: str
    source: str | None
    params: Mapping[str, Mapping[str, Any]]
    expected: tuple[Expected, ...]
    slo: bool
    speed: float | None


@dataclass(slots=True)
class Seen:
    """What a run gave, by target: text, frames, and the pts of events, ns."""

    texts: dict[str, str] = field(default_factory=dict[str, str])
    frames: dict[str, int] = field(default_factory=dict[str, int])
    events: dict[str, list[int]] = field(default_factory=dict[str, list[int]])


def read_cases(path: Path, plan: Plan) -> list[Case]:
    """Raises: GraphError with every fault and its place; OSError."""
    data, marks = parse(path.read_text(encoding="utf-8", errors="replace"), str(path))
    faults = Faults(marks)
    body = faults.mapping(data, (), "a test file")
    faults.keys(body, (), ("penstock_test", "cases"), "a test file")
    if body.get("penstock_test") != 1:
        faults.fault(("penstock_test",), "a test file starts with 'penstock_test: 1'")
    cases: list[Case] = []
    given = faults.mapping(body.get("cases"), ("cases",), "'cases'")
    if not given and not body.get("cases"):
        faults.fault(("cases",), "'cases' names no case")
    for name, value in given.items():
        where = ("cases", name)
        body = faults.mapping(value, where, f"case {name!r}")
        before = len(faults.faults)
        faults.keys(body, where, KEYS, f"case {name!r}")
        known = {("source" if key == "in" else key): v for key, v in body.items() if key in KEYS}
        read = faults.model(CaseModel, known, where, f"case {name!r}")
        if not isinstance(read, CaseModel) or len(faults.faults) > before:
            continue
        if not (read.expect or read.slo or read.speed):
            faults.fault(where, f"case {name!r} expects nothing")
        for node in read.params:
            if node not in plan.nodes:
                faults.fault((*where, "params", node), f"unknown node {node!r}{near(node, list(plan.nodes))}")
        expected = [
            one
            for target, wanted in read.expect.items()
            if (one := _expected(target, wanted, plan, faults, (*where, "expect", target))) is not None
        ]
        cases.append(
            Case(name, _found(read.source, path), read.params, tuple(expected), read.slo, read.speed)
        )
    if faults.faults:
        raise GraphError(str(path), faults.faults)
    return cases


def _found(source: str | None, path: Path) -> str | None:
    if source is None or "://" in source or source.startswith(("synthetic", "/")):
        return source
    return str(path.parent / source)


def _expected(
    target: str, wanted: Any, plan: Plan, faults: Faults, where: tuple[str | int, ...]
) -> Expected | None:
    node, _, name = target.partition(".")
    if node not in plan.nodes or not name:
        faults.fault(where, f"{target!r} is no node.port and no node.event{near(node, list(plan.nodes))}")
        return None
    port = plan.nodes[node].cls.ports.outputs.get(name)
    if port is not None and issubclass(port.type, TokenFrame):
        body = {"words": wanted} if isinstance(wanted, str) else wanted
        model = faults.model(TextExpectation, faults.mapping(body, where, target), where, target)
        return Expected(target, "text", model) if isinstance(model, TextExpectation) else None
    body = {"count": wanted} if isinstance(wanted, int) else wanted
    model = faults.model(CountExpectation, faults.mapping(body, where, target), where, target)
    if not isinstance(model, CountExpectation):
        return None
    if port is not None and model.at is not None:
        faults.fault(where, f"{target}: 'at' is for events; frames are counted")
    return Expected(target, "frames" if port is not None else "event", model)


# ---------------------------------------------------------------- comparing


def compare(expected: Expected, seen: Seen) -> list[str]:
    """What differs, in lines for people; nothing when all is as expected."""
    if isinstance(expected.model, TextExpectation):
        return _compare_text(expected.target, expected.model, seen.texts.get(expected.target, ""))
    if expected.kind == "frames":
        return _compare_count(expected.target, expected.model, seen.frames.get(expected.target, 0), "frames")
    times = seen.events.get(expected.target, [])
    lines = _compare_count(expected.target, expected.model, len(times), "events")
    if expected.model.at is not None:
        lines += _compare_times(expected.target, expected.model.at, times, expected.model.within)
    return lines


def _compare_count(target: str, wanted: CountExpectation, got: int, what: str) -> list[str]:
    checks = (
        (wanted.count, "exactly", wanted.count is None or got == wanted.count),
        (wanted.min, "at least", wanted.min is None or got >= wanted.min),
        (wanted.max, "at most", wanted.max is None or got <= wanted.max),
    )
    return [f"{target}: {got} {what}, expected {how} {n}" for n, how, kept in checks if not kept]


def _compare_times(target: str, wanted: Sequence[int], got: Sequence[int], within: int) -> list[str]:
    left, missing = list(got), list[int]()
    for at in wanted:
        nearest = min(left, key=lambda t, at=at: abs(t - at), default=None)
        if nearest is None or abs(nearest - at) > within:
            missing.append(at)
        else:
            left.remove(nearest)
    if not missing and not left:
        return []
    seconds = [f"{t / SECOND:.2f}" for t in got]
    lines = [f"{target}: at {', '.join(seconds) or 'no time'} s"]
    lines += [f"  - expected at {at / SECOND:.2f} s ± {within / SECOND:g}" for at in missing]
    lines += [f"  + not expected at {at / SECOND:.2f} s" for at in left]
    return lines


def _compare_text(target: str, wanted: TextExpectation, got: str) -> list[str]:
    lines: list[str] = []
    words, plain = spoken(got), " ".join(spoken(got))
    if wanted.words is not None:
        rate = word_error_rate(spoken(wanted.words), words)
        if rate > wanted.wer:
            lines.append(f"{target}: word error rate {rate:.2f}, expected at most {wanted.wer:.2f}")
            lines += [f"  {line}" for line in _word_diff(spoken(wanted.words), words)]
    for part in wanted.contains:
        if " ".join(spoken(part)) not in plain:
            lines.append(f"{target}: lacks {part!r}; it is {_short(got)}")
    for part in wanted.lacks:
        if " ".join(spoken(part)) in plain:
            lines.append(f"{target}: has {part!r}; it is {_short(got)}")
    if wanted.matches is not None and not re.search(wanted.matches, got):
        lines.append(f"{target}: does not match {wanted.matches!r}; it is {_short(got)}")
    return lines


def spoken(text: str) -> list[str]:
    """The words as one would say them: without case and punctuation."""
    return _WORD.findall(text.lower())


def word_error_rate(wanted: Sequence[str], got: Sequence[str]) -> float:
    """Levenshtein distance in words over the number of words expected; 1.0 for any word where none is."""
    row = list(range(len(got) + 1))
    for i, word in enumerate(wanted, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(got, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1] / len(wanted) if wanted else float(bool(got))


def _word_diff(wanted: Sequence[str], got: Sequence[str]) -> list[str]:
    lines: list[str] = []
    for op, a, b, c, d in SequenceMatcher(None, wanted, got, autojunk=False).get_opcodes():
        if op == "equal":
            lines.append(f"  {' '.join(wanted[a:b])}")
            continue
        if b > a:
            lines.append(f"- {' '.join(wanted[a:b])}")
        if d > c:
            lines.append(f"+ {' '.join(got[c:d])}")
    return lines or ["+ (nothing)"]


def _short(text: str) -> str:
    return repr(text if len(text) <= 200 else text[:200] + "…")
