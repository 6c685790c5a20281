from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import sys
import threading
import time
import weakref
from types import FrameType

import pytest
from graphs import STAGES, AudioWork, Sink, compile_test, run_session, sink_of
from penstock.pipeline import watchdog as watchdog_module
from penstock.pipeline.clock import MS, SECOND, LoopClock, MonotonicClock
from penstock.pipeline.degrade import Quality
from penstock.pipeline.frame import AudioFrame, Frame, TokenFrame
from penstock.pipeline.node_pool import NodePool
from penstock.pipeline.pool_plan import PoolPlan
from penstock.pipeline.pools import Pools
from penstock.pipeline.session import Session
from penstock.pipeline.stage import In, Out, Outputs, Ports, Stage
from penstock.pipeline.virtual_loop import run_virtual
from penstock.pipeline.watchdog import LoopWatchdog, culprit

GRAPH = """
penstock: 1
graph: hang
nodes:
  mic:  {use: test.audio, frames: 1500}
  work: {use: test.%s, in: mic.audio}
  out:  {use: test.sink, in: work.audio}
"""


class Hangs(Stage):
    """Waits for ever at its tenth frame, once."""

    ports = AudioWork.ports
    hung = False

    async def setup(self) -> None:
        self.seen = 0

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        self.seen += 1
        if self.seen == 10 and not Hangs.hung:
            Hangs.hung = True
            await asyncio.get_running_loop().create_future()
        await out.send("audio", frame)


class Blocks(Stage):
    """Does on the loop what belongs in a pool."""

    ports = AudioWork.ports

    def process(self, port: str, frame: Frame, out: Outputs) -> None:
        time.sleep(0.5)
        raise RuntimeError("blocked once")


STAGES["test.hangs"] = Hangs
STAGES["test.blocks"] = Blocks


def test_a_call_that_never_returns_is_ended_and_the_stage_restarted() -> None:
    Hangs.hung = False
    session = run_virtual(run_session(compile_test(GRAPH % "hangs")))
    work = session.runners["work"]
    assert work.restarts == 1
    assert work.error == "no progress in 10 s: the call was ended"
    got = [at for at, _, _ in sink_of(session).got]
    assert max(b - a for a, b in itertools.pairwise(got)) < 12 * SECOND
    assert len(got) > 800


class Busy(Sink):
    """Takes 15 s a frame and says that it works."""

    busy = True  # pyright: ignore[reportAssignmentType, reportIncompatibleMethodOverride] - a constant here

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        await self.ctx.clock.sleep(15 * SECOND)


STAGES["test.busy"] = Busy


def test_backpressure_and_declared_work_are_no_hang() -> None:
    text = GRAPH.replace("frames: 1500", "frames: 10").replace(
        "test.sink, in: work.audio}", "test.busy, in: work.audio, queue: {max: 1, full: block}}"
    )
    session = run_virtual(run_session(compile_test(text % "work")))
    assert session.runners["out"].processed >= 2
    assert [r.restarts for r in session.runners.values()] == [0, 0, 0]


def test_the_loop_watchdog_names_the_stage_that_blocks() -> None:
    async def main() -> LoopWatchdog:
        watchdog = LoopWatchdog(lag=100 * MS)
        watchdog.start()
        session = Session(compile_test(GRAPH % "blocks"), "s-7", LoopClock(asyncio.get_running_loop()))
        await session.start()
        await asyncio.sleep(0.8)
        await session.close()
        watchdog.stop()
        return watchdog

    watchdog = asyncio.run(main())
    assert watchdog.blocks >= 1
    assert watchdog.last.startswith("s-7/work in ")
    assert "test_watchdog.py" in watchdog.last


@pytest.mark.parametrize(
    ("waited", "collected", "where", "words", "blamed"),
    [
        (0, 0, "blocks", "was blocked for", True),
        (SECOND, 0, "blocks", "the machine is too busy", False),
        (0, SECOND, "blocks", "garbage collection took", False),
        (0, 0, "select", "another thread held the interpreter", False),
    ],
)
def test_a_loop_that_is_late_for_want_of_a_processor_blames_nobody(
    waited: int,
    collected: int,
    where: str,
    words: str,
    blamed: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    watchdog = LoopWatchdog()
    found = f"selectors.py:468 {where}"
    watchdog._tell(found, SECOND, waited, collected)  # pyright: ignore[reportPrivateUsage]
    assert words in caplog.text
    assert (watchdog.blocks > 0, watchdog.starved > 0) == (blamed, not blamed)
    assert bool(watchdog.last) == blamed, "who is not to blame does not hide the last who was"


def test_what_was_found_of_one_beat_is_not_told_of_the_next() -> None:
    """The thread that looks may be overtaken by the loop."""

    async def main() -> list[int]:
        watchdog = LoopWatchdog()
        watchdog.start()
        told: list[int] = []
        late = watchdog._beat  # pyright: ignore[reportPrivateUsage]
        for _ in range(2):
            watchdog._found = (late, "work")  # pyright: ignore[reportPrivateUsage]
            watchdog._tick()  # pyright: ignore[reportPrivateUsage]
            told.append(watchdog.blocks + watchdog.starved)
        watchdog.stop()
        return told

    assert asyncio.run(main()) == [1, 1]


def test_the_kernel_tells_how_long_a_thread_waited_for_a_processor() -> None:
    assert watchdog_module.processor_wait(threading.get_native_id()) >= 0
    assert watchdog_module.processor_wait(2**30) == 0


def test_a_culprit_outside_the_engine_is_named_by_its_place() -> None:
    assert culprit(None) == "an unknown caller"
    with pytest.raises(ZeroDivisionError) as caught:
        _ = 1 // 0
    assert caught.tb is not None
    assert "test_watchdog.py" in culprit(caught.tb.tb_frame)


class Slow(Stage):
    """One call of a minute that puts a frame every 6 s: a long answer that is spoken."""

    ports = AudioWork.ports

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        for _ in range(10):
            await self.ctx.clock.sleep(6 * SECOND)
            await out.send(port, frame)


STAGES["test.lengthy"] = Slow


def test_a_long_call_that_puts_frames_is_no_hang() -> None:
    text = GRAPH.replace("frames: 1500", "frames: 2")
    session = run_virtual(run_session(compile_test(text % "lengthy")))
    assert session.runners["work"].restarts == 0
    assert len(sink_of(session).got) == 20


class Aside(Stage):
    """Puts ten frames on its busy port, then one every 6 s on the other; a side task may put for ever."""

    ports = Ports({"audio": In(AudioFrame)}, {"audio": Out(AudioFrame), "text": Out(TokenFrame)})
    forever = False

    async def setup(self) -> None:
        self.seen = 0

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        self.seen += 1
        if self.seen <= 10:
            out.post("audio", frame)
        elif Aside.forever:
            Aside.forever = False
            side = asyncio.create_task(self._say(10**6, out))
            await asyncio.wait([side])
        elif self.seen == 11:
            await self._say(10, out)

    async def _say(self, times: int, out: Outputs) -> None:
        for _ in range(times):
            await self.ctx.clock.sleep(6 * SECOND)
            out.post("text", TokenFrame(pts=0, text="x"))


STAGES["test.aside"] = Aside


@pytest.mark.parametrize("forever", [False, True])
def test_a_call_that_puts_on_a_lesser_port_is_no_hang_but_is_not_excused_for_ever(forever: bool) -> None:
    Aside.forever = forever
    text = GRAPH.replace("in: work.audio", "in: {audio: work.audio, text: work.text}")
    session = run_virtual(run_session(compile_test(text.replace("frames: 1500", "frames: 12") % "aside")))
    assert session.runners["work"].restarts == int(forever)
    assert session.clock.now() < 700 * SECOND


def test_a_call_that_cannot_be_ended_is_seen_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf(Hangs):
        async def process(self, port: str, frame: Frame, out: Outputs) -> None:
            self.seen += 1
            if self.seen == 1:
                return  # at 0, which stands for no time
            with contextlib.suppress(asyncio.CancelledError):
                await self.ctx.clock.sleep(60 * SECOND)
            await self.ctx.clock.sleep(60 * SECOND)

    async def look(session: Session) -> None:
        work = session.runners["work"]
        await session.clock.sleep(45 * SECOND)
        assert work.waits_since
        assert session.clock.now() - work.waits_since > 40 * SECOND

    monkeypatch.setitem(STAGES, "test.deaf", Deaf)
    text = GRAPH.replace("frames: 1500", "frames: 2")
    session = run_virtual(run_session(compile_test(text % "deaf"), meanwhile=look))
    assert session.runners["work"].restarts == 0, "it came back by itself"


def test_a_call_into_a_wedged_pool_is_ended_after_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(Hangs):
        async def process(self, port: str, frame: Frame, out: Outputs) -> None:
            self.seen += 1
            if self.seen == 10 and not Hangs.hung:
                Hangs.hung = True
                pool = self.ctx.pool()
                assert isinstance(pool, NodePool)
                pool._queued.add(self)  # pyright: ignore[reportPrivateUsage] - its turn never comes
                await asyncio.get_running_loop().create_future()
            await out.send("audio", frame)

    Hangs.hung = False
    monkeypatch.setitem(STAGES, "test.stuck", Stuck)
    session = run_virtual(run_session(compile_test(GRAPH % "stuck")))
    assert session.runners["work"].restarts == 1
    got = [at for at, _, _ in sink_of(session).got]
    assert max(b - a for a, b in itertools.pairwise(got)) < 14 * SECOND


def test_a_call_that_waits_for_its_turn_in_a_busy_pool_is_told_from_one_that_hangs() -> None:
    async def main() -> list[bool]:
        pools = Pools(clock=MonotonicClock())
        pool = pools.get("p", PoolPlan(workers=1))
        plan = compile_test(GRAPH.replace("test.%s", "test.work"))
        session = Session(plan, "s", MonotonicClock(), pools=pools)
        mine = NodePool(
            pool,
            session="s",
            node="work",
            scope="",
            epoch=lambda: 0,
            levels=(Quality(),),
            clock=session.clock,
            realtime=True,
            emit=lambda *a, **k: None,
        )
        gates = [threading.Event(), threading.Event()]
        others = [asyncio.create_task(pool.call(gate.wait)) for gate in gates]
        await asyncio.sleep(0)
        waits = asyncio.create_task(mine.call(lambda: None))
        await asyncio.sleep(0)
        told = [mine.in_turn(), mine.in_turn()]  # nothing has moved between the two
        gates[0].set()
        await others[0]
        told.append(mine.in_turn())
        gates[1].set()
        await waits
        told.append(mine.in_turn())  # the pool moved, but nothing of this node is left
        pools.close()
        return told

    assert asyncio.run(main()) == [True, False, True, False]


def test_what_garbage_collection_takes_is_known() -> None:
    class Lingers:
        """Takes long to collect."""

        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            time.sleep(0.02)

    async def main() -> LoopWatchdog:
        watchdog = LoopWatchdog()
        watchdog.start()
        Lingers()
        gc.collect()
        watchdog.stop()
        return watchdog

    watchdog = asyncio.run(main())
    assert watchdog._collected >= 20 * MS  # pyright: ignore[reportPrivateUsage]
    assert not any(getattr(callback, "__self__", None) is watchdog for callback in gc.callbacks)


def test_weak_references_and_the_watchdog_itself_are_no_culprits() -> None:
    frames: list[FrameType] = []
    thing = Hangs()
    watched = weakref.finalize(thing, lambda: frames.append(sys._getframe()))  # pyright: ignore[reportPrivateUsage]
    watched()
    assert frames[0].f_back is not None
    assert frames[0].f_back.f_code.co_filename.endswith("weakref.py")
    assert "test_watchdog.py" in culprit(frames[0].f_back)
