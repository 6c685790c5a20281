from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from graphs import STAGES, compile_test, sink_of
from penstock.pipeline.clock import MS, SECOND, LoopClock, ManualClock, MonotonicClock
from penstock.pipeline.errors import GraphError
from penstock.pipeline.frame import Frame, TokenFrame
from penstock.pipeline.pool_plan import PoolPlan
from penstock.pipeline.pool_threads import SimulatedDriver, ThreadDriver
from penstock.pipeline.pools import Pools
from penstock.pipeline.rows import Row
from penstock.pipeline.session import Session, SessionEvent
from penstock.pipeline.stage import In, Out, Outputs, Ports, Stage
from penstock.pipeline.thread_pool import ThreadPool
from penstock.pipeline.virtual_loop import run_virtual
from row_models import Counting


class Rows(Stage):
    """Sends one row for each token."""

    ports = Ports(inputs={"text": In(TokenFrame)}, outputs={"text": Out(TokenFrame, "token")})
    degrade = ("steps-1", "passthrough")

    async def setup(self) -> None:
        self.pool = self.ctx.pool()
        self.state = {"sum": 0}
        await self.pool.load("count", Counting)

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        assert isinstance(frame, TokenFrame)
        bad = frame.text == "7" and self.ctx.session == "s-bad"
        total = await self.pool.run("count", Row({"n": 1, "bad": bad}, state=self.state))
        await out.send("text", TokenFrame(pts=frame.pts, text=str(total), epoch=out.epoch))


GRAPH = """
penstock: 1
graph: rows
pools:
  main: {device: cpu, batch: {max: 4}, workers: 1, share: {rows: 0.5}}
nodes:
  src:  {use: test.tokens, frames: 20}
  rows: {use: test.rows, in: src.text, scope: reply}
  out:  {use: test.sink, in: {text: [rows.text]}}
"""


@pytest.fixture(autouse=True)
def _rows_stage() -> Any:  # pyright: ignore[reportUnusedFunction]
    STAGES["test.rows"] = Rows
    yield
    del STAGES["test.rows"]


def simulated(latency: int) -> Pools:
    clock = LoopClock(asyncio.get_running_loop())
    return Pools(clock, lambda _threads, n: SimulatedDriver(clock, lambda _m, rows: latency * rows, n))


# ---------------------------------------------------------------- in a graph


def test_stages_of_several_sessions_share_a_pool_and_fail_alone() -> None:
    async def main() -> tuple[list[Session], Pools]:
        pools = simulated(5 * MS)
        sessions = [
            Session(compile_test(GRAPH), name, LoopClock(asyncio.get_running_loop()), pools=pools)
            for name in ("s-one", "s-bad", "s-two")
        ]
        for session in sessions:
            await session.start()
        await asyncio.gather(*(session.wait() for session in sessions))
        return sessions, pools

    sessions, pools = run_virtual(main())
    texts = [[f.text for _, _, f in sink_of(s).got] for s in sessions]
    assert texts[0] == texts[2] == [str(i) for i in range(1, 21)]
    assert sessions[1].runners["rows"].restarts == 1
    assert [s.runners["rows"].restarts for s in sessions] == [0, 1, 0]
    pool = pools.made["main"]
    assert pool.rows.stats.failed == 1
    assert pool.plan.batch.max == 4
    assert max(pool.rows.stats.batches) > 1, "sessions shared forwards"
    stats = pools.stats()["main"]
    assert stats["rows"]["failed"] == 1
    assert stats["rows"]["done"] == 59
    assert 1 < stats["rows_per_forward"] <= 3
    assert stats["waiting"] == 0


def test_a_barge_in_flushes_the_rows_of_its_scope() -> None:
    async def main() -> tuple[Session, Pools]:
        pools = simulated(300 * MS)
        session = Session(compile_test(GRAPH), "s", LoopClock(asyncio.get_running_loop()), pools=pools)
        await session.start()
        await session.clock.sleep(100 * MS)
        session.interrupt("reply")
        await session.wait()
        return session, pools

    session, pools = run_virtual(main())
    assert pools.made["main"].rows.stats.flushed == 1
    assert session.runners["rows"].missed == 1
    assert session.runners["rows"].restarts == 0, "a flush is no failure"
    assert [f.text for _, _, f in sink_of(session).got] == [str(i) for i in range(1, 20)]


def test_a_restarted_stage_keeps_its_pool_and_a_file_run_its_quality() -> None:
    async def main() -> tuple[Session, list[SessionEvent]]:
        pools = simulated(40 * MS)
        session = Session(
            compile_test(GRAPH), "s", LoopClock(asyncio.get_running_loop()), pools=pools, realtime=False
        )
        events: list[SessionEvent] = []
        session.listen(events.append)
        await session.start()
        await session.wait()
        return session, events

    session, events = run_virtual(main())
    assert len(sink_of(session).got) == 20
    assert not [e for e in events if e.name == "degraded"]


def test_a_row_of_a_frame_from_before_the_barge_in_is_void() -> None:
    class Slow(Rows):
        async def process(self, port: str, frame: Frame, out: Outputs) -> None:
            await self.ctx.clock.sleep(50 * MS)  # the barge-in comes here
            await super().process(port, frame, out)

    async def main() -> Session:
        STAGES["test.rows"] = Slow
        session = Session(
            compile_test(GRAPH), "s", LoopClock(asyncio.get_running_loop()), pools=simulated(MS)
        )
        await session.start()
        await session.clock.sleep(20 * MS)
        session.interrupt("reply")
        await session.wait()
        return session

    assert run_virtual(main()).runners["rows"].missed == 1


# ---------------------------------------------------------------- processes

PROCESS = GRAPH.replace("device: cpu,", "device: cpu, kind: process,").replace("frames: 20", "frames: 8")


class Pictures(Rows):
    """The same in a worker process, which one session kills."""

    async def setup(self) -> None:
        self.pool = self.ctx.pool()
        self.state: dict[str, Any] = {}
        await self.pool.load("count", "row_models:remote")

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        assert isinstance(frame, TokenFrame)
        do = "die" if frame.text == "3" and self.ctx.session == "s-bad" else None
        row = Row({"x": np.ones((4, 4), np.float32), "do": do}, state=self.state)
        got = await self.pool.run("count", row)
        await out.send("text", TokenFrame(pts=frame.pts, text=str(int(got["sum"][0, 0])), epoch=out.epoch))


@pytest.mark.slow
def test_a_session_that_kills_the_worker_process_costs_the_others_nothing() -> None:
    async def main() -> tuple[list[Session], Pools]:
        STAGES["test.rows"] = Pictures
        pools = Pools()
        plan, clock = compile_test(PROCESS), MonotonicClock()
        sessions = [Session(plan, name, clock, pools=pools) for name in ("s-one", "s-bad", "s-two")]
        async with asyncio.timeout(60):
            for session in sessions:
                await session.start()
            await asyncio.gather(*(session.wait() for session in sessions))
        pools.close()
        return sessions, pools

    sessions, pools = asyncio.run(main())
    texts = [[f.text for _, _, f in sink_of(s).got] for s in sessions]
    assert texts[0] == texts[2] == [str(i) for i in range(1, 9)]
    assert [s.runners["rows"].restarts for s in sessions] == [0, 1, 0]
    assert pools.stats()["main"]["restarts"] >= 1
    assert pools.stats()["main"]["rows"]["failed"] == 1


# ---------------------------------------------------------------- threads


class Slow(Counting):
    """Meets another forward, or says that it did not."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[str] = set()

    def forward(self, rows: Sequence[Row]) -> list[Any]:
        self.threads.add(threading.current_thread().name)
        return super().forward(rows)


def test_rows_run_on_threads_with_calls_between_them() -> None:
    async def main() -> None:
        clock = MonotonicClock()
        pools = Pools(clock)
        pool = pools.get("main", PoolPlan(workers=2))
        model = Slow()
        name = pool.rows.adopt(model, "s")
        states = [{"sum": 0} for _ in range(8)]
        async with asyncio.timeout(30):
            for _ in range(20):
                rows = [Row({"n": 1}, state=s, session="s", lane=i, epoch=0) for i, s in enumerate(states)]
                totals = await asyncio.gather(
                    *(pool.rows.run(name, r) for r in rows), *(pool.call(lambda: -1) for _ in range(4))
                )
                assert totals[8:] == [-1] * 4
        assert [s["sum"] for s in states] == [20] * 8
        assert all(thread.startswith("pool-main-") for thread in model.threads)
        pools.forget("s")
        assert pool.rows.stats.done == 160
        pools.close()

    asyncio.run(main())


def test_no_row_is_slept_over() -> None:
    """Many short rows from a loop against two workers: each kick counts."""

    async def main() -> int:
        clock = MonotonicClock()
        threads = ThreadPool("t", 2, clock)
        pools = Pools(clock, lambda _threads, n: ThreadDriver(threads, n, clock))
        pool = pools.get("main", PoolPlan(workers=2))
        name = pool.rows.adopt(Counting(), "s")

        async def one(lane: int) -> int:
            state = {"sum": 0}
            for _ in range(100):
                await pool.rows.run(name, Row({"n": 1}, state=state, session="s", lane=lane, epoch=0))
            return state["sum"]

        async with asyncio.timeout(30):
            total = sum(await asyncio.gather(*(one(lane) for lane in range(5))))
        pools.close()
        threads.close()
        return total

    assert asyncio.run(main()) == 500


def test_a_wedged_call_gives_its_place_to_another_thread() -> None:
    async def main() -> list[int]:
        clock, stuck = ManualClock(), threading.Event()
        threads = ThreadPool("t", 1, clock)
        begun, loop = asyncio.Event(), asyncio.get_running_loop()

        def work() -> bool:
            loop.call_soon_threadsafe(begun.set)
            return stuck.wait()

        wedged = asyncio.create_task(threads.call(work))
        await begun.wait()
        clock.time += 31 * SECOND
        async with asyncio.timeout(30):
            got = [await threads.call(lambda: 1), await threads.call(lambda: 2)]
        stuck.set()
        assert await wedged
        threads.close()
        return got

    assert asyncio.run(main()) == [1, 2]


def test_a_wedged_forward_does_not_stop_the_others() -> None:
    class Stuck(Counting):
        def forward(self, rows: Sequence[Row]) -> list[Any]:
            if rows[0].session == "evil":
                loop.call_soon_threadsafe(begun.set)
                stuck.wait()
            return super().forward(rows)

    stuck, begun = threading.Event(), asyncio.Event()
    loop: asyncio.AbstractEventLoop

    async def main() -> list[int]:
        nonlocal loop
        loop, clock = asyncio.get_running_loop(), ManualClock()
        threads = ThreadPool("t", 1, clock)
        pools = Pools(clock, lambda _threads, n: ThreadDriver(threads, n, clock))
        pool = pools.get("main", PoolPlan(workers=1))
        name = pool.rows.adopt(Stuck(), "s")

        def run(session: str) -> Any:
            return pool.rows.run(name, Row({"n": 1}, state={"sum": 0}, session=session, epoch=0))

        wedged = asyncio.create_task(run("evil"))
        await begun.wait()
        clock.time += 31 * SECOND
        async with asyncio.timeout(30):
            got = [await run("a"), await run("b")]
        stuck.set()
        got.append(await wedged)
        pools.close()
        threads.close()
        return got

    assert asyncio.run(main()) == [1, 1, 1]


# ---------------------------------------------------------------- YAML


def faults(old: str, new: str) -> str:
    assert old in GRAPH
    with pytest.raises(GraphError) as caught:
        compile_test(GRAPH.replace(old, new))
    return str(caught.value)


def test_pools_are_read() -> None:
    plan = compile_test(GRAPH)
    main = plan.pools["main"]
    assert (main.device, main.kind, main.batch.max, main.row_workers) == ("cpu", "thread", 4, 1)
    assert main.share == {"rows": 0.5}
    assert [q.passthrough for q in plan.nodes["rows"].degrade] == [False, False, True]
    again = compile_test(GRAPH.replace("scope: reply", "scope: reply, degrade: [fps*0.5]"))
    assert [q.fps for q in again.nodes["rows"].degrade] == [1.0, 0.5]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "device: cpu",
            "device: gpu",
            "5:10: pool 'main': device: 'gpu' is not a device; write auto, cpu, cuda, cuda:1",
        ),
        ("device: cpu", "device: 1", "device: 1 is not a device; write auto, cpu, cuda, cuda:1"),
        ("device: cpu", "devise: cpu", "5:10: pool 'main' has no key 'devise'; did you mean 'device'?"),
        (
            "{max: 4}",
            "{max: 0}",
            "5:31: pool 'main': batch.max: it must be at least 1 (got 0)",
        ),
        ("{max: 4}", "{size: 4}", "batch.size"),
        ("workers: 1", "kind: fork", "accepted: 'thread' or 'process' (got 'fork')"),
        ("{rows: 0.5}", "{row: 0.5}", "no node 'row' uses the pool 'main'; accepted: out, rows, src"),
        ("{rows: 0.5}", "{rows: 2}", "share.rows: it must be at most 1 (got 2)"),
        ("scope: reply", "pool: gpu", "8:40: unknown pool 'gpu'; declared: main"),
        ("scope: reply", "degrade: [steps]", "8:40: unknown rung 'steps'; accepted: steps-1, res*0.75"),
        ("workers: 1", "hang: 5", "'hang: 5'|is not a duration|hang"),
    ],
)
def test_faults_in_pools_are_told_with_their_place(old: str, new: str, said: str) -> None:
    text = faults(old, new)
    assert any(part in text for part in said.split("|")), text


def test_the_first_graph_makes_the_pool() -> None:
    pools = Pools()
    first = pools.get("main", PoolPlan(workers=3))
    assert pools.get("main", PoolPlan(workers=5)) is first
    assert pools.get("main") is first
    assert first.plan.threads == 3
    pools.close()
