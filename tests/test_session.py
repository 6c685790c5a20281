from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from graphs import AudioWork, compile_test, run_session, sink_of
from penstock.pipeline.clock import MS, SECOND, LoopClock
from penstock.pipeline.errors import LastingError
from penstock.pipeline.frame import AudioFrame
from penstock.pipeline.session import Session, SessionEvent
from penstock.pipeline.stage import Stage, StageError
from penstock.pipeline.virtual_loop import run_virtual

CHAIN = """
penstock: 1
graph: chain
nodes:
  mic:  {use: test.audio, frames: 50}
  work: {use: test.work, in: mic.audio, %s}
  out:  {use: test.sink, in: work.audio}
"""


def test_frames_go_through_in_order_and_in_time() -> None:
    session = run_virtual(run_session(compile_test(CHAIN % "takes_ms: 5")))
    got = sink_of(session).got
    assert [f.pts for _, _, f in got] == [i * 20 * MS for i in range(50)]
    assert all(at - f.pts == 5 * MS for at, _, f in got)
    assert session.runners["work"].state == "ended"


def test_a_stage_too_slow_for_live_media_drops_and_stays_current() -> None:
    session = run_virtual(run_session(compile_test(CHAIN % "takes_ms: 70")))
    got, gaps = sink_of(session).got, session.runners["work"].inputs[0]
    assert gaps.lost["overflow"] > 20
    # the last two wait for each other: nothing newer pushes them out
    assert max(at - f.pts for at, _, f in got[:-2]) <= (40 + 70 + 20) * MS
    assert gaps.delivered + sum(gaps.lost.values()) == 50


def test_a_file_run_loses_nothing() -> None:
    session = run_virtual(run_session(compile_test(CHAIN % "takes_ms: 70"), realtime=False))
    assert len(sink_of(session).got) == 50


def test_a_session_that_is_closed_while_it_starts_never_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    async def setup(self: AudioWork) -> None:
        await self.ctx.clock.sleep(SECOND)

    async def close(self: AudioWork) -> None:
        closed.append(self.ctx.node)

    monkeypatch.setattr(AudioWork, "setup", setup)
    monkeypatch.setattr(AudioWork, "close", close)

    async def main() -> None:
        session = Session(compile_test(CHAIN % "takes_ms: 5"), "s", LoopClock(asyncio.get_running_loop()))
        starting = asyncio.create_task(session.start())
        waiting = asyncio.create_task(session.wait())
        await asyncio.sleep(0.5)
        assert not waiting.done(), "to wait for a session that starts does not end it"
        await session.close("nobody wants it")
        await waiting
        with pytest.raises(StageError, match="closed while it started"):
            await starting
        assert closed[-1] == "work", "what was set up after the close is closed too"
        await asyncio.sleep(2)
        assert not sink_of(session).got

    run_virtual(main())


def test_a_failing_stage_is_restarted_on_the_same_edges() -> None:
    session = run_virtual(run_session(compile_test(CHAIN % "fail_at: 20")))
    assert session.runners["work"].restarts == 2
    assert len(sink_of(session).got) >= 45 - 2 * 25
    assert session.runners["out"].state == "ended"


def test_a_stage_given_up_passes_its_media_on() -> None:
    events: list[SessionEvent] = []

    async def main() -> Session:
        plan = compile_test((CHAIN % "fail_at: 0").replace("frames: 50", "frames: 400"))
        session = Session(plan, "s", LoopClock(asyncio.get_running_loop()))
        session.listen(events.append)
        await session.start()
        await session.wait()
        return session

    session = run_virtual(main())
    assert session.runners["work"].state == "failed"
    assert "told to fail" in session.runners["work"].error
    assert [e.name for e in events if e.node == "work"] == ["restart", "restart", "restart", "failed"]
    assert len(sink_of(session).got) > 200


def test_a_stage_whose_new_start_can_never_work_is_given_up_at_once() -> None:
    setups = 0

    class Work(AudioWork):
        async def setup(self) -> None:
            nonlocal setups
            setups += 1
            if setups > 1:
                raise LastingError("the checkpoint is gone")

    plan = compile_test(CHAIN % "fail_at: 20")
    work = replace(plan.nodes["work"], cls=Work)
    session = run_virtual(run_session(replace(plan, nodes={**plan.nodes, "work": work})))
    assert session.runners["work"].error == "the checkpoint is gone"
    assert setups == 2


def test_a_bound_end_that_fails_ends_the_session_and_says_why() -> None:
    class Broken(Stage):
        ports = AudioWork.ports

        def process(self, port: str, frame: object, out: object) -> None:
            raise RuntimeError("the wire broke")

    session = run_virtual(
        run_session(compile_test(CHAIN % "takes_ms: 0"), bindings={"test.work": lambda o, p: Broken(o, p)})
    )
    assert session.failure == "work failed: the wire broke"


REPLY = """
penstock: 1
graph: reply
nodes:
  tokens:  {use: test.tokens, frames: 30, every_ms: 100}
  alarm:   {use: test.alarm, in: tokens.text}
  agent:   {use: test.speaker, in: tokens.text, scope: reply}
  out:     {use: test.sink, in: {audio: agent.audio, text: alarm.event}, takes_ms: 20}
cancel: {reply: {on: alarm.alarm, within: 60ms}}
"""


def test_a_cancel_rule_voids_all_older_speech_at_once() -> None:
    session = run_virtual(run_session(compile_test(REPLY)))
    out = sink_of(session)
    assert [f.epoch for f in out.flushes] == [1, 2, 3]
    epoch = 0
    flushed_at = {1: 900 * MS, 2: 1900 * MS, 3: 2900 * MS}
    for at, _, frame in out.got:
        if isinstance(frame, AudioFrame):
            assert frame.epoch >= epoch
            epoch = frame.epoch
            if frame.epoch + 1 in flushed_at:
                assert at <= flushed_at[frame.epoch + 1] + 20 * MS


def test_parameters_change_live_or_not_at_all() -> None:
    async def change(session: Session) -> None:
        session.set_params("work", {"gain": 2})
        with pytest.raises(StageError, match=r"work\.gain: it must be at most 4 \(got 9\)"):
            session.set_params("work", {"gain": 9})
        with pytest.raises(StageError, match=r"'work' has no parameter 'gian'; did you mean 'gain'\?"):
            session.set_params("work", {"gian": 1})
        with pytest.raises(StageError, match="unknown node 'wrk'"):
            session.set_params("wrk", {})
        await asyncio.sleep(0.1)
        assert session.runners["work"].stage.params.gain == 2
        assert session.stats()["nodes"][1]["name"] == "work"

    session = run_virtual(run_session(compile_test(CHAIN % "takes_ms: 0"), meanwhile=change))
    assert session.describe()[1]["params"] == {"gain": 2.0, "mode": "plain"}


def test_close_is_idempotent_and_bounded_even_when_a_stage_clings_on() -> None:
    class Clinging(Stage):
        ports = AudioWork.ports

        async def process(self, port: str, frame: object, out: object) -> None:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                await asyncio.sleep(30)  # a bad citizen: takes its time
                raise

        async def close(
            self,
        ) -> None:  # as that of a file, whose end must be written before the process is left
            closed.append(self.ctx.clock.now())

    closed: list[int] = []

    async def main() -> float:
        plan = compile_test(CHAIN % "takes_ms: 0")
        clock = LoopClock(asyncio.get_running_loop())
        session = Session(plan, "s", clock, bindings={"test.work": lambda o, p: Clinging(o, p)})
        await session.start()
        await asyncio.sleep(0.1)
        start = clock.now()
        await asyncio.gather(session.close(), session.close())
        await session.close()
        assert closed[0] - start <= SECOND // 2
        return (clock.now() - start) / SECOND

    assert run_virtual(main()) <= 2.0


def test_a_failing_setup_leaves_nothing_open() -> None:
    closed: list[str] = []

    class NoModel(Stage):
        ports = AudioWork.ports

        async def setup(self) -> None:
            raise StageError("model 'x' is missing; run: penstock models pull x")

        async def close(self) -> None:
            closed.append("closed")

    async def main() -> None:
        plan = compile_test(CHAIN % "takes_ms: 0")
        clock = LoopClock(asyncio.get_running_loop())
        session = Session(plan, "s", clock, bindings={"test.work": lambda o, p: NoModel(o, p)})
        with pytest.raises(StageError, match="node 'work': model 'x' is missing"):
            await session.start()
        assert len(asyncio.all_tasks()) == 1

    run_virtual(main())
    assert closed == ["closed"]


def test_the_same_simulation_runs_the_same_way_twice() -> None:
    def trace() -> list[tuple[int, str, int]]:
        session = run_virtual(run_session(compile_test(REPLY)))
        return [(at, source, f.pts) for at, source, f in sink_of(session).got]

    assert trace() == trace()
