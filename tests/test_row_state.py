"""Flushes, ends and failures of rows; their state."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from penstock.pipeline.clock import MS
from penstock.pipeline.row_pool import RowPool
from penstock.pipeline.rows import Flushed, ModelSpec, PoolFailed, Row
from penstock.pipeline.stage import StageError
from penstock.pipeline.virtual_loop import run_virtual
from row_models import Counting, ends, loaded, row, virtual_pool


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
