"""`tts.stream` alone, with a speech endpoint for its voice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from penstock.models import voices
from penstock.models.voice import NoVoice
from penstock.pipeline.clock import SECOND, ManualClock
from penstock.pipeline.frame import TokenFrame
from penstock.pipeline.stage import Flush
from penstock.stages.tts import StreamTts

from .chat_server import Script, Server, sends, serving
from .fakes import Collected, FakeContext, feed
from .speech_files import RATE, tone


class Heard(Collected):
    """Outputs that tell when there is sound."""

    def __init__(self) -> None:
        super().__init__()
        self.some = asyncio.Event()

    async def send(self, port: str, frame: Any) -> None:
        await super().send(port, frame)
        self.some.set()


class Talk:
    """A stage, its server, and what came out."""

    def __init__(self, stage: StreamTts, ctx: FakeContext, server: Server, clock: ManualClock) -> None:
        self.stage, self.ctx, self.server, self.clock = stage, ctx, server, clock
        self.out = Heard()

    async def say(self, text: str, *, end: bool = True, utterance: int = 1) -> None:
        frame = TokenFrame(pts=SECOND, text=text, utterance=utterance, end=end, epoch=self.ctx.epoch)
        await feed(self.stage, "text", frame, self.out)

    async def flush(self) -> None:
        self.ctx.epoch += 1
        self.out.epoch = self.ctx.epoch
        await self.stage.control(Flush("reply", self.ctx.epoch))

    def words(self) -> str:
        return "".join(f.text for f in self.out.of("audio"))

    def seconds(self, rate_hz: int = RATE) -> float:
        """Of the endpoint's sound: its rate is no embedded voice's."""
        return sum(len(f.pcm) for f in self.out.of("audio") if f.rate_hz == rate_hz) / rate_hz

    def failures(self) -> list[dict[str, object]]:
        return [fields for name, fields in self.ctx.events if name == "tts_failed"]


def talk(
    scene: Callable[[Talk], Awaitable[None]],
    *scripts: Script | web.Response,
    content_type: str = "audio/pcm",
    realtime: bool = True,
    **options: Any,
) -> Talk:
    """Play a scene with a stage whose voice is a server of these scripts."""

    async def play() -> Talk:
        async with serving(*scripts, content_type=content_type) as (server, url):
            base: dict[str, Any] = {"base_url": url, "model": "m", "voice": "v", "fallback": False}
            stage = StreamTts(StreamTts.Options.model_validate({"endpoint": base | options}))
            clock = ManualClock()
            ctx = FakeContext(clock, realtime=realtime)
            stage.ctx = ctx
            await stage.setup()
            it = Talk(stage, ctx, server, clock)
            try:
                async with asyncio.timeout(20):
                    await scene(it)
            finally:
                await stage.close()
            return it

    return asyncio.run(play())


async def until(fact: Callable[[], bool]) -> None:
    """For what no event tells; `talk` limits the time."""
    while not fact():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def embedded() -> None:
    try:
        voices.load("auto")
    except NoVoice as e:
        pytest.skip(str(e))


def speech(seconds: float, piece: int = 1000) -> Script:
    data = tone(seconds).tobytes()
    return sends(*(data[i : i + piece] for i in range(0, len(data), piece)))
