"""What came as a crop and its context: a model is shown both, and its attention is laid back onto the whole picture."""

from __future__ import annotations

import base64
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from chat_server import HELLO, Server, sends
from fakes import Collected, FakeContext, feed
from penstock.pipeline.clock import SECOND
from penstock.pipeline.frame import EventFrame, TokenFrame, VideoFrame
from penstock.pipeline.pixels import i420_from_rgb
from penstock.stages.close_up import close_up, placed
from penstock.stages.vlm import VlmOptions, VlmStream
from test_vlm_remote import on_an_endpoint
from tiny_vlms import write_checkpoint
from vlm_play import in_a_file_run, watch_of

BOX = (0.5, 4 / 9, 0.25, 4 / 9)


def picture(at_s: float, seed: int = 0) -> VideoFrame:
    image = np.random.default_rng(seed).integers(0, 255, (90, 160, 3)).astype(np.uint8)
    return VideoFrame(pts=round(at_s * SECOND), image=image)


def test_the_sharp_part_is_cut_out() -> None:
    whole = picture(1)
    assert close_up(whole) is None
    assert close_up(TokenFrame(pts=0, text="")) is None
    for frame in (whole, replace(whole, image=i420_from_rgb(whole.image), format="i420")):
        part = close_up(replace(frame, sharp=BOX))
        assert part is not None
        assert (part.width, part.height, part.format, part.sharp, part.pts) == (40, 40, "rgb24", None, SECOND)
    tiny = close_up(replace(whole, sharp=(0.999, 0.999, 1e-6, 1e-6)))
    assert tiny is not None
    assert tiny.image.size


def test_attention_onto_it_is_laid_back_onto_the_whole() -> None:
    laid = placed(np.ones((3, 5), np.float32), BOX)
    assert laid.shape == (9, 16)
    assert (laid[4:8, 8:12] == 1).all()
    assert laid.sum() == 16
    assert placed(np.ones((3, 5), np.float32), (15.9 / 16, 8.9 / 9, 0.1 / 16, 0.1 / 9)).sum() == 1


def test_an_endpoint_is_sent_it_beside_the_newest_picture() -> None:
    async def play(stage: VlmStream, context: FakeContext, out: Collected, server: Server) -> None:
        for n in range(3):
            await feed(stage, "video", replace(picture(n, n), sharp=BOX), out)
        await feed(stage, "ask", TokenFrame(pts=4 * SECOND, text="what does it say"), out)
        content = server.requests[0]["messages"][-1]["content"]
        urls = [part["image_url"]["url"] for part in content if part["type"] == "image_url"]
        assert len(urls) == 4
        data = base64.b64decode(urls[-1].removeprefix("data:image/jpeg;base64,"))
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert image is not None
        assert image.shape == (40, 40, 3)

    on_an_endpoint(play, sends(HELLO))


def test_a_model_looks_at_it_before_it_answers(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="the package transformers is not installed")
    write_checkpoint(tmp_path, "smolvlm")

    async def play(stage: VlmStream, context: FakeContext, out: Collected) -> None:
        await feed(stage, "video", replace(picture(1), sharp=BOX), out)
        watch = watch_of(stage)
        before = [s.kind for s in watch.session.cache.window].count("frame")
        grids = len(out.of("importance"))
        await feed(stage, "ask", TokenFrame(pts=2 * SECOND, text="what does it say"), out)
        kinds = [s.kind for s in watch.session.cache.window]
        assert kinds.count("frame") == before + 1
        looked: EventFrame = out.of("importance")[grids]
        grid = np.array(looked.fields["grid"]).reshape(9, 16)
        assert grid.max() == 255
        assert not grid[:4].any()  # outside of what it was shown
        assert not grid[:, :8].any()

    given = {"model": str(tmp_path), "answer_tokens": 4, "memory": {"tokens": 160, "text": 48}}
    in_a_file_run(VlmStream(VlmOptions.model_validate(given)), play)
