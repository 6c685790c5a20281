"""`late` events: a node whose frames die of their deadline is told of, now and then, and off the data path."""

from __future__ import annotations

import asyncio
import itertools

from graphs import STAGES, compile_test, run_session
from penstock.pipeline.clock import MS, SECOND
from penstock.pipeline.event_plan import EventsPlan
from penstock.pipeline.frame import Frame, TokenFrame
from penstock.pipeline.session import Session, SessionEvent
from penstock.pipeline.stage import DeadlineMissed, In, Out, Outputs, Ports, Stage
from penstock.pipeline.virtual_loop import run_virtual

GRAPH = """
penstock: 1
graph: dues
nodes:
  src:  {use: test.dues}
  slow: {use: test.slow, in: src.text}
  out:  {use: test.sink, in: {text: [slow.text]}}
"""


class Dues(Stage):
    """12 s of tokens, ten a second, each good for 150 ms; the last four seconds it takes its time."""

    ports = Ports(outputs={"text": Out(TokenFrame, "token")})

    async def run(self, out: Outputs) -> None:
        for i in range(120):
            now = self.ctx.clock.now()
            await out.send("text", TokenFrame(pts=now, deadline=now + 150 * MS, text=str(i)))
            await self.ctx.clock.sleep((100 if i < 100 else 400) * MS)


class Slow(Stage):
    """250 ms a token; every third misses its deadline in a pool."""

    ports = Ports(inputs={"text": In(TokenFrame)}, outputs={"text": Out(TokenFrame, "token")})

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        assert isinstance(frame, TokenFrame)
        await self.ctx.clock.sleep(250 * MS)
        if int(frame.text) % 3 == 0:
            raise DeadlineMissed("told to")


STAGES["test.dues"] = Dues
STAGES["test.slow"] = Slow


def test_late_frames_are_told_of_at_once_and_then_seldom() -> None:
    told: list[SessionEvent] = []

    async def listen(session: Session) -> None:
        session.listen(lambda e: told.append(e) if e.name == "late" else None)
        await asyncio.sleep(0)

    session = run_virtual(run_session(compile_test(GRAPH), meanwhile=listen))
    slow = session.runners["slow"]
    assert {e.node for e in told} == {"slow"}
    assert told[0].pts <= 2 * SECOND
    assert all(b.pts - a.pts >= 5 * SECOND for a, b in itertools.pairwise(told))
    assert 2 <= len(told) <= 5
    assert told[-1].fields["total"] == sum(e.fields["count"] for e in told) <= slow.late
    assert slow.missed > 0
    assert slow.inputs[0].lost["late"] > 0


def test_they_leave_the_daemon_where_the_graph_asks() -> None:
    assert EventsPlan(emit=("*.late",)).wants("slow", "late")
    assert not EventsPlan().wants("slow", "late")
    assert EventsPlan().wants("slow", "restart")
    # 144 numbers several times a second are sent to nobody by a star
    assert EventsPlan(emit=("watch.*",)).wants("watch", "answered")
    assert not EventsPlan(emit=("watch.*", "*")).wants("watch", "importance")
    assert EventsPlan(emit=("*.importance",)).wants("watch", "importance")
