"""What all streaming recognisers share as stages: audio in, blocks as rows of a pool, words and turns out."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..models.asr_session import AsrEvent, AsrRows, AsrSession
from ..models.log_mel import RATE_HZ
from ..models.profanity import mask
from ..pipeline.clock import MS
from ..pipeline.frame import AudioFrame, EventFrame, Frame, Gap, TokenFrame
from ..pipeline.rows import DeadlineMissed, Demand, Row
from ..pipeline.stage import In, Out, Outputs, Ports, Stage, StageError
from ..pipeline.units import Device
from .resample import MonoStream

_PATIENCE = 10  # chunks until a waiting block is told as late


class StreamedAsr(Stage):
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
    rows_stay = True

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        device: Device = Field(
            default="auto", description="auto, cpu, cuda or cuda:1; auto: a GPU where there is one"
        )
        endpoint_ms: int = Field(default=700, ge=100, le=10_000, description="Silence that ends a turn")
        mask_profanity: bool = Field(default=False, description="Write swear words with asterisks")

    async def load(self) -> tuple[str, AsrRows]:
        """The recogniser and its name, one for all sessions with the same options. Raises: ValueError."""
        raise NotImplementedError

    async def setup(self) -> None:
        pool = self.ctx.pool()
        try:
            self._model, rows = await self.load()
        except (ValueError, FileNotFoundError) as e:
            raise StageError(f"node {self.ctx.node!r}: {e}") from e
        self._chunk_ms = rows.streamer.chunk_ms
        await pool.load(self._model, lambda: AsrRowModel(rows))
        await pool.warm(self._model, lambda: Row(None, state=example(rows)))
        pool.admit(Demand(self._model, rate_hz=1000 / self._chunk_ms, within=self._chunk_ms * MS))
        self._audio = MonoStream(RATE_HZ)
        self._session = AsrSession(rows, endpoint_ms=self.options.endpoint_ms)
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
                text=mask(e.text) if self.options.mask_profanity else e.text,
                utterance=e.turn,
                epoch=out.epoch,
                end=e.kind != "partial",  # whole by itself: files and overlays put no pieces together
            )
            out.post(ports[e.kind], frame)


class AsrRowModel:
    """The recogniser as row pools see it: a row's state is its `AsrSession`, it needs no payload."""

    def __init__(self, rows: AsrRows) -> None:
        self.rows = rows

    def batch_key(self, row: Row) -> Hashable:
        return self.rows.batch_key(row.state)

    def forward(self, rows: Sequence[Row]) -> Sequence[Any]:
        return self.rows.forward([row.state for row in rows])

    def commit(self, row: Row, result: Any) -> list[AsrEvent]:
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
