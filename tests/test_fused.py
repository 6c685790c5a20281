"""A chain of cheap stages runs as one task; nothing that users can see may differ from queues."""

from __future__ import annotations

import asyncio
from typing import ClassVar

from graphs import STAGES, AudioWork, compile_test, run_session, sink_of
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.clock import MS
from penstock.pipeline.frame import AudioFrame, Frame
from penstock.pipeline.session import Session
from penstock.pipeline.stage import Outputs, Stage
from penstock.pipeline.virtual_loop import run_virtual


class Cheap(Stage):
    ports = AudioWork.ports
    Params = AudioWork.Params
    fail_on: ClassVar[set[int]] = set()
    seen_gains: ClassVar[list[float]] = []

    def process(self, port: str, frame: Frame, out: Outputs) -> None:
        if frame.pts // (20 * MS) in self.fail_on:
            self.fail_on.discard(frame.pts // (20 * MS))
            raise ValueError("told to fail")
        self.seen_gains.append(self.params.gain)
        out.post("audio", frame)


class Fused(Cheap):
    inline = True
    fail_on: ClassVar[set[int]] = set()
    seen_gains: ClassVar[list[float]] = []


STAGES["test.cheap"] = Cheap
STAGES["test.fused"] = Fused

CHAIN = """
penstock: 1
graph: chain
nodes:
  mic: {use: test.audio, frames: 60}
  a:   {use: test.KIND, in: mic.audio}
  b:   {use: test.KIND, in: a.audio}
  c:   {use: test.KIND, in: b.audio}
  out: {use: test.sink, in: c.audio, takes_ms: %f}
"""


def trace(kind: str, takes_ms: float) -> tuple[list[tuple[int, int]], dict[str, int]]:
    session = run_virtual(run_session(compile_test(CHAIN.replace("KIND", kind) % takes_ms)))
    got = [(at, f.pts) for at, _, f in sink_of(session).got if isinstance(f, AudioFrame)]
    edges = [e for r in session.runners.values() for e in r.inputs]
    assert all(e.puts == e.taken + e.inlined + sum(e.lost.values()) for e in edges)
    out = session.runners["out"]
    assert out.inputs[0].delivered == len(sink_of(session).got)
    assert out.processed == len(sink_of(session).got) + len(sink_of(session).gaps)
    return got, dict(session.runners["out"].inputs[0].lost)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 90))
def test_a_fused_chain_delivers_what_a_queued_one_does(takes_ms: int) -> None:
    odd = takes_ms + 0.137  # never ready at the very instant that a frame comes: either order would be right
    assert trace("fused", odd) == trace("cheap", odd)


def test_a_fused_chain_switches_no_task_between_its_stages() -> None:
    session = run_virtual(run_session(compile_test(CHAIN.replace("KIND", "fused") % 0)))
    assert [session.runners[n].inputs[0].peak for n in "abc"] == [1, 1, 1]  # the first, before they sleep
    assert [session.runners[n].processed for n in "abc"] == [60, 60, 60]


def test_a_failure_on_a_fused_edge_is_the_failing_nodes_own() -> None:
    Fused.fail_on.update({20})
    session = run_virtual(run_session(compile_test(CHAIN.replace("KIND", "fused") % 0)))
    assert sum(session.runners[n].restarts for n in "abc") == 1
    assert session.runners["mic"].restarts == 0
    assert len(sink_of(session).got) >= 45


def test_control_comes_before_the_next_frame_on_a_fused_edge() -> None:
    async def change(session: Session) -> None:
        await asyncio.sleep(0.5)
        Fused.seen_gains.clear()
        session.set_params("b", {"gain": 3})
        await asyncio.sleep(0.2)

    run_virtual(run_session(compile_test(CHAIN.replace("KIND", "fused") % 0), meanwhile=change))
    first = Fused.seen_gains[:6]
    assert first[1::3] == [3, 3]


def test_an_inline_stage_behind_a_delayed_edge_gets_its_frames_late() -> None:
    delayed = CHAIN.replace("KIND", "fused").replace("in: a.audio", "in: a.audio|delay(100ms)") % 0
    session = run_virtual(run_session(compile_test(delayed)))
    ages = [at - f.pts for at, _, f in sink_of(session).got if isinstance(f, AudioFrame)]
    assert min(ages) >= 100 * MS


def test_a_port_that_is_not_there_is_told_by_the_node_that_has_none() -> None:
    class Wrong(Fused):
        def process(self, port: str, frame: Frame, out: Outputs) -> None:
            out.post("video", frame)

    STAGES["test.wrong"] = Wrong
    text = CHAIN.replace("b:   {use: test.KIND", "b:   {use: test.wrong").replace("KIND", "fused") % 0
    session = run_virtual(run_session(compile_test(text)))
    assert session.runners["b"].error == "'b' has no output port 'video'; it has: audio"
