"""A VLM stage alone in a file run: every picture is taken in, every answer is whole, before the next frame."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fakes import Collected, FakeContext
from penstock.stages.vlm import VlmStream
from penstock.stages.vlm_toy import VlmToy
from penstock.stages.vlm_watch import Watch

S = TypeVar("S", VlmStream, VlmToy)


def in_a_file_run(stage: S, play: Callable[[S, FakeContext, Collected], Awaitable[None]]) -> None:
    async def run() -> None:
        context = FakeContext(realtime=False)
        stage.ctx = context
        await stage.setup()
        try:
            await play(stage, context, Collected())
        finally:
            await stage.close()

    asyncio.run(run())


def watch_of(stage: VlmStream | VlmToy) -> Watch:
    # what it counts is told nowhere else
    watch = stage._who if isinstance(stage, VlmStream) else stage._watch  # pyright: ignore[reportPrivateUsage]
    assert isinstance(watch, Watch)
    return watch
