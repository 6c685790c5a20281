"""A stage that leaks tasks: they end with its session, their memory returns, and no other session loses any."""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from typing import ClassVar

import pytest
from graphs import STAGES, AudioWork, compile_test, sink_of
from penstock.pipeline.clock import LoopClock
from penstock.pipeline.frame import Frame
from penstock.pipeline.owned_tasks import of_nobody
from penstock.pipeline.pools import Pools
from penstock.pipeline.rows import Row
from penstock.pipeline.session import Session
from penstock.pipeline.stage import Outputs
from penstock.pipeline.virtual_loop import run_virtual
from row_models import Counting

GRAPH = """
penstock: 1
graph: leaky
nodes:
  mic:  {use: test.audio, frames: %d}
  leak: {use: test.leaky, in: mic.audio}
  out:  {use: test.sink, in: leak.audio}
"""


class Held:
    """Something large that a forgotten task holds."""


class Leaky(AudioWork):
    held: ClassVar[list[weakref.ref[Held]]] = []

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        asyncio.ensure_future(self._forget(Held()))  # noqa: RUF006 - the fault that is tested
        await out.send("audio", frame)

    async def _forget(self, held: Held) -> None:
        self.held.append(weakref.ref(held))
        child = asyncio.ensure_future(asyncio.sleep(1e6))  # what it started itself is its too
        await asyncio.gather(child, asyncio.sleep(1e6))


STAGES["test.leaky"] = Leaky


def test_forgotten_tasks_end_with_their_session_and_others_lose_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    Leaky.held.clear()

    async def main() -> tuple[int, int, Session]:
        clock = LoopClock(asyncio.get_running_loop())
        short, long = (Session(compile_test(GRAPH % n), f"s-{n}", clock) for n in (50, 200))
        await asyncio.gather(short.start(), long.start())
        await asyncio.sleep(3)  # the short one has ended
        await short.close()
        gc.collect()
        alive = sum(ref() is not None for ref in Leaky.held)
        await long.wait()
        return alive, len([t for t in asyncio.all_tasks() if t is not asyncio.current_task()]), long

    with caplog.at_level(logging.WARNING):
        alive, left, long = run_virtual(main())
    assert 100 < alive <= 160  # those of the long session only
    assert left == 0
    assert len(sink_of(long).got) == 200
    assert "s-50/leak left" in caplog.text
    gc.collect()
    assert not any(ref() for ref in Leaky.held)


def test_a_model_that_loads_does_not_end_with_the_session_that_asked_first() -> None:
    async def main() -> int:
        ran: list[int] = []

        async def shared() -> None:
            await asyncio.sleep(5)
            ran.append(1)

        class Starter(AudioWork):
            async def setup(self) -> None:
                await super().setup()
                tasks.append(of_nobody(shared(), "shared"))

        tasks: list[asyncio.Task[None]] = []
        STAGES["test.starter"] = Starter
        text = (GRAPH % 5).replace("test.leaky", "test.starter")
        session = Session(compile_test(text), "s", LoopClock(asyncio.get_running_loop()))
        await session.start()
        await session.wait()
        await tasks[0]
        return len(ran)

    assert run_virtual(main()) == 1


def test_a_pool_outlives_the_session_that_made_it() -> None:
    async def main() -> int:
        clock = LoopClock(asyncio.get_running_loop())
        pools = Pools(clock)

        class First(AudioWork):
            async def setup(self) -> None:
                await super().setup()
                await self.ctx.pool().load("count", Counting)

        STAGES["test.first"] = First
        text = (GRAPH % 3).replace("test.leaky", "test.first")
        session = Session(compile_test(text), "s", clock, pools=pools)
        await session.start()
        await session.close()
        result = await pools.get("main").rows.run(
            "count", Row({"n": 2}, state={"sum": 1}, session="t", epoch=0)
        )
        pools.close()
        return result

    assert asyncio.run(main()) == 3
