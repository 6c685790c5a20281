"""`penstock test`: runs a graph on recorded input, as fast as it goes, and compares with what its test expects."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .clock import SECOND, Clock
from .expectations import Case, Seen, compare
from .explain import verdicts
from .frame import Frame, TokenFrame
from .graph import Plan
from .session import Binding, Session, SessionEvent
from .stage import Outputs, Stage, StageError

_ROOT = __name__.split(".")[0]


@dataclass(frozen=True, slots=True)
class Outcome:
    """differences: lines for people; none when the case passed."""

    case: str
    differences: tuple[str, ...]
    media_s: float
    wall_s: float


def cases_beside(graph: Path) -> Path:
    """Where the tests of a graph file are: beside it, or in the folder `tests` for embedded ones."""
    beside = graph.with_name(f"{graph.stem}.test.yaml")
    embedded = graph.parent / "tests" / graph.name
    for path in (beside, embedded):
        if path.is_file():
            return path
    raise StageError(
        f"{graph} has no tests: write {beside.name} beside it (docs/testing.md), or name one with --cases"
    )


async def run_case(plan: Plan, case: Case, clock: Clock) -> Outcome:
    """Run one case to the end of its input. Raises: StageError when it cannot start, or fails for good."""
    seen, length = Seen(), 0

    def progress(pts: int, _duration: int) -> None:
        nonlocal length
        length = max(length, pts)

    session = Session(plan, "test", clock, bindings=_ends(plan, case, progress), realtime=False)
    session.listen(lambda event: _event(event, seen))
    began = clock.now()
    await session.start()
    try:
        _tap(session, case, seen)  # before any task of the session has run
        for node, values in case.params.items():
            session.set_params(node, values)
        await session.wait()
    finally:
        await session.close("tested")
    if session.failure:
        raise StageError(session.failure)
    wall_s, media_s = (clock.now() - began) / SECOND, length / SECOND
    differences = [line for expected in case.expected for line in compare(expected, seen)]
    differences += [
        f"{r.node}: {r.error} ({r.restarts} restarts)" for r in session.runners.values() if r.error
    ]
    if case.slo:
        differences += [
            f"slo {v.name}: {(v.worst or 0) / 1e6:g} ms at worst, expected at most {v.slo / 1e6:g} ms"
            for v in verdicts(plan)
            if not v.kept
        ]
    if case.speed is not None and media_s < case.speed * wall_s:
        differences.append(f"speed {media_s / wall_s:.2f} times real time, expected at least {case.speed:g}")
    return Outcome(case.name, tuple(differences), media_s, wall_s)


class _Nothing(Stage):
    """Stands at the live end and takes everything."""

    def process(self, port: str, frame: Frame, out: Outputs) -> None:
        pass


def _ends(plan: Plan, case: Case, progress: Callable[[int, int], None]) -> dict[str, Binding]:
    ends: dict[str, Binding] = {}
    if plan.find("webrtc.in"):
        if case.source is None:
            raise StageError(
                f"case {case.name!r}: graph {plan.name!r} reads a live client: give it 'in: FILE'"
            )
        file_ends = importlib.import_module(f"{_ROOT}.transport.file_ends")
        ends["webrtc.in"] = file_ends.source(case.source, progress)
    elif case.source is not None:
        raise StageError(f"case {case.name!r}: graph {plan.name!r} has no webrtc.in for 'in' to stand in for")
    sink = plan.find("webrtc.out")
    if sink is not None:
        cls = type("Nothing", (_Nothing,), {"ports": sink.cls.ports, "Options": sink.cls.Options})
        ends["webrtc.out"] = lambda options, params: cls(options, params)
    return ends


def _event(event: SessionEvent, seen: Seen) -> None:
    seen.events.setdefault(f"{event.node}.{event.name}", []).append(event.pts)


def _tap(session: Session, case: Case, seen: Seen) -> None:
    """Hear what the expected ports carry, whether or not anything reads them."""
    for target in (e.target for e in case.expected if e.kind != "event"):
        node, _, port = target.partition(".")
        session.runners[node].out.hear(port, _ear(target, seen))


def _ear(target: str, seen: Seen) -> Callable[[Frame], None]:
    def hear(frame: Frame) -> None:
        seen.frames[target] = seen.frames.get(target, 0) + 1
        if isinstance(frame, TokenFrame):
            # deltas of one utterance run on, whole ones stand apart
            seen.texts[target] = seen.texts.get(target, "") + frame.text + (" " if frame.end else "")

    return hear
