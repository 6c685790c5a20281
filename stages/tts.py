"""`tts.stream`: reads replies aloud while they are still being written."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..models import voices
from ..models.voice import NoVoice, Spoken, Voice
from ..pipeline.clock import SECOND
from ..pipeline.frame import AudioFrame, Frame, TokenFrame
from ..pipeline.stage import Context, Control, Flush, In, Out, Outputs, Ports, Stage, StageError
from .clauses import ClauseCutter

_CHUNK_MS = 60  # the longest frame put; 20–80 ms suits packets and lets a barge-in cut finely
_PATIENCE = 30 * SECOND  # a deadline that no call misses, so that speech goes before work that has none


class StreamTts(Stage):
    """Text deltas to speech, clause by clause, in an embedded voice (flite, else espeak-ng).

    A clause is synthesised whole off the loop (some 10 ms for flite) and goes out as the edge has room, so a
    slow listener holds nobody else's voice. A flush stops the synthesis at its next 40 ms and forgets the
    rest of the utterance. The voices are plain, English and without expression.
    """

    ports = Ports(
        inputs={"text": In(TokenFrame)},
        outputs={"audio": Out(AudioFrame, origin="generated")},
    )

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        voice: Literal["auto", "flite:rms", "flite:slt", "flite:awb", "flite:kal16", "espeak", "flow"] = (
            Field("auto", description="auto takes the best there is")
        )

    class Params(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        rate: float = Field(1.0, ge=0.5, le=2.0, description="Speed of speech")
        volume: float = Field(1.0, ge=0.0, le=2.0, description="1 is as the voice is; louder may clip")

    async def setup(self) -> None:
        self._voice = await self.load()
        # the first call of a voice reads its tables from disk
        await self.ctx.pool().call(self._voice.synthesise, "Ready.", _unheard, lambda: False)
        self._cutter = ClauseCutter()
        self._utterance: int | None = None
        self._void = 0  # frames of an older epoch are not spoken
        self._stop: _Stop | None = None  # of the clause being spoken
        self._next_pts = 0  # end of the audio put last

    async def load(self) -> Voice:
        """The voice of the options. Raises: StageError."""
        try:
            return await self.ctx.pool().call(voices.load, self.options.voice)
        except NoVoice as e:
            raise StageError(f"node {self.ctx.node!r}: {e}") from e

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        assert isinstance(frame, TokenFrame)
        if frame.epoch < self._void:
            return
        epoch = out.epoch
        clauses: list[tuple[int, str]] = []
        if frame.utterance != self._utterance:
            if self._utterance is not None:  # it was not ended: say what there is
                clauses.append((self._utterance, self._cutter.finish()))
            self._utterance = frame.utterance
        clauses += [(frame.utterance, clause) for clause in self._cutter.push(frame.text)]
        if frame.end:
            clauses.append((frame.utterance, self._cutter.finish()))
            self._utterance = None
        stop = self._stop = _Stop(self.ctx)
        try:
            for utterance, clause in clauses:
                if clause.strip() and not stop.is_set():
                    await self._say(clause, frame.pts, utterance, epoch, stop, out)
        finally:
            stop.set()  # also when cancelled: the synthesis thread ends at its next chunk
            if self._stop is stop:
                self._stop = None

    async def finish(self, out: Outputs) -> None:
        rest, utterance = self._cutter.finish(), self._utterance or 0
        if rest.strip():
            await self._say(rest, self._next_pts, utterance, out.epoch, _Stop(self.ctx), out)

    async def control(self, message: Control) -> None:
        await super().control(message)
        if isinstance(message, Flush):
            self._void = message.epoch
            self._cutter.finish()
            self._utterance = None
            self._next_pts = 0
            if self._stop is not None:
                self._stop.set()

    async def close(self) -> None:
        stop = getattr(self, "_stop", None)
        if stop is not None:
            stop.set()

    async def _say(
        self, clause: str, pts: int, utterance: int, epoch: int, stop: _Stop, out: Outputs
    ) -> None:
        """Synthesise one clause and put it out as it comes."""
        pieces = _Handoff(asyncio.get_running_loop())
        volume, rate = self.params.volume, self.params.rate

        def synthesise() -> None:
            self._voice.synthesise(clause, pieces.put, stop.is_set, rate=rate)

        async def produce() -> None:
            try:
                await self.ctx.pool().call(synthesise, deadline=self.ctx.clock.now() + _PATIENCE)
            finally:
                pieces.close()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(produce(), name=f"{self.ctx.session}/{self.ctx.node}/voice")
            self._next_pts = max(self._next_pts, pts, self.ctx.clock.now() if self.ctx.realtime else 0)
            while (piece := await pieces.get()) is not None:
                for part in _cut(piece, self._voice.rate_hz * _CHUNK_MS // 1000):
                    if stop.is_set():
                        break
                    await self._put(part, utterance, volume, epoch, out)

    async def _put(self, piece: Spoken, utterance: int, volume: float, epoch: int, out: Outputs) -> None:
        pcm = piece.pcm
        if volume != 1.0:
            pcm = np.clip(pcm * np.float32(volume), -32768, 32767).astype(np.int16)
        rate_hz = self._voice.rate_hz
        frame = AudioFrame(
            pts=self._next_pts,
            pcm=pcm[:, None],
            rate_hz=rate_hz,
            text=piece.text,
            utterance=utterance,
            epoch=epoch,
        )
        self._next_pts += len(pcm) * SECOND // rate_hz
        await out.send("audio", frame)


class _Stop:
    """Set by hand, or by a new epoch of the scope, which may come before the control message does."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._epoch = ctx.epoch
        self._set = threading.Event()

    def set(self) -> None:
        self._set.set()

    def is_set(self) -> bool:
        """From any thread."""
        return self._set.is_set() or self._ctx.epoch != self._epoch


class _Handoff:
    """Pieces from the synthesis thread to the loop. Holds at most one clause, so it never makes the thread
    wait, which holds the lock that all sessions' voices share."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pieces: deque[Spoken] = deque()
        self._closed = False
        self._ready = asyncio.Event()

    def put(self, piece: Spoken) -> None:
        """From any thread."""
        self._pieces.append(piece)
        self._loop.call_soon_threadsafe(self._ready.set)

    def close(self) -> None:
        self._closed = True
        self._ready.set()

    async def get(self) -> Spoken | None:
        """The next piece; None after the last."""
        while not self._pieces:
            if self._closed:
                return None
            self._ready.clear()
            await self._ready.wait()
        return self._pieces.popleft()


def _unheard(piece: Spoken) -> None:
    """Takes what is spoken to warm the voice up."""


def _cut(piece: Spoken, longest: int) -> list[Spoken]:
    """Parts of at most `longest` samples; the words go with the last."""
    parts = max(1, -(-len(piece.pcm) // longest))
    arrays = np.array_split(piece.pcm, parts)
    return [Spoken(pcm, piece.text if i == parts - 1 else "") for i, pcm in enumerate(arrays)]
