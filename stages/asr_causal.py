"""`asr.causal`: streaming speech recognition by a causal Whisper.

Without `model` it runs the fixture: 31 command words in one synthetic voice, for tests of the path. For people,
give a causal checkpoint (published ones are converted when they are first read) with its tokenizer.json.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from ..models import whisper_loader
from ..models.asr_session import AsrEvent, AsrRows, AsrSession
from ..models.causal_whisper import CausalWhisper
from ..models.log_mel import RATE_HZ
from ..models.whisper_dims import FRAME_MS, BlockPlan
from ..models.whisper_ort import OrtWhisper
from ..models.whisper_stream import Heard, WhisperStreamer
from ..pipeline.clock import MS
from ..pipeline.frame import AudioFrame, EventFrame, Frame, Gap, TokenFrame
from ..pipeline.rows import DeadlineMissed, Demand, Row
from ..pipeline.stage import In, Out, Outputs, Ports, Stage, StageError
from .resample import MonoStream

_PATIENCE = 10  # chunks until a waiting block is told as late
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class CausalAsr(Stage):
    """Words while they are spoken; a committed word never changes.

    `partial` holds the words that may still change and replaces the one before; `commit` holds words that are
    final, a few at a time; `turn` a whole turn at its end. A turn ends after `endpoint_ms` of silence, or at
    the detector's `speech_end` where one is connected to `speech`.
    """

    ports = Ports(
        inputs={"audio": In(AudioFrame), "speech": In(EventFrame, required=False)},
        outputs={
            "partial": Out(TokenFrame, origin="token"),
            "commit": Out(TokenFrame, origin="token"),
            "turn": Out(TokenFrame, origin="token"),
        },
    )

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        model: str = Field("fixture", description="fixture, a checkpoint's path, or a hub id")
        language: str = Field("en", description="Of a multilingual checkpoint")
        chunk_ms: int | None = Field(None, ge=40, le=1000, description="Audio a step; the checkpoint's own")
        left_ms: int | None = Field(None, ge=600, description="Bounded window, for weights trained for one")
        device: str = Field("auto", description="auto, cpu or cuda")
        engine: Literal["auto", "torch", "onnx"] = Field(
            "auto", description="onnx is two times quicker on CPUs; auto takes it there when it is installed"
        )
        dtype: Literal["fp32", "bf16"] = "fp32"
        int8: Literal["none", "head", "all"] = Field("head", description="Which weights are int8")
        beams: int = Field(1, ge=1, le=16)
        endpoint_ms: int = Field(700, ge=100, le=10_000, description="Silence that ends a turn")

    async def setup(self) -> None:
        o, pool = self.options, self.ctx.pool()
        key = (o.model, o.language, o.chunk_ms, o.left_ms, o.device, o.engine, o.dtype, o.int8, o.beams)
        try:
            self._rows: AsrRows = await pool.call(_load, *key)
        except (ValueError, FileNotFoundError) as e:
            raise StageError(f"node {self.ctx.node!r}: {e}") from e
        self._model = "asr " + "/".join(map(str, key))
        self._chunk_ms = self._rows.streamer.plan.chunk_ms
        rows = self._rows
        await pool.load(self._model, lambda: CausalAsrModel(rows))
        await pool.warm(self._model, lambda: Row(None, state=example(rows)))
        pool.admit(Demand(self._model, rate_hz=1000 / self._chunk_ms, within=self._chunk_ms * MS))
        self._audio = MonoStream(RATE_HZ)
        self._session = AsrSession(rows, endpoint_ms=o.endpoint_ms)
        self._detector = False

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        if isinstance(frame, EventFrame):
            await self._told(frame, out)
            return
        assert isinstance(frame, AudioFrame)
        index = self._audio.given
        pcm = self._audio.push(frame)
        if len(pcm):
            self._session.feed(pcm, self._audio.pts_of(index))
            await self._hear(out)

    async def gap(self, port: str, gap: Gap, out: Outputs) -> None:
        """Nothing to do: the next frame's pts tells the session how long the hole is."""

    async def finish(self, out: Outputs) -> None:
        self._session.end()
        await self._hear(out)

    async def _told(self, frame: EventFrame, out: Outputs) -> None:
        """A detector's word. From the first on, it replaces the loudness gate."""
        if frame.name not in ("speech_start", "speech_end"):
            return
        if not self._detector:
            self._detector, self._session.gate = True, None
        self._put(self._session.voice(frame.name == "speech_start"), out)
        await self._hear(out)

    async def _hear(self, out: Outputs) -> None:
        """Blocks that wait, each a row that the pool may run together with other sessions'."""
        session = self._session
        self._put(session.pump(), out)
        while session.ready:
            row = Row(None, state=session, deadline=self.ctx.clock.now() + _PATIENCE * self._chunk_ms * MS)
            try:
                events = await self.ctx.pool().run(self._model, row)
            except DeadlineMissed:  # words are worth more late than never: ask again
                self.ctx.emit("behind", late_ms=_PATIENCE * self._chunk_ms)
                continue
            self._put([*events, *session.pump()], out)

    def _put(self, events: list[AsrEvent], out: Outputs) -> None:
        ports = {"partial": "partial", "commit": "commit", "endpoint": "turn"}
        for e in events:
            frame = TokenFrame(
                pts=e.begin,
                until=e.end,
                text=e.text,
                utterance=e.turn,
                epoch=out.epoch,
                end=e.kind == "endpoint",
            )
            out.post(ports[e.kind], frame)


class CausalAsrModel:
    """The recogniser as row pools see it: a row's state is its `AsrSession`, it needs no payload."""

    def __init__(self, rows: AsrRows) -> None:
        self.rows = rows

    def batch_key(self, row: Row) -> Hashable:
        return self.rows.batch_key(row.state)

    def forward(self, rows: Sequence[Row]) -> list[Heard]:
        return self.rows.forward([row.state for row in rows])

    def commit(self, row: Row, result: Heard) -> list[AsrEvent]:
        return self.rows.commit(row.state, result)


def example(rows: AsrRows) -> AsrSession:
    """A session in its second block of speech: what a row usually costs."""
    session = AsrSession(rows, gated=False)
    session.voice(True)
    noise = np.random.default_rng(0).normal(0, 0.05, RATE_HZ * 2).astype(np.float32)
    session.feed(noise, 0)
    session.pump()
    session.take(rows.forward([session])[0])
    session.pump()
    return session


@cache
def _load(
    model: str,
    language: str,
    chunk_ms: int | None,
    left_ms: int | None,
    device: str,
    engine: str,
    dtype: str,
    int8: str,
    beams: int,
) -> AsrRows:
    """One set of weights for all sessions with the same options. Raises: ValueError, FileNotFoundError."""
    source = str(whisper_loader.FIXTURE) if model == "fixture" else model
    if model == "fixture" and not whisper_loader.FIXTURE.is_file():
        raise FileNotFoundError(
            f"the fixture {whisper_loader.FIXTURE.name} has not been made: run python -m "
            "penstock.models.training.asr_fixture (minutes, needs libflite1), or name a checkpoint in 'model'"
        )
    checkpoint = whisper_loader.read(source)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    plan = checkpoint.plan or BlockPlan()
    if chunk_ms is not None or left_ms is not None:
        first = plan.first * FRAME_MS
        plan = BlockPlan.of_ms(chunk_ms or plan.chunk_ms, first_ms=first, left_ms=left_ms)
    weights = _engine(checkpoint, engine, device, dtype, int8)
    words = whisper_loader.vocabulary(checkpoint, source, language)
    return AsrRows(WhisperStreamer(weights, words, plan, beams=beams))


def _engine(
    checkpoint: whisper_loader.Checkpoint, engine: str, device: str, dtype: str, int8: str
) -> CausalWhisper | OrtWhisper:
    """The weights on torch or onnxruntime. Raises: ValueError."""
    able = device == "cpu" and dtype == "fp32"
    if engine == "auto":
        engine = "onnx" if able and find_spec("onnx") is not None else "torch"
    if engine == "torch":
        return whisper_loader.build(checkpoint, device=device, dtype=_DTYPES[dtype], int8=int8)
    if not able:
        raise ValueError(
            f"engine onnx runs fp32 or int8 on the cpu, not {dtype} on {device}; use engine: torch"
        )
    if find_spec("onnx") is None:
        raise ValueError(
            "engine onnx needs the package onnx: pip install 'penstock[hub]', or use engine: torch"
        )
    return OrtWhisper(whisper_loader.build(checkpoint), int8)
