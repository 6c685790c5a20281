"""Against real services, for whoever has one; skipped without.

    PENSTOCK_TEST_CHAT=http://localhost:11434/v1 PENSTOCK_TEST_CHAT_MODEL=llama3.2 .venv/bin/pytest tests/test_real_endpoint.py
    PENSTOCK_TEST_SPEECH=http://localhost:8880/v1 PENSTOCK_TEST_SPEECH_MODEL=kokoro PENSTOCK_TEST_SPEECH_VOICE=af_bella …

Keys: PENSTOCK_TEST_CHAT_KEY, PENSTOCK_TEST_SPEECH_KEY.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from penstock.pipeline.clock import SECOND, MonotonicClock
from penstock.pipeline.frame import TokenFrame
from penstock.pipeline.stage import Flush, Stage
from penstock.stages.llm import LlmChat
from penstock.stages.tts import StreamTts

from .endpoint_talk import Told
from .fakes import FakeContext, feed

pytestmark = pytest.mark.net


def endpoint(service: str) -> dict[str, Any]:
    """Options of the service that the environment names; skips without one."""
    name = f"PENSTOCK_TEST_{service}"
    if name not in os.environ:
        pytest.skip(f"{name} names no endpoint")
    key = {"key": f"env:{name}_KEY"} if f"{name}_KEY" in os.environ else {}
    return {"base_url": os.environ[name], "model": os.environ.get(f"{name}_MODEL", "default"), **key}


def play(stage: Stage, scene: Callable[[FakeContext, Told], Awaitable[None]]) -> None:
    async def main() -> None:
        ctx = FakeContext(MonotonicClock())
        stage.ctx = ctx
        await stage.setup()
        try:
            async with asyncio.timeout(120):
                await scene(ctx, Told())
        finally:
            await stage.close()

    asyncio.run(main())


def heard(text: str) -> TokenFrame:
    return TokenFrame(pts=SECOND, until=2 * SECOND, text=text)


def test_a_real_model_answers_in_deltas_and_remembers() -> None:
    stage = LlmChat(LlmChat.Options.model_validate(endpoint("CHAT") | {"first_token": "60s"}))

    async def scene(ctx: FakeContext, out: Told) -> None:
        await feed(stage, "heard", heard("My name is Ada. Count from one to ten in words."), out)
        first = out.of("say")
        assert not [e for e in ctx.events if e[0] == "llm_failed"]
        assert len(first) > 3
        assert first[-1].end
        await feed(stage, "heard", heard("What is my name?"), out)
        assert "ada" in "".join(f.text for f in out.of("say")[len(first) :]).lower()

    play(stage, scene)


def test_a_real_model_is_interrupted() -> None:
    stage = LlmChat(LlmChat.Options.model_validate(endpoint("CHAT") | {"first_token": "60s"}))

    async def scene(ctx: FakeContext, out: Told) -> None:
        asking = asyncio.create_task(feed(stage, "heard", heard("Tell me a very long story."), out))
        await out.some.wait()
        ctx.epoch += 1
        await stage.control(Flush("reply", ctx.epoch))
        await asyncio.wait_for(asking, 2)
        assert out.of("say")[-1].end
        assert not stage.busy

    play(stage, scene)


def test_a_real_model_calls_a_function() -> None:
    tool = {
        "about": "The temperature in a city, in degrees",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        "emit": "asked_temperature",
    }
    options = endpoint("CHAT") | {"first_token": "60s", "tools": {"temperature": tool}}
    stage = LlmChat(LlmChat.Options.model_validate(options))

    async def scene(ctx: FakeContext, out: Told) -> None:
        await feed(stage, "heard", heard("What is the temperature in Paris? Use the function."), out)
        assert "asked_temperature" in [name for name, _ in ctx.events]

    play(stage, scene)


def test_a_real_voice_speaks() -> None:
    options = endpoint("SPEECH") | {"fallback": False, "first_byte": "60s"}
    if voice := os.environ.get("PENSTOCK_TEST_SPEECH_VOICE"):
        options["voice"] = voice
    stage = StreamTts(StreamTts.Options.model_validate({"endpoint": options}))

    async def scene(ctx: FakeContext, out: Told) -> None:
        text = "Hello there. This is a test of the voice."
        await feed(stage, "text", TokenFrame(pts=0, text=text, utterance=1, end=True), out)
        assert not [e for e in ctx.events if e[0] == "tts_failed"]
        frames = out.of("audio")
        assert "".join(f.text for f in frames) == text
        sound = np.concatenate([f.pcm[:, 0] for f in frames])
        assert len(sound) > frames[0].rate_hz
        assert np.abs(sound).max() > 1000

    play(stage, scene)
