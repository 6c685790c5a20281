"""Small stages and a way to compile graphs from them, for tests of the engine without media."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal

import numpy as np
from penstock.pipeline import registry
from penstock.pipeline.clock import MS, LoopClock
from penstock.pipeline.compiler import compile_text
from penstock.pipeline.frame import AudioFrame, EventFrame, Frame, Gap, TokenFrame, VideoFrame
from penstock.pipeline.graph import Plan
from penstock.pipeline.session import Binding, Session
from penstock.pipeline.stage import Flush, In, NoFields, Out, Outputs, Ports, SetParams, Stage
from pydantic import BaseModel, ConfigDict, Field

SILENCE = np.zeros((320, 1), np.int16)


class SourceOptions(NoFields):
    frames: int = Field(50, ge=0)
    every_ms: int = 20


class AudioSource(Stage):
    """20 ms of silence at a steady beat of the session's clock."""

    ports = Ports(outputs={"audio": Out(AudioFrame, "live")})
    Options = SourceOptions

    async def run(self, out: Outputs) -> None:
        for _ in range(self.options.frames):
            await out.send("audio", AudioFrame(pts=self.ctx.clock.now(), pcm=SILENCE, rate_hz=16_000))
            await self.ctx.clock.sleep(self.options.every_ms * MS)


class TokenSource(Stage):
    """Counts: "0", "1", … at a steady beat."""

    ports = Ports(outputs={"text": Out(TokenFrame, "token")})
    Options = SourceOptions

    async def run(self, out: Outputs) -> None:
        for i in range(self.options.frames):
            await out.send("text", TokenFrame(pts=self.ctx.clock.now(), text=str(i)))
            await self.ctx.clock.sleep(self.options.every_ms * MS)


class WorkParams(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    gain: float = Field(1.0, ge=0, le=4)
    mode: Literal["plain", "loud"] = "plain"


class WorkOptions(NoFields):
    takes_ms: float = 0
    fail_at: int = -1  # the n-th frame of each life raises


class AudioWork(Stage):
    """Passes audio on after some time; fails when told to."""

    ports = Ports(inputs={"audio": In(AudioFrame)}, outputs={"audio": Out(AudioFrame, "live")})
    Options = WorkOptions
    Params = WorkParams

    async def setup(self) -> None:
        self.seen = 0

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        if self.seen == self.options.fail_at:
            raise ValueError("told to fail")
        self.seen += 1
        if self.options.takes_ms:
            await self.ctx.clock.sleep(round(self.options.takes_ms * MS))
        await out.send("audio", frame)


class Speaker(Stage):
    """Each token becomes ten 20 ms frames of "speech", paced by backpressure; a flush stops it."""

    ports = Ports(inputs={"text": In(TokenFrame)}, outputs={"audio": Out(AudioFrame, "generated")})

    async def setup(self) -> None:
        self.void = -1

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        assert isinstance(frame, TokenFrame)
        epoch = out.epoch
        for i in range(10):
            if epoch <= self.void:
                return
            await out.send(
                "audio",
                AudioFrame(
                    pts=frame.pts + i * 20 * MS, pcm=SILENCE, rate_hz=16_000, epoch=epoch, text=frame.text
                ),
            )

    async def control(self, message: Flush | SetParams) -> None:
        await super().control(message)
        if isinstance(message, Flush):
            self.void = message.epoch - 1


class Alarm(Stage):
    """Posts the event `alarm` when a token's text is a multiple of ten."""

    ports = Ports(inputs={"text": In(TokenFrame)}, outputs={"event": Out(EventFrame, "token")})

    def process(self, port: str, frame: Frame, out: Outputs) -> None:
        assert isinstance(frame, TokenFrame)
        if int(frame.text) % 10 == 9:
            out.post("event", EventFrame(pts=frame.pts, name="alarm", fields={"at": frame.text}))


class Sink(Stage):
    """Takes everything, `takes_ms` each, and remembers it in the class's `got` by port."""

    ports = Ports(
        inputs={
            "audio": In(AudioFrame, required=False),
            "video": In(VideoFrame, required=False),
            "text": In((TokenFrame, EventFrame), required=False, many=True),
        }
    )
    Options = WorkOptions

    async def setup(self) -> None:
        self.got: list[tuple[int, str, Frame]] = []
        self.gaps: list[Gap] = []
        self.flushes: list[Flush] = []

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        self.got.append((self.ctx.clock.now(), out.source, frame))
        if self.options.takes_ms:
            await self.ctx.clock.sleep(round(self.options.takes_ms * MS))

    def gap(self, port: str, gap: Gap, out: Outputs) -> Awaitable[None] | None:
        self.gaps.append(gap)
        return None

    async def control(self, message: Flush | SetParams) -> None:
        if isinstance(message, Flush):
            self.flushes.append(message)


STAGES: dict[str, type[Stage]] = {
    "test.audio": AudioSource,
    "test.tokens": TokenSource,
    "test.work": AudioWork,
    "test.speaker": Speaker,
    "test.alarm": Alarm,
    "test.sink": Sink,
}


def compile_test(text: str) -> Plan:
    registry.EXTRA.update(STAGES)
    try:
        return compile_text(text, "test.yaml")
    finally:
        for use in STAGES:
            registry.EXTRA.pop(use, None)


async def run_session(
    plan: Plan,
    *,
    realtime: bool = True,
    meanwhile: Callable[[Session], Awaitable[None]] | None = None,
    bindings: Mapping[str, Binding] | None = None,
) -> Session:
    """Start, wait for the media's end (doing `meanwhile` beside it), close."""
    session = Session(
        plan, "s-test", LoopClock(asyncio.get_running_loop()), realtime=realtime, bindings=bindings
    )
    await session.start()
    if meanwhile is not None:
        await meanwhile(session)
    await session.wait()
    return session


def sink_of(session: Session, node: str = "out") -> Any:
    return session.runners[node].stage
