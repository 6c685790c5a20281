"""The flight recorder: bounded, free of content, a picture for Perfetto, and a replay that decides the same."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from graphs import STAGES, AudioWork, compile_test, run_session, sink_of
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline import trace as traces
from penstock.pipeline.clock import MS, SECOND
from penstock.pipeline.edge import Bound, Edge, Waker
from penstock.pipeline.frame import Frame, TokenFrame
from penstock.pipeline.recorder import Kind, Recorder
from penstock.pipeline.replay import replay
from penstock.pipeline.session import Session
from penstock.pipeline.stage import Out, Outputs, Ports, Stage, StageError
from penstock.pipeline.virtual_loop import run_virtual

GRAPH = """
penstock: 1
graph: talk
nodes:
  mic:   {use: test.audio, frames: 150}
  pass:  {use: test.passing, in: mic.audio}
  work:  {use: test.work, in: pass.audio, takes_ms: %s}
  turns: {use: test.turns}
  voice: {use: test.speaker, in: turns.text, scope: reply}
  ear:   {use: test.sink, in: {audio: voice.audio}, takes_ms: 20.3}
  out:   {use: test.sink, in: {audio: work.audio}, takes_ms: %s}
"""


class Passing(AudioWork):
    """In microseconds, on the spot."""

    inline = True

    def process(self, port: str, frame: Frame, out: Outputs) -> None:  # type: ignore[override]
        out.post("audio", frame)


class Turns(Stage):
    ports = Ports(outputs={"text": Out(TokenFrame, "token")})

    async def run(self, out: Outputs) -> None:
        for i in range(4):
            out.post("text", TokenFrame(pts=self.ctx.clock.now(), text=f"secret {i}"))
            await self.ctx.clock.sleep(777 * MS + i)


STAGES["test.passing"] = Passing
STAGES["test.turns"] = Turns


def recorded(work_ms: float, out_ms: float) -> Session:
    async def barge_in(session: Session) -> None:
        await asyncio.sleep(0.9111)
        session.interrupt("reply")

    return run_virtual(run_session(compile_test(GRAPH % (work_ms, out_ms)), meanwhile=barge_in))


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_a_replay_takes_and_loses_what_the_recorded_session_did(work_ms: int, out_ms: int) -> None:
    # never ready at the very instant that a frame comes: there either order would be right
    session = recorded(work_ms + 0.137, out_ms + 0.731)
    trace = traces.take(session)
    again = replay(trace)
    assert again.edges["turns.text->voice.text"][0].taken >= 3
    assert again.same, again.edges
    assert replay(trace).digest == again.digest
    for runner in session.runners.values():
        for edge in runner.inputs:
            assert again.edges[edge.name][0].taken == edge.delivered


def test_a_flush_is_replayed_too() -> None:
    again = replay(traces.take(recorded(1.137, 1.731)))
    before, after = again.edges["voice.audio->ear.audio"]
    assert before.lost["flushed"] == after.lost["flushed"] > 0


def test_what_was_lost_is_lost_again() -> None:
    again = replay(traces.take(recorded(31.137, 1.731)))
    before, after = again.edges["pass.audio->work.audio"]
    assert before.lost == after.lost
    assert before.lost["overflow"] > 20


def test_the_picture_has_a_track_a_node_and_no_content(tmp_path: Path) -> None:
    session = recorded(25.137, 1.731)
    assert len(sink_of(session).got) > 20
    path = tmp_path / "t.json"
    traces.save(traces.take(session), path)
    document = json.loads(path.read_text())
    events: list[dict[str, Any]] = document["traceEvents"]
    tracks = {e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert tracks == {"mic", "pass", "work", "turns", "voice", "ear", "out"}
    works = [e for e in events if e["ph"] == "X" and e["name"] == "pass.audio"]
    assert any(24_000 < e["dur"] < 27_000 for e in works)  # us
    assert {"flush reply", "lost: overflow"} <= {e["name"] for e in events}
    assert "secret" not in path.read_text()
    assert all(e["ts"] >= 0 for e in events if e["ph"] != "M")


def test_files_come_back_as_they_went(tmp_path: Path) -> None:
    trace = traces.take(recorded(1.137, 1.731))
    for name in ("t.json", "t.json.gz"):
        traces.save(trace, tmp_path / name)
        back = traces.load(tmp_path / name)
        assert (back.events == trace.events).all()
        assert (back.names, back.shape, back.session) == (trace.names, trace.shape, trace.session)


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[1]", b"\x1f\x8bxx", b'{"penstock": {"version": 1}}', b"\xff"]
)
def test_what_is_no_trace_is_refused_in_words(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(StageError, match="is no Penstock trace"):
        traces.load(path)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_damaged_trace_is_refused_or_replayed_never_worse(data: st.DataObject) -> None:
    trace = SHORT
    events = trace.events.copy()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(events) - 1)), data.draw(st.integers(0, 1))
        events[at] = data.draw(st.integers(-3, 40))
    document = traces.perfetto(traces.Trace(trace.session, "", trace.names, trace.shape, trace.events))
    broken = traces.Trace(trace.session, "", trace.names, trace.shape, events)
    try:
        document = traces.perfetto(broken)
        back = traces.parse(document)
    except (ValueError, IndexError):
        return
    replay(back)


SHORT = traces.take(
    run_virtual(run_session(compile_test((GRAPH % (1.137, 1.731)).replace("frames: 150", "frames: 5"))))
)


def test_the_ring_keeps_the_last_seconds_and_never_more_than_its_bound() -> None:
    ring = Recorder(keep=30 * SECOND, most=1000)
    here = ring.name("a.out")
    for second in range(100):
        for i in range(50 if second < 60 else 400):
            ring.note((Kind.POST, here, second * SECOND + i, 0, 0, 0))
        ring.pack(second * SECOND + 999 * MS)
        assert len(ring.events) <= 1000
        if 31 <= second < 50:
            assert ring.events[0, 2] >= (second - 30) * SECOND - SECOND
    assert ring.count == 60 * 50 + 40 * 400
    assert ring.events[-1, 2] == 99 * SECOND + 399


def test_losses_are_noted_once() -> None:
    class Quiet(Waker):
        def __init__(self) -> None:
            pass

        def wake(self) -> None:
            pass

    edge = Edge("a.out", "b", "in", Bound("latest"), Quiet())
    ring = Recorder()
    for i in range(6):
        edge.put(TokenFrame(pts=i, text=""))
        ring.losses([edge], i)
    ring.losses([edge], 9)
    ring.pack(9)
    assert int(ring.events[ring.events[:, 0] == Kind.LOST, 4].sum()) == 5


def test_a_file_run_keeps_none_and_says_so() -> None:
    session = run_virtual(run_session(compile_test(GRAPH % (1, 1)), realtime=False))
    with pytest.raises(StageError, match="keeps no flight recorder"):
        traces.take(session)
