"""`vlm.stream` on an endpoint: the newest pictures go with each question; failures are said; barge-ins end requests."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any

import cv2
import numpy as np
import pytest
from aiohttp import web
from chat_server import HELLO, Script, Server, delta, drops, sends, serving, stalls
from fakes import Collected, FakeContext, feed
from penstock.pipeline.clock import SECOND
from penstock.pipeline.frame import EventFrame, TokenFrame, VideoFrame
from penstock.pipeline.stage import Flush
from penstock.stages.vlm import VlmOptions, VlmStream
from pydantic import ValidationError

Play = Callable[[VlmStream, FakeContext, Collected, Server], Awaitable[None]]


def on_an_endpoint(
    play: Play, *scripts: Script | web.Response, realtime: bool = False, **options: Any
) -> None:
    given: dict[str, Any] = {"model": "m", "fps": 1, "pictures": 3} | options

    async def run() -> None:
        async with serving(*scripts) as (server, url), asyncio.timeout(60):
            stage = VlmStream(VlmOptions.model_validate(given | {"base_url": url}))
            context = FakeContext(realtime=realtime)
            stage.ctx = context
            await stage.setup()
            try:
                await play(stage, context, Collected(), server)
            finally:
                await stage.close()

    asyncio.run(run())


def picture(second: float, level: int = 120) -> VideoFrame:
    image = (
        np.random.default_rng(int(second * 10)).integers(level - 9, level + 9, (480, 640, 3)).astype(np.uint8)
    )
    return VideoFrame(pts=int(second * SECOND), image=image)


def question(second: float, text: str = "is there a cat") -> TokenFrame:
    return TokenFrame(pts=int(second * SECOND), text=text)


def test_a_question_carries_the_newest_pictures_and_no_more() -> None:
    async def play(stage: VlmStream, context: FakeContext, out: Collected, server: Server) -> None:
        for i in range(20):  # four a second, of which one is kept
            await feed(stage, "video", picture(i / 4, 60 + 6 * i), out)
        await feed(stage, "ask", question(5), out)
        assert "".join(f.text for f in out.of("answer")) == "Hello é☃."
        assert out.of("answer")[-1].end
        request = server.requests[0]
        assert request["stream"] is True
        assert request["messages"][0]["role"] == "system"
        content = request["messages"][-1]["content"]
        urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
        assert len(urls) == 3
        data = [base64.b64decode(u.removeprefix("data:image/jpeg;base64,")) for u in urls]
        images = [cv2.imdecode(np.frombuffer(d, np.uint8), cv2.IMREAD_COLOR) for d in data]
        assert all(i is not None and i.shape == (384, 512, 3) for i in images)
        assert np.mean(np.asarray(images[0])) < np.mean(np.asarray(images[2])), "oldest first"
        assert content[-1]["text"].endswith("is there a cat")
        told: EventFrame = out.of("event")[-1]
        assert told.fields == {"kind": "other", "known": True, "by": "endpoint"}
        await feed(stage, "ask", question(5, "and now"), out)
        texts = [m["content"] for m in server.requests[1]["messages"][1:3]]
        assert texts == ["is there a cat", "Hello é☃."]

    on_an_endpoint(play, sends(HELLO))


def test_what_was_measured_needs_no_endpoint() -> None:
    async def play(stage: VlmStream, context: FakeContext, out: Collected, server: Server) -> None:
        await feed(stage, "ask", question(0), out)
        assert out.of("answer")[-1].text == "I have not seen a picture yet."
        await feed(stage, "video", picture(1), out)
        await feed(stage, "ask", question(1, "what is the resolution"), out)
        assert "640 by 480" in out.of("answer")[-1].text
        await feed(stage, "ask", question(1, "Tell me when the cat comes."), out)
        assert "only looks when it is asked" in out.of("answer")[-1].text
        assert not server.requests

    on_an_endpoint(play, sends(HELLO))


@pytest.mark.parametrize(
    "script", [web.Response(status=500), drops(delta("Hel")), sends(b"data: {nonsense\n\n"), web.Response(status=401)]
)  # fmt: skip
def test_a_failing_endpoint_is_said_and_then_left_alone(script: Script | web.Response) -> None:
    async def play(stage: VlmStream, context: FakeContext, out: Collected, server: Server) -> None:
        await feed(stage, "video", picture(1), out)
        for i in range(4):
            await feed(stage, "ask", question(1 + i), out)
            assert out.of("answer")[-1].end
        assert "cannot" in out.of("answer")[0].text + out.of("answer")[-1].text
        assert len(server.requests) == 2, "the breaker has opened"
        assert [n for n, _ in context.events].count("vlm_failed") == 2

    on_an_endpoint(play, script, failures=2)


def test_a_barge_in_hangs_up_and_the_next_question_is_answered() -> None:
    async def play(stage: VlmStream, context: FakeContext, out: Collected, server: Server) -> None:
        await feed(stage, "video", picture(1), out)
        await feed(stage, "ask", question(1), out)
        while not out.of("answer"):  # noqa: ASYNC110 - the stage tells nobody else
            await asyncio.sleep(0.01)
        context.epoch = 1
        await stage.control(Flush("reply", 1))
        await server.gone.wait()
        out.epoch = 1
        await feed(stage, "ask", question(2), out)
        while "☃." not in out.of("answer")[-2].text:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        epochs = [(f.epoch, f.end) for f in out.of("answer")]
        assert epochs[0] == (0, False)
        assert (1, True) in epochs
        assert not [f for f in out.of("answer")[1:] if f.epoch == 0 and f.text]

    on_an_endpoint(play, stalls(delta("Once")), sends(HELLO), realtime=True)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"base_url": "ftp://x"}, "not an endpoint"),
        ({"base_url": "http://u:p@x/v1"}, "user name or password"),
        ({"base_url": "http://x/v1", "key": "sk-123"}, "not a reference"),
        ({"pictures": 0}, "greater than or equal to 1"),
        ({"memory": {"tokens": 100, "text": 90}}, "pictures need room"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_in_words(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        VlmOptions(model="m", **options)
