"""What can no longer be in time is dropped before it runs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from penstock.pipeline.clock import MS, SECOND
from penstock.pipeline.rows import DeadlineMissed
from penstock.pipeline.virtual_loop import run_virtual
from row_models import ends, loaded, row, virtual_pool


def alone_within(time: int, **row_of: Any) -> tuple[list[Any], int]:
    """One row of 20 ms a step on a warm pool, due in `time` ns: how it ended, and forwards that ran."""

    async def main() -> tuple[list[Any], int]:
        pool, _ = virtual_pool(lambda rows: 20 * MS * rows)
        log = await loaded(pool)
        await pool.warm("m", row)
        log.clear()
        now = round(asyncio.get_running_loop().time() * SECOND)
        got = await ends(pool.run("m", row(deadline=now + time, **row_of)))
        return got, len(log)

    return run_virtual(main())


def test_what_cannot_be_in_time_is_dropped_before_it_runs() -> None:
    got, ran = alone_within(15 * MS)
    assert isinstance(got[0], DeadlineMissed)
    assert ran == 0


def test_all_steps_of_a_frame_must_fit_before_its_deadline() -> None:
    got, ran = alone_within(50 * MS, steps=3, further=2)
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
