"""`tts.stream` alone, with a speech endpoint for its voice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from penstock.models import voices
from penstock.models.voice import NoVoice
from penstock.pipeline.clock import SECOND
from penstock.pipeline.frame import TokenFrame
from penstock.stages.tts import StreamTts

from .chat_server import Script, sends
from .endpoint_talk import EndpointTalk, play
from .fakes import feed
from .speech_files import RATE, tone


class Talk(EndpointTalk[StreamTts]):
    async def say(self, text: str, *, end: bool = True, utterance: int = 1) -> None:
        frame = TokenFrame(pts=SECOND, text=text, utterance=utterance, end=end, epoch=self.ctx.epoch)
        await feed(self.stage, "text", frame, self.out)

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

    def make(url: str) -> StreamTts:
        base: dict[str, Any] = {"base_url": url, "model": "m", "voice": "v", "fallback": False}
        return StreamTts(StreamTts.Options.model_validate({"endpoint": base | options}))

    return play(Talk, make, scene, *scripts, content_type=content_type, realtime=realtime)


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
