"""`vlm.stream` without a model before rendered pictures: a camera that shows them, and what the stage said."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import numpy as np
from fakes import Collected, FakeContext
from numpy.typing import NDArray
from penstock.pipeline.clock import SECOND, ManualClock
from penstock.pipeline.frame import EventFrame, TokenFrame, VideoFrame
from penstock.pipeline.pixels import i420_from_rgb
from penstock.stages.vlm import VlmOptions, VlmStream

Picture = NDArray[np.uint8]
EVERY = SECOND // 4


def plain(*rgb: int, height: int = 240, width: int = 320) -> Picture:
    return np.full((height, width, 3), rgb, np.uint8)


def ball(x: int, y: int, level: int = 90) -> Picture:
    image = plain(level, level, level)
    image[max(0, y - 20) : y + 20, max(0, x - 20) : x + 20] = 240
    return image


def noisy(images: Iterable[Picture], sigma: float = 4) -> list[Picture]:
    rng = np.random.default_rng(0)
    return [np.clip(i + rng.normal(0, sigma, i.shape), 0, 255).astype(np.uint8) for i in images]


class Camera:
    """A stage, a clock, and what it has said."""

    def __init__(self, **options: object) -> None:
        self.clock = ManualClock()
        self.stage = VlmStream(VlmOptions.model_validate(options))
        self.stage.ctx = FakeContext(self.clock)
        self.out = Collected(epoch=3)
        asyncio.run(self.stage.setup())

    def show(self, *images: Picture, i420: bool = False) -> None:
        for image in images:
            self.clock.time += EVERY
            picture = i420_from_rgb(image) if i420 else image
            frame = VideoFrame(pts=self.clock.time, image=picture, format="i420" if i420 else "rgb24")
            self.stage.process("video", frame, self.out)

    def ask(self, text: str) -> str:
        self.stage.process("ask", TokenFrame(pts=self.clock.time, text=text), self.out)
        answer = self.out.of("answer")[-1]
        assert answer.end
        assert answer.epoch == 3
        return answer.text

    @property
    def said(self) -> list[str]:
        return [a.text for a in self.out.of("answer")]

    def events(self) -> list[str]:
        own = ("answered", "spoke_up")
        events: list[EventFrame] = self.out.of("event")
        return [e.name for e in events if e.name not in own]


def still(n: int = 12) -> list[Picture]:
    return noisy([ball(160, 120)] * n)


def walk(x0: int, x1: int, y: int = 120) -> list[Picture]:
    return noisy([ball(x, y) for x in np.linspace(x0, x1, 8).astype(int)])
