from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.clock import MS, NEVER, SECOND
from penstock.pipeline.row_pool import RowPool
from penstock.pipeline.rows import Again, DeadlineMissed, Flushed, ModelSpec, PoolFailed, Row
from penstock.pipeline.stage import StageError
from penstock.pipeline.virtual_loop import run_virtual
from row_models import Counting, loaded, virtual_pool


def row(session: str = "a", n: int = 1, state: Any = None, **fields: Any) -> Row:
    payload = {"n": n, "steps": fields.pop("steps", 1), "bad": fields.pop("bad", False)}
    return Row(payload, state={"sum": 0} if state is None else state, session=session, epoch=0, **fields)


async def ends(*runs: Any) -> list[Any]:
    return await asyncio.gather(*runs, return_exceptions=True)


# ---------------------------------------------------------------- batching and order


def test_rows_of_different_sessions_and_steps_share_a_forward() -> None:
    async def main() -> list[list[Row]]:
        pool, clock = virtual_pool()
        log = await loaded(pool)
        await pool.warm("m", row)
        log.clear()

        async def later() -> Any:
            await clock.sleep(3 * MS)
            return await ends(*(pool.run("m", row(s)) for s in "bcd"))

        await ends(pool.run("m", row("a", steps=2)), later())
        return log

    log = run_virtual(main())
    # a's second step is as good as the first steps of b, c and d
    assert [sorted(r.session for r in batch) for batch in log] == [["a"], ["a", "b", "c", "d"]]


def test_earliest_deadline_leads() -> None:
    async def main() -> list[str]:
        pool, _ = virtual_pool(lambda rows: 10 * MS * rows, max_rows=1)
        log = await loaded(pool)
        first = asyncio.create_task(pool.run("m", row("first")))
        await asyncio.sleep(0)
        waiting = {"late": 300, "soon": 100, "middle": 200}
        await ends(first, *(pool.run("m", row(s, deadline=d * MS)) for s, d in waiting.items()))
        return [batch[0].session for batch in log]

    assert run_virtual(main()) == ["first", "soon", "middle", "late"]


def test_a_big_batch_does_not_cost_an_urgent_row_of_another_model_its_deadline() -> None:
    async def main() -> list[Any]:
        pool, _ = virtual_pool(lambda rows: 10 * MS * rows)
        await loaded(pool)
        await pool.load(ModelSpec("asr", Counting))
        await pool.warm("m", row)
        await pool.warm("asr", row)
        now = asyncio.get_running_loop().time()
        due = round(now * SECOND)
        video = [pool.run("m", row(f"v{i}", deadline=due + (200 if i else 44) * MS)) for i in range(4)]
        return await ends(*video, pool.run("asr", row("a", deadline=due + 45 * MS)))

    assert run_virtual(main()) == [1, 1, 1, 1, 1]


def test_rows_of_a_lane_run_in_order_with_the_state_of_the_one_before() -> None:
    async def main() -> list[Any]:
        pool, _ = virtual_pool()
        await loaded(pool)
        state = {"sum": 0}
        return await ends(*(pool.run("m", row("a", n, state)) for n in range(1, 6)))

    assert run_virtual(main()) == [1, 3, 6, 10, 15]


def test_an_urgent_row_behind_a_patient_one_lends_it_its_deadline() -> None:
    async def main() -> list[Any]:
        pool, _ = virtual_pool(lambda rows: 10 * MS * rows, max_rows=1)
        await loaded(pool)
        await pool.warm("m", row)
        now = round(asyncio.get_running_loop().time() * SECOND)
        state = {"sum": 0}
        others = [pool.run("m", row(f"o{i}", deadline=now + 200 * MS)) for i in range(6)]
        mine = [pool.run("m", row("a", 1, state)), pool.run("m", row("a", 1, state, deadline=now + 50 * MS))]
        return await ends(*others, *mine)

    assert run_virtual(main())[-1] == 2


# ---------------------------------------------------------------- dropping


def test_what_cannot_be_in_time_is_dropped_before_it_runs() -> None:
    async def main() -> tuple[list[Any], int]:
        pool, _ = virtual_pool(lambda rows: 20 * MS * rows)
        log = await loaded(pool)
        await pool.warm("m", row)
        log.clear()
        now = round(asyncio.get_running_loop().time() * SECOND)
        got = await ends(pool.run("m", row(deadline=now + 15 * MS)))
        return got, len(log)

    got, ran = run_virtual(main())
    assert isinstance(got[0], DeadlineMissed)
    assert ran == 0


def test_all_steps_of_a_frame_must_fit_before_its_deadline() -> None:
    async def main() -> tuple[list[Any], int]:
        pool, _ = virtual_pool(lambda rows: 20 * MS * rows)
        log = await loaded(pool)
        await pool.warm("m", row)
        log.clear()
        now = round(asyncio.get_running_loop().time() * SECOND)
        got = await ends(pool.run("m", row(deadline=now + 50 * MS, steps=3, further=2)))
        return got, len(log)

    got, ran = run_virtual(main())
    assert isinstance(got[0], DeadlineMissed)
    assert ran == 0, "the first of three steps would have been wasted"


def test_a_wrong_measurement_does_not_shut_a_model_out_for_ever() -> None:
    async def main() -> int:
        slow = [True]
        pool, clock = virtual_pool(lambda rows: (900 if slow[0] else 10) * MS)
        await loaded(pool)
        await pool.warm("m", row)
        slow[0] = False  # what was measured was a bad moment
        done = 0
        for _ in range(200):
            got = await ends(pool.run("m", row(deadline=clock.now() + 100 * MS)))
            done += not isinstance(got[0], Exception)
            await clock.sleep(66 * MS)
        return done

    assert run_virtual(main()) > 100


def test_who_waits_behind_a_long_forward_hears_in_time() -> None:
    async def main() -> int:
        pool, clock = virtual_pool(lambda rows: 5 * SECOND)
        await loaded(pool)
        first = asyncio.create_task(pool.run("m", row("slow")))
        await clock.sleep(MS)
        with pytest.raises(DeadlineMissed):
            await pool.run("m", row("live", deadline=clock.now() + 80 * MS))
        heard = clock.now()
        await first
        return heard

    assert run_virtual(main()) == 81 * MS


# ---------------------------------------------------------------- flush, end, state


def test_a_flush_ends_waiting_rows_and_leaves_running_ones_uncommitted() -> None:
    async def main() -> tuple[list[Any], dict[str, int], RowPool]:
        pool, clock = virtual_pool(lambda rows: 10 * MS, max_rows=1)
        await loaded(pool)
        state, other = {"sum": 0}, {"sum": 0}
        runs = [
            asyncio.ensure_future(pool.run("m", r))
            for r in (
                row("a", 1, state, scope="reply"),
                row("a", 2, state, scope="reply"),
                row("a", 4, other, scope="reply", lane=1),
                row("b", 8, scope="reply"),
            )
        ]
        await clock.sleep(5 * MS)
        pool.flush("a", "reply", 1)
        late = pool.run("m", row("a", 16, state, scope="reply"))  # of epoch 0, asked for after the flush
        fresh = row("a", 32, other, scope="reply")
        fresh.epoch = 1
        return await ends(*runs, late, pool.run("m", fresh)), state, pool

    got, state, pool = run_virtual(main())
    assert [type(g) for g in got] == [Flushed, Flushed, Flushed, int, Flushed, int]
    assert state == {"sum": 0}, "the row that was running did not commit"
    assert pool.stats.flushed == 4


def test_a_closed_session_leaves_nothing_behind() -> None:
    async def main() -> tuple[list[Any], RowPool]:
        pool, clock = virtual_pool(lambda rows: 10 * MS, max_rows=1)
        await loaded(pool)
        runs = [asyncio.ensure_future(pool.run("m", row(s))) for s in "xaab"]
        await clock.sleep(MS)
        pool.forget("a")
        return await ends(*runs), pool

    got, pool = run_virtual(main())
    assert [isinstance(g, Flushed) for g in got] == [False, True, True, False]
    assert pool.waiting == 0


def test_a_cancelled_caller_takes_its_row_along() -> None:
    async def main() -> tuple[RowPool, int]:
        pool, clock = virtual_pool(lambda rows: 10 * MS, max_rows=1)
        log = await loaded(pool)
        runs = [asyncio.ensure_future(pool.run("m", row(s))) for s in "abc"]
        await clock.sleep(MS)
        runs[0].cancel()  # is running
        runs[1].cancel()  # waits
        await ends(*runs)
        return pool, len(log)

    pool, ran = run_virtual(main())
    assert (pool.stats.cancelled, pool.stats.done, ran) == (2, 1, 2)


def test_a_bad_row_fails_alone() -> None:
    async def main() -> tuple[list[Any], RowPool, list[dict[str, int]]]:
        pool, _ = virtual_pool()
        await loaded(pool)
        await pool.warm("m", row)
        states = [{"sum": 0} for _ in range(4)]
        rows = [row(f"s{i}", 1, states[i], bad=i == 2) for i in range(4)]
        first = asyncio.ensure_future(pool.run("m", row("first")))
        await asyncio.sleep(0)
        return await ends(first, *(pool.run("m", r) for r in rows)), pool, states

    got, pool, states = run_virtual(main())
    assert [g for i, g in enumerate(got) if i != 3] == [1, 1, 1, 1]
    assert isinstance(got[3], PoolFailed)
    assert "this row is bad" in str(got[3])
    assert states == [{"sum": 1}, {"sum": 1}, {"sum": 0}, {"sum": 1}]
    assert pool.stats.failed == 1


def test_a_session_that_broke_a_batch_is_kept_apart_for_a_while() -> None:
    async def main() -> list[list[Row]]:
        pool, _ = virtual_pool()
        log = await loaded(pool)
        await pool.warm("m", row)
        await ends(*(pool.run("m", row(s, bad=s == "evil")) for s in ("a", "evil")))
        log.clear()
        for _ in range(3):
            await ends(*(pool.run("m", row(s)) for s in ("a", "evil", "b", "c")))
        return log

    for batch in run_virtual(main()):
        assert "evil" not in {r.session for r in batch} or len(batch) == 1


def test_a_failing_commit_fails_its_own_row_only() -> None:
    class Fussy(Counting):
        def commit(self, row: Row, result: int) -> Any:
            if row.session == "evil":
                raise KeyError("no such thing")
            return super().commit(row, result)

    async def main() -> list[Any]:
        pool, _ = virtual_pool()
        await loaded(pool, Fussy())
        await pool.warm("m", row)
        first = asyncio.ensure_future(pool.run("m", row("first")))
        await asyncio.sleep(0)
        return await ends(first, *(pool.run("m", row(s)) for s in ("a", "evil", "b")))

    got = run_virtual(main())
    assert [isinstance(g, PoolFailed) for g in got] == [False, False, True, False]


def test_an_unknown_model_is_named() -> None:
    async def main() -> None:
        pool, _ = virtual_pool()
        await loaded(pool)
        with pytest.raises(StageError, match="pool 'sim' has no model 'x'; loaded: m"):
            await pool.run("x", row())
        with pytest.raises(StageError, match="model 'bad' cannot be loaded: ModuleNotFoundError"):
            await pool.load(ModelSpec("bad", "no.such.module:make"))
        with pytest.raises(StageError, match="is written module:name"):
            await pool.load(ModelSpec("bad", "nothing"))

    run_virtual(main())


def test_a_model_is_made_once_for_all_sessions() -> None:
    async def main() -> int:
        pool, _ = virtual_pool()
        made: list[int] = []

        def make() -> Counting:
            made.append(1)
            return Counting()

        await asyncio.gather(*(pool.load(ModelSpec("m", make)) for _ in range(5)))
        return len(made)

    assert run_virtual(main()) == 1


def test_too_many_rows_of_one_session_are_refused() -> None:
    async def main() -> Counter[type]:
        pool, _ = virtual_pool()
        await loaded(pool)
        return Counter(type(g) for g in await ends(*(pool.run("m", row("a", lane=i)) for i in range(400))))

    assert run_virtual(main())[PoolFailed] > 100


# ---------------------------------------------------------------- the whole, at random


@dataclass
class Trace:
    ends: list[tuple[float, str, str]] = field(default_factory=list[tuple[float, str, str]])
    batches: list[list[str]] = field(default_factory=list[list[str]])


class Witness(Counting):
    """Checks at each forward what the pool has promised."""

    def __init__(self, clock: Any, log: list[list[Row]]) -> None:
        super().__init__(log)
        self.clock = clock
        self.begun: list[int] = []

    def forward(self, rows: Sequence[Row]) -> list[Any]:
        before = [dict(r.state) for r in rows]
        lanes = [(r.session, r.node, r.lane) for r in rows]
        assert len(set(lanes)) == len(lanes), "two rows of one lane in a forward"
        try:
            return super().forward(rows)
        finally:
            assert [dict(r.state) for r in rows] == before


frames = st.lists(
    st.fixed_dictionaries(
        {
            "at": st.integers(0, 400),
            "session": st.sampled_from("abc"),
            "lane": st.integers(0, 1),
            "budget": st.sampled_from([0, 15, 40, 120, None]),
            "steps": st.integers(1, 3),
            "bad": st.sampled_from([False, False, False, True]),
            "cancel": st.sampled_from([None, None, None, 12]),
        }
    ),
    min_size=1,
    max_size=25,
)
flushes = st.lists(st.tuples(st.integers(0, 400), st.sampled_from("abc")), max_size=3)


async def scenario(plan: list[dict[str, Any]], flush: list[tuple[int, str]], workers: int) -> Trace:
    starts: list[tuple[int, list[Row]]] = []
    pool, clock = virtual_pool(workers=workers)
    log: list[list[Row]] = []
    await loaded(pool, Witness(clock, log))
    trace = Trace()
    states = {(s, lane): {"sum": 0} for s in "abc" for lane in range(5)}
    committed: Counter[str] = Counter()
    take = pool.take

    def watched() -> Any:
        batch = take()
        if batch is not None:
            starts.append((batch.start, batch.rows))
            assert all(r.deadline >= batch.start for r in batch.rows), "a row ran that was late already"
            trace.batches.append([f"{r.session}{r.lane}" for r in batch.rows])
        return batch

    pool.take = watched  # type: ignore[method-assign]

    async def frame(i: int, spec: dict[str, Any]) -> None:
        await clock.sleep(spec["at"] * MS)
        deadline = NEVER if spec["budget"] is None else clock.now() + spec["budget"] * MS
        mine = row(
            spec["session"],
            1,
            states[spec["session"], spec["lane"]],
            lane=spec["lane"],
            deadline=deadline,
            steps=spec["steps"],
            further=spec["steps"] - 1,
            bad=spec["bad"],
            scope="reply",
        )
        mine.epoch = epochs[spec["session"]]
        work = asyncio.ensure_future(pool.run("m", mine))
        if spec["cancel"] is not None:
            asyncio.get_running_loop().call_later(spec["cancel"] / 1000, work.cancel)
        try:
            await work
            end = "done"
            committed[spec["session"]] += 1
        except DeadlineMissed:
            end = "missed"
        except Flushed:
            end = "flushed"
        except PoolFailed:
            end = "failed"
        except asyncio.CancelledError:
            end = "cancelled"
        trace.ends.append((clock.now() / MS, f"{i}{spec['session']}", end))

    epochs = Counter[str]()

    async def barge(at: int, session: str) -> None:
        await clock.sleep(at * MS)
        epochs[session] += 1
        pool.flush(session, "reply", epochs[session])

    await asyncio.gather(*(frame(i, f) for i, f in enumerate(plan)), *(barge(*f) for f in flush))
    await clock.sleep(2 * SECOND)
    assert len(trace.ends) == len(plan)
    assert pool.waiting == 0
    stats = pool.stats
    told = Counter(end for _, _, end in trace.ends)
    assert stats.ended == len(plan), "every row ended exactly once"
    assert told["done"] <= stats.done
    assert told["failed"] <= stats.failed
    if not any(f["cancel"] for f in plan):
        assert told == Counter(
            {k: v for k in ("done", "missed", "flushed", "failed") if (v := getattr(stats, k))}
        )
    # a state counts the steps that were committed, and nothing of what failed
    assert sum(s["sum"] for s in states.values()) >= sum(committed.values())
    return trace


@given(frames, flushes, st.integers(1, 2))
@settings(max_examples=60, deadline=None)
def test_every_row_ends_once_and_none_runs_late(
    plan: list[dict[str, Any]], flush: list[tuple[int, str]], workers: int
) -> None:
    run_virtual(scenario(plan, flush, workers))


@given(frames, flushes)
@settings(max_examples=15, deadline=None)
def test_the_same_rows_give_the_same_trace(plan: list[dict[str, Any]], flush: list[tuple[int, str]]) -> None:
    one, two = (run_virtual(scenario(plan, flush, 1)) for _ in range(2))
    assert one == two


# ---------------------------------------------------------------- fairness


def test_a_greedy_session_does_not_starve_a_modest_one() -> None:
    async def main() -> dict[str, Counter[str]]:
        pool, clock = virtual_pool(lambda rows: 10 * MS * rows, max_rows=1)
        await loaded(pool)
        await pool.warm("m", row)
        told: dict[str, Counter[str]] = {"greedy": Counter(), "modest": Counter()}

        async def one(session: str, lane: int) -> None:
            # the greedy one also claims the earlier deadline each time
            budget = 60 if session == "greedy" else 90
            try:
                await pool.run("m", row(session, lane=lane, deadline=clock.now() + budget * MS))
                told[session]["done"] += 1
            except DeadlineMissed:
                told[session]["missed"] += 1

        tasks: list[asyncio.Task[None]] = []
        for i in range(600):  # 10 s: greedy asks for 3 times the device, modest for 30 % of it
            tasks += [asyncio.create_task(one("greedy", 5 * i + k)) for k in range(5)]
            if i % 2:
                tasks.append(asyncio.create_task(one("modest", i)))
            await clock.sleep(16_600_000)
        await asyncio.gather(*tasks)
        return told

    told = run_virtual(main())
    assert told["modest"]["missed"] <= 0.05 * sum(told["modest"].values())
    assert told["greedy"]["done"] > 500, "what the modest one leaves is the greedy one's"


def test_again_can_name_its_lane() -> None:
    class Jump(Counting):
        def commit(self, row: Row, result: int) -> Any:
            return Again(row.payload, lane=7) if row.lane == 0 else row.lane

    async def main() -> Any:
        pool, _ = virtual_pool()
        await loaded(pool, Jump())
        return await pool.run("m", row())

    assert run_virtual(main()) == 7
