"""Which rows run together, and in which order."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from penstock.pipeline.clock import MS, SECOND
from penstock.pipeline.rows import Again, DeadlineMissed, ModelSpec, Row
from penstock.pipeline.virtual_loop import run_virtual
from row_models import Counting, ends, loaded, row, virtual_pool


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
