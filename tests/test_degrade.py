from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.admission import Admissions
from penstock.pipeline.clock import MS, SECOND, LoopClock
from penstock.pipeline.cost_model import CostModel
from penstock.pipeline.degrade import Ladder, Quality, parse_ladder
from penstock.pipeline.node_pool import NodePool
from penstock.pipeline.pool_plan import BatchPlan, PoolPlan
from penstock.pipeline.pool_threads import SimulatedDriver
from penstock.pipeline.pools import DevicePool
from penstock.pipeline.rows import Demand, Row
from penstock.pipeline.stage import Dropped, StageError
from penstock.pipeline.virtual_loop import run_virtual
from row_models import Counting

LADDER = parse_ladder(["steps-1", "res*0.5", "fps*0.5", "passthrough"])


def test_rungs_add_up() -> None:
    assert LADDER[0] == Quality()
    assert LADDER[3] == Quality(level=3, steps_less=1, scale=0.5, fps=0.5)
    assert LADDER[4].passthrough
    assert [round(q.load(2), 4) for q in LADDER] == [1.0, 0.5, 0.125, 0.0625, 0.0]


@pytest.mark.parametrize("rung", ["steps-x", "res*2", "res*", 3, "", "pass"])
def test_an_unknown_rung_is_named(rung: object) -> None:
    with pytest.raises(ValueError, match="accepted: steps-1"):
        parse_ladder([rung])


def test_nothing_comes_after_passthrough() -> None:
    with pytest.raises(ValueError, match="comes after passthrough"):
        parse_ladder(["passthrough", "steps-1"])


# ---------------------------------------------------------------- the ladder


def drive(
    ladder: Ladder,
    seconds: float,
    miss_share: float,
    start: int,
    fits: bool = True,
    moves: list[int] | None = None,
) -> int:
    """15 rows a second, of which that share is missed. moves: takes the level after each."""
    now, owed = start, 0.0
    while now < start + seconds * SECOND:
        owed += miss_share
        missed = owed >= 1
        owed -= missed
        ladder.ended(now, missed=missed)
        if ladder.update(now, 0.5, lambda level: fits) and moves is not None:
            moves.append(ladder.level)
        now += SECOND // 15
    return now


def test_it_goes_down_quickly_and_comes_back_slowly() -> None:
    ladder = Ladder(LADDER)
    now = drive(ladder, 0.6, 0.5, 0)
    assert ladder.level == 1
    now = drive(ladder, 4.5, 0.0, now)
    assert ladder.level == 1, "not yet"
    drive(ladder, 2, 0.0, now)
    assert ladder.level == 0


def test_a_few_misses_change_nothing() -> None:
    moves: list[int] = []
    drive(Ladder(LADDER), 60, 0.03, 0, moves=moves)
    assert not moves


def test_it_does_not_come_back_where_there_is_no_room() -> None:
    ladder = Ladder(LADDER)
    now = drive(ladder, 0.6, 0.5, 0)
    drive(ladder, 60, 0.0, now, fits=False)
    assert ladder.level == 1


def test_it_does_not_flicker_at_the_limit() -> None:
    ladder, now, moves = Ladder(LADDER), 0, list[int]()
    for _ in range(1000):  # full quality is too much, one rung down is fine
        now = drive(ladder, 0.5, 0.5 if ladder.level == 0 else 0.0, now, moves=moves)
    assert 1 <= moves.count(0) <= 10, "in 500 s"


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 300)), max_size=200))
@settings(max_examples=40, deadline=None)
def test_it_moves_one_rung_at_a_time_and_never_off_the_ladder(ends: list[tuple[bool, int]]) -> None:
    ladder, now = Ladder(LADDER), 0
    for missed, pause in ends:
        now += pause * MS
        before = ladder.level
        ladder.ended(now, missed=missed)
        ladder.update(now, 0.5, lambda level: True)
        assert abs(ladder.level - before) <= 1
        assert 0 <= ladder.level < len(LADDER)


# ---------------------------------------------------------------- admission

DEMAND = Demand("m", rate_hz=15, forwards=2, within=200 * MS)


def ledger() -> Admissions:
    costs = CostModel()
    for rows in (1, 1, 8, 8):
        costs.observe("m", "k", rows, (5 + 5 * rows) * MS)
    return Admissions(costs, max_rows=8)  # 5.6 ms a row: 178 rows a second


def test_it_admits_up_to_the_limit_and_then_refuses() -> None:
    pool = ledger()
    answers = [pool.admit((f"s{i}", "n"), DEMAND, LADDER[:1]) for i in range(6)]
    assert [a.answer for a in answers] == ["granted"] * 4 + ["refused"] * 2
    assert 0.6 < pool.utilisation() <= 0.8
    assert "the limit is 80%" in answers[-1].reason
    pool.release("s0")
    assert pool.admit(("s9", "n"), DEMAND, LADDER[:1]).admitted


def test_all_step_down_evenly_before_anybody_is_refused() -> None:
    pool = ledger()
    answers = [pool.admit((f"s{i}", "n"), DEMAND, LADDER[:2]) for i in range(9)]
    assert [a.level for a in answers[:8]] == [0] * 4 + [1] * 4
    assert [pool.granted((f"s{i}", "n")) for i in range(8)] == [1] * 8
    assert pool.utilisation() <= 0.8


def test_nobody_is_put_to_passthrough_for_the_sake_of_others() -> None:
    pool = ledger()
    ladder = parse_ladder(["passthrough"])
    answers = [pool.admit((f"s{i}", "n"), DEMAND, ladder) for i in range(6)]
    assert [a.level for a in answers] == [0] * 4 + [1] * 2
    assert [pool.granted((f"s{i}", "n")) for i in range(4)] == [0] * 4


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.floats(0.1, 60), st.integers(1, 4), st.integers(1, 5)), max_size=40
    )
)
@settings(max_examples=60, deadline=None)
def test_what_was_admitted_never_exceeds_the_limit(asked: list[tuple[int, float, int, int]]) -> None:
    pool = ledger()
    for who, rate, forwards, rungs in asked:
        pool.admit((f"s{who}", "n"), Demand("m", rate, forwards, 300 * MS), LADDER[:rungs])
        assert pool.utilisation() <= 0.8 + 1e-9


def test_an_unmeasured_model_is_let_in_and_said_so() -> None:
    answer = ledger().admit(("s", "n"), Demand("other", 15), LADDER)
    assert answer.answer == "unmeasured"
    assert answer.admitted


# ---------------------------------------------------------------- together


async def crowd(speed: list[float], seconds: int, sessions: int) -> list[dict[str, Any]]:
    """Sessions of 15 fps on one device whose speed changes each `seconds`: what each phase brought."""
    clock = LoopClock(asyncio.get_running_loop())
    factor = [speed[0]]
    device = DevicePool(
        "sim",
        PoolPlan(device="cuda", batch=BatchPlan(max=8)),
        clock,
        lambda _threads, n: SimulatedDriver(
            clock, lambda _m, rows: round((5 + 5 * rows) * MS * factor[0]), n
        ),
    )
    events: list[str] = []

    def emit(name: str, **_fields: object) -> None:
        events.append(name)

    views = [
        NodePool(
            device,
            session=f"s{i}",
            node="n",
            scope="",
            epoch=lambda: 0,
            levels=parse_ladder(["steps-1", "fps*0.5", "passthrough"]),
            clock=clock,
            realtime=True,
            emit=emit,
        )
        for i in range(sessions)
    ]
    for view in views:
        await view.load("m", Counting)
        await view.warm("m", lambda: Row({"n": 1}, state={"sum": 0}))
        view.admit(Demand("m", rate_hz=15, forwards=2, within=120 * MS))
    told = {"done": 0, "missed": 0}

    async def frame(view: NodePool, lane: int) -> None:
        steps = max(1, 2 - view.quality.steps_less)
        mine = Row(
            {"n": 1, "steps": steps},
            state={"sum": 0},
            deadline=clock.now() + 120 * MS,
            further=steps - 1,
            lane=lane * 2,
        )
        try:
            await view.run("m", mine)
            told["done"] += 1
        except Dropped:
            told["missed"] += 1

    phases: list[dict[str, Any]] = []
    tasks: set[asyncio.Task[None]] = set()
    for now_speed in speed:
        factor[0] = now_speed
        told.update(done=0, missed=0)
        for i in range(seconds * 15):
            for view in views:
                if view.quality.passthrough or (view.quality.fps < 1 and i % 2):
                    continue
                task = asyncio.create_task(frame(view, i % 4))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await clock.sleep(SECOND // 15)
        phases.append(dict(told) | {"levels": [v.quality.level for v in views], "events": len(events)})
    device.close()
    return phases


def test_a_device_that_slows_down_is_met_by_quality_and_recovered_from() -> None:
    before, slow, after = run_virtual(crowd([1.0, 2.5, 1.0], 40, 3))
    assert before["levels"] == [0, 0, 0]
    assert before["missed"] == 0
    assert min(slow["levels"]) >= 1
    assert slow["missed"] < 0.08 * (slow["done"] + slow["missed"])
    assert after["levels"] == [0, 0, 0], "full quality again"
    assert after["events"] >= 6


def test_admitted_sessions_are_in_time() -> None:
    (phase,) = run_virtual(crowd([1.0], 15, 6))
    assert phase["missed"] <= 0.01 * (phase["done"] + phase["missed"])


def test_a_full_pool_refuses_in_words() -> None:
    async def main() -> None:
        clock = LoopClock(asyncio.get_running_loop())
        device = DevicePool(
            "gpu",
            PoolPlan(),
            clock,
            lambda _t, n: SimulatedDriver(clock, lambda _m, rows: 100 * MS * rows, n),
        )
        view = NodePool(
            device,
            session="s",
            node="n",
            scope="",
            epoch=lambda: 0,
            levels=(Quality(),),
            clock=clock,
            realtime=True,
            emit=lambda *_a, **_k: None,
        )
        await view.load("m", Counting)
        await view.warm("m", lambda: Row({"n": 1}, state={"sum": 0}))
        with pytest.raises(StageError, match="pool 'gpu' is full: it would take the pool to"):
            view.admit(DEMAND)

    run_virtual(main())
