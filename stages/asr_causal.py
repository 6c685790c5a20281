"""`asr.causal`: streaming speech recognition by a causal Whisper.

Without `model` it runs the fixture: 31 command words in one synthetic voice, for tests of the path. For people,
give a causal checkpoint (published ones are converted when they are first read) with its tokenizer.json.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ..models import whisper_loader
from ..models.asr_session import AsrEvent, AsrRows, AsrSession
from ..models.log_mel import RATE_HZ
from ..models.whisper_dims import FRAME_MS, BlockPlan
from ..models.whisper_stream import WhisperStreamer
from ..pipeline.frame import AudioFrame, EventFrame, Frame, Gap, TokenFrame
from ..pipeline.stage import In, Out, Outputs, Ports, Stage, StageError
from .resample import MonoStream

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
        dtype: Literal["fp32", "bf16"] = "fp32"
        int8: Literal["none", "head", "all"] = Field("head", description="Which weights are int8")
        beams: int = Field(1, ge=1, le=16)
        endpoint_ms: int = Field(700, ge=100, le=10_000, description="Silence that ends a turn")

    async def setup(self) -> None:
        o = self.options
        try:
            key = (o.model, o.language, o.chunk_ms, o.left_ms, o.device, o.dtype, o.int8, o.beams)
            self._rows = await self.ctx.pool().call(_load, *key)
        except (ValueError, FileNotFoundError) as e:
            raise StageError(f"node {self.ctx.node!r}: {e}") from e
        self._audio = MonoStream(RATE_HZ)
        self._session = self._new()
        self._detector = False

    def _new(self) -> AsrSession:
        return AsrSession(self._rows, endpoint_ms=self.options.endpoint_ms)

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        if isinstance(frame, EventFrame):
            await self._told(frame, out)
            return
        assert isinstance(frame, AudioFrame)
        index = self._audio.given
        pcm = self._audio.push(frame)
        if len(pcm):
            await self._hear(pcm, self._audio.pts_of(index), out)

    async def gap(self, port: str, gap: Gap, out: Outputs) -> None:
        """Nothing to do: the next frame's pts tells the session how long the hole is."""

    async def finish(self, out: Outputs) -> None:
        self._put(await self.ctx.pool().call(self._session.finish), out)

    async def _told(self, frame: EventFrame, out: Outputs) -> None:
        """A detector's word. From the first on, it replaces the loudness gate."""
        if frame.name not in ("speech_start", "speech_end"):
            return
        if not self._detector:
            self._detector, self._session.gate = True, None
        self._put(self._session.voice(frame.name == "speech_start"), out)

    async def _hear(self, pcm: NDArray[np.float32], pts: int, out: Outputs) -> None:
        session = self._session
        self._put([*session.feed(pcm, pts), *session.pump()], out)
        while session.ready:
            # one row a call: a pool that batches rows takes `batch_key`, `forward` and `commit` as they are
            heard = await self.ctx.pool().call(self._rows.forward, [session])
            self._put([*self._rows.commit(session, heard[0]), *session.pump()], out)

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


@cache
def _load(
    model: str,
    language: str,
    chunk_ms: int | None,
    left_ms: int | None,
    device: str,
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
    weights = whisper_loader.build(checkpoint, device=device, dtype=_DTYPES[dtype], int8=int8)
    words = whisper_loader.vocabulary(checkpoint, source, language)
    return AsrRows(WhisperStreamer(weights, words, plan, beams=beams))
