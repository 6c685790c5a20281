"""`tts.stream`: reads replies aloud while they are still being written."""

from __future__ import annotations

import logging
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..models import voices
from ..models.voice import NoVoice, Spoken, Voice
from ..pipeline.clock import SECOND
from ..pipeline.frame import AudioFrame, Frame, TokenFrame
from ..pipeline.stage import Control, Flush, In, Out, Outputs, Ports, Stage, StageError
from .clauses import ClauseCutter
from .speech_ahead import Clause, SpeechAhead
from .voice_engine import EmbeddedEngine, Stop
from .voice_remote import RemoteEngine, SpeechEndpoint

log = logging.getLogger(__name__)

_CHUNK_MS = 60  # the longest frame put; 20–80 ms suits packets and lets a barge-in cut finely


class StreamTts(Stage):
    """Text deltas to speech, clause by clause, in an embedded voice (flite, else espeak-ng) or an endpoint's.

    A clause goes out as the edge has room, so a slow listener holds nobody else's voice. A flush stops the
    synthesis at its next 40 ms, ends a request at once, and forgets the rest of the utterance. The embedded
    voices are plain, English and without expression.

    `endpoint` names an OpenAI-compatible speech service; the embedded voice then speaks while that one fails.
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
        endpoint: SpeechEndpoint | None = Field(None, description="Speaks in place of the embedded voice")

    class Params(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        rate: float = Field(1.0, ge=0.5, le=2.0, description="Speed of speech")
        volume: float = Field(1.0, ge=0.0, le=2.0, description="1 is as the voice is; louder may clip")

    async def setup(self) -> None:
        self._cutter = ClauseCutter()
        self._utterance: int | None = None
        self._void = 0  # frames of an older epoch are not spoken
        self._stop: Stop | None = None  # of the clause being spoken
        self._next_pts = 0  # end of the audio put last
        self._ahead: SpeechAhead | None = None  # the utterance that an endpoint speaks
        self._remote: RemoteEngine | None = None
        endpoint = self.options.endpoint
        self._embedded = await self._embed(required=endpoint is None)
        if endpoint is not None:
            self._remote = RemoteEngine(endpoint, self.ctx, self._embedded)
            await self._remote.start()

    async def _embed(self, required: bool) -> EmbeddedEngine | None:
        """The embedded voice, warm. Raises: StageError when there has to be one and is none."""
        endpoint = self.options.endpoint
        if endpoint is not None and not endpoint.fallback:
            return None
        try:
            embedded = EmbeddedEngine(await self.load(), self.ctx)
        except StageError as e:
            if required:
                raise
            log.warning("%s: while the speech endpoint fails, nothing is spoken: %s", self.ctx.node, e)
            return None
        await embedded.warm()
        return embedded

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
        if self._remote is not None:
            await self._say_ahead(clauses, frame.pts, out, drain=frame.end or not self.ctx.realtime)
            return
        stop = self._stop = Stop(self.ctx)
        try:
            for utterance, clause in clauses:
                if clause.strip() and not stop.is_set():
                    await self._say(Clause(clause, frame.pts, utterance), epoch, stop, out)
        finally:
            stop.set()  # also when cancelled: the synthesis thread ends at its next chunk
            if self._stop is stop:
                self._stop = None

    async def finish(self, out: Outputs) -> None:
        rest, utterance = self._cutter.finish(), self._utterance or 0
        if self._remote is not None:
            await self._say_ahead([(utterance, rest)], self._next_pts, out, drain=True)
        elif rest.strip():
            await self._say(Clause(rest, self._next_pts, utterance), out.epoch, Stop(self.ctx), out)

    async def control(self, message: Control) -> None:
        await super().control(message)
        if isinstance(message, Flush):
            self._void = message.epoch
            self._cutter.finish()
            self._utterance = None
            self._next_pts = 0
            if self._stop is not None:
                self._stop.set()
            # a flush may be told after the next reply has begun, which it does not mean
            if self._ahead is not None and self._ahead.epoch < message.epoch:
                self._ahead.cancel()
                self._ahead = None

    async def close(self) -> None:
        stop: Stop | None = getattr(self, "_stop", None)
        if stop is not None:
            stop.set()
        ahead: SpeechAhead | None = getattr(self, "_ahead", None)
        if ahead is not None:
            await ahead.cancelled()
        remote: RemoteEngine | None = getattr(self, "_remote", None)
        if remote is not None:
            await remote.close()

    @property
    def busy(self) -> bool:
        """A request in flight has its own time limits."""
        ahead: SpeechAhead | None = getattr(self, "_ahead", None)
        return ahead is not None and ahead.busy

    async def _say(self, clause: Clause, epoch: int, stop: Stop, out: Outputs) -> None:
        """Synthesise one clause and put it out as it comes."""
        assert self._embedded is not None
        self._begin(clause)

        async def put(piece: Spoken, rate_hz: int) -> None:
            await self._put(piece, rate_hz, clause.utterance, epoch, stop, out)

        await self._embedded.speak(clause.text, self.params.rate, stop, put)

    async def _say_ahead(
        self, clauses: list[tuple[int, str]], pts: int, out: Outputs, *, drain: bool
    ) -> None:
        """Have these spoken by the endpoint. drain: wait until all has gone out."""
        epoch, ahead = out.epoch, self._ahead
        if ahead is not None and ahead.epoch != epoch:  # its flush is on its way
            ahead.cancel()
            ahead = self._ahead = None
        open_still = False
        try:
            for utterance, text in clauses:
                if text.strip():
                    if ahead is None:
                        ahead = self._ahead = self._open_ahead(epoch, out)
                    await ahead.say(Clause(text, pts, utterance))
            if drain and ahead is not None:
                await ahead.end()
            open_still = not drain
        finally:  # also when cancelled, or when the voice failed
            if ahead is not None and not open_still:
                ahead.cancel()
                if self._ahead is ahead:
                    self._ahead = None

    def _open_ahead(self, epoch: int, out: Outputs) -> SpeechAhead:
        assert self._remote is not None
        stop = Stop(self.ctx)

        async def emit(clause: Clause, piece: Spoken, rate_hz: int, first: bool) -> None:
            if first:
                self._begin(clause)
            await self._put(piece, rate_hz, clause.utterance, epoch, stop, out)

        name = f"{self.ctx.session}/{self.ctx.node}/speech"
        return SpeechAhead(self._remote, lambda: self.params.rate, stop, epoch, emit, name)

    def _begin(self, clause: Clause) -> None:
        """The next audio is this clause's: no earlier than it was written, nor than now."""
        self._next_pts = max(self._next_pts, clause.pts, self.ctx.clock.now() if self.ctx.realtime else 0)

    async def _put(
        self, piece: Spoken, rate_hz: int, utterance: int, epoch: int, stop: Stop, out: Outputs
    ) -> None:
        for part in _cut(piece, rate_hz * _CHUNK_MS // 1000):
            if stop.is_set():
                return
            pcm, volume = part.pcm, self.params.volume
            if volume != 1.0:
                pcm = np.clip(pcm * np.float32(volume), -32768, 32767).astype(np.int16)
            frame = AudioFrame(
                pts=self._next_pts,
                pcm=pcm[:, None],
                rate_hz=rate_hz,
                text=part.text,
                utterance=utterance,
                epoch=epoch,
            )
            self._next_pts += len(pcm) * SECOND // rate_hz
            await out.send("audio", frame)


def _cut(piece: Spoken, longest: int) -> list[Spoken]:
    """Parts of at most `longest` samples; the words go with the last."""
    parts = max(1, -(-len(piece.pcm) // longest))
    arrays = np.array_split(piece.pcm, parts)
    return [Spoken(pcm, piece.text if i == parts - 1 else "") for i, pcm in enumerate(arrays)]
