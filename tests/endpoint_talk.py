"""A stage alone with an endpoint: scenes of `llm.chat` and of `tts.stream`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar

from aiohttp import web
from penstock.pipeline.clock import ManualClock
from penstock.pipeline.frame import Frame
from penstock.pipeline.stage import Flush, Stage

from .chat_server import Script, Server, serving
from .fakes import Collected, FakeContext

S = TypeVar("S", bound=Stage)


class Told(Collected):
    """Outputs that tell when something has come."""

    def __init__(self) -> None:
        super().__init__()
        self.some = asyncio.Event()

    async def send(self, port: str, frame: Frame) -> None:
        await super().send(port, frame)
        self.some.set()


class EndpointTalk(Generic[S]):
    """A stage, its server, and what came out."""

    def __init__(self, stage: S, server: Server, realtime: bool) -> None:
        self.stage, self.server, self.out = stage, server, Told()
        self.clock = ManualClock()
        self.ctx = FakeContext(self.clock, realtime=realtime)

    async def flush(self) -> None:
        self.ctx.epoch += 1
        self.out.epoch = self.ctx.epoch
        await self.stage.control(Flush("reply", self.ctx.epoch))


T = TypeVar("T", bound=EndpointTalk[Any])


def play(
    kind: Callable[[Any, Server, bool], T],
    make: Callable[[str], Stage],
    scene: Callable[[T], Awaitable[None]],
    *scripts: Script | web.Response,
    content_type: str,
    realtime: bool = True,
) -> T:
    """Play a scene with the stage that `make` gives for the URL of a server of these scripts."""

    async def played() -> T:
        async with serving(*scripts, content_type=content_type) as (server, url):
            stage = make(url)
            it = kind(stage, server, realtime)
            stage.ctx = it.ctx
            await stage.setup()
            try:
                async with asyncio.timeout(20):
                    await scene(it)
            finally:
                await stage.close()
            return it

    return asyncio.run(played())
