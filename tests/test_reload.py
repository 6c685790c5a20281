from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest
from graphs import STAGES, AudioWork, compile_test, sink_of
from penstock.pipeline import registry
from penstock.pipeline.clock import MS, SECOND, LoopClock
from penstock.pipeline.compiler import load
from penstock.pipeline.reload import apply, diff
from penstock.pipeline.session import Session, SessionEvent
from penstock.pipeline.stage import StageError
from penstock.pipeline.virtual_loop import run_virtual
from penstock.transport.reloader import Reloader

TWO = """
penstock: 1
graph: two
nodes:
  mic:   {use: test.audio, frames: 200}
  first: {use: test.work, in: mic.audio, takes_ms: %s, params: {gain: %s}}
  next:  {use: test.work, in: first.audio}
  out:   {use: test.sink, in: next.audio}
"""


async def running(text: str) -> tuple[Session, list[SessionEvent]]:
    session = Session(compile_test(text), "s", LoopClock(asyncio.get_running_loop()))
    events: list[SessionEvent] = []
    session.listen(events.append)
    await session.start()
    await session.clock.sleep(SECOND)
    return session, events


def test_a_changed_parameter_is_set_live_and_nothing_restarts() -> None:
    async def main() -> None:
        session, _ = await running(TWO % (5, 1))
        stages = {name: runner.stage for name, runner in session.runners.items()}
        new = compile_test(TWO % (5, 2))
        changes = diff(session.plan, new)
        assert changes.params == {"first": {"gain": 2.0}}
        assert not changes.restart
        assert apply(session, new, changes) == []
        await session.wait()
        assert stages["first"].params.gain == 2.0
        assert {name: runner.stage for name, runner in session.runners.items()} == stages
        assert len(sink_of(session).got) == 200

    run_virtual(main())


def test_a_changed_node_gets_a_new_stage_and_the_others_keep_theirs_without_a_gap() -> None:
    async def main() -> None:
        session, events = await running(TWO % (5, 1))
        stages = {name: runner.stage for name, runner in session.runners.items()}
        new = compile_test(TWO % (1, 1))
        changes = diff(session.plan, new)
        assert changes.restart == ("first",)
        assert apply(session, new, changes) == []
        await session.wait()
        kept = {name for name, runner in session.runners.items() if runner.stage is stages[name]}
        assert kept == {"mic", "next", "out"}
        got = sink_of(session).got
        gaps = [b[0] - a[0] for a, b in pairwise(got)]
        assert max(gaps) <= 100 * MS
        assert len(got) == 200  # nothing was lost
        assert [e.name for e in events if e.node == "first"] == ["replaced"]

    run_virtual(main())


def test_a_stage_that_takes_long_to_load_lets_the_old_one_work_on() -> None:
    class Slow(AudioWork):
        async def setup(self) -> None:
            await super().setup()
            await self.ctx.clock.sleep(SECOND)

    async def main() -> None:
        session, _ = await running(TWO % (5, 1))
        STAGES["test.tardy"] = Slow
        try:
            new = compile_test((TWO % (5, 1)).replace("first: {use: test.work", "first: {use: test.tardy"))
        finally:
            del STAGES["test.tardy"]
        assert apply(session, new, diff(session.plan, new)) == []
        await session.wait()
        got = sink_of(session).got
        assert max(b[0] - a[0] for a, b in pairwise(got)) <= 100 * MS
        assert isinstance(session.runners["first"].stage, Slow)

    run_virtual(main())


@pytest.mark.parametrize(
    "error", [StageError("the model file is missing"), MemoryError("no room on the GPU")]
)
def test_a_new_stage_that_cannot_be_set_up_leaves_the_old_one(error: Exception) -> None:
    class Broken(AudioWork):
        async def setup(self) -> None:
            raise error

    async def main() -> None:
        session, events = await running(TWO % (5, 1))
        old = session.runners["first"].stage
        STAGES["test.broken"] = Broken
        try:
            new = compile_test((TWO % (5, 1)).replace("first: {use: test.work", "first: {use: test.broken"))
        finally:
            del STAGES["test.broken"]
        apply(session, new, diff(session.plan, new))
        await session.wait()
        assert session.runners["first"].stage is old
        (told,) = [e for e in events if e.name == "not_replaced"]
        assert str(error) in told.fields["error"]
        assert len(sink_of(session).got) == 200

    run_virtual(main())


def test_what_a_running_session_cannot_take_over_is_told() -> None:
    async def main() -> None:
        session, _ = await running(TWO % (5, 1))
        text = (TWO % (5, 1)).replace("  next:  {use: test.work, in: first.audio}\n", "")
        new = compile_test(
            text.replace("in: next.audio", "in: first.audio").replace("frames: 200", "frames: 9")
        )
        refused = apply(session, new, diff(session.plan, new))
        assert "next: the node was removed" in refused
        assert "out: its inputs, scope or pool changed" in refused
        assert "mic: a source cannot be replaced while its media runs" in refused
        await session.wait()
        assert len(sink_of(session).got) == 200

    run_virtual(main())


def test_a_file_with_faults_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"

    async def main() -> None:
        path.write_text(TWO % (5, 1))
        registry.EXTRA.update(STAGES)
        plan = load(path)
        table = {"two": plan}
        reloader = Reloader(table, list)
        assert (await reloader.reload()).changed == []
        path.write_text((TWO % (5, 1)).replace("test.sink", "test.sync"))
        result = await reloader.reload()
        assert table["two"] is plan
        assert f"{path}:8:" in result.faults[0]
        assert "unknown stage 'test.sync'" in result.words()
        path.write_text(TWO % (7, 1))
        result = await reloader.reload()
        assert result.changed == ["two"]
        assert table["two"].nodes["first"].options.model_dump()["takes_ms"] == 7

    try:
        asyncio.run(main())
    finally:
        registry.EXTRA.clear()
