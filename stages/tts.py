"""`tts.stream`: reads replies aloud while they are still being written."""

from __future__ import annotations

import asyncio
import logging
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..models import voices
from ..models.clauses import ClauseCutter
from ..models.voice import NoVoice, Spoken, Voice, cut
from ..pipeline.clock import MS, SECOND
from ..pipeline.frame import AudioFrame, Frame, TokenFrame
from ..pipeline.stage import Control, Flush, In, Out, Outputs, Ports, Stage, StageError
from ..pipeline.units import Duration, written_as
from .speech_ahead import Clause, SpeechAhead
from .voice_engine import EmbeddedEngine, Stop
from .voice_remote import RemoteEngine, SpeechEndpoint

log = logging.getLogger(__name__)

_LEAD = 200 * MS  # of the end of what sounds: in it a stalled writer's words are still made
_LOOK = 20 * MS
_CHUNK_MS = 60  # the longest frame put; 20–80 ms suits packets and lets a barge-in cut finely


class StreamTts(Stage):
    """Text deltas to speech, clause by clause, in an embedded voice (flite, else a neural one) or an endpoint's.

    The next clause is made while the last goes out. A flush stops the synthesis at its next piece of sound, ends a
    request at once, and forgets the rest of the utterance. When the writer stalls, the whole words there are get
    spoken. The embedded voices are plain, English and without expression; `pocket` is a natural one to be pulled.

    `endpoint` names an OpenAI-compatible speech service; the embedded voice then speaks while that one fails.
    """

    ports = Ports(
        inputs={"text": In(TokenFrame)},
        outputs={"audio": Out(AudioFrame, origin="generated")},
    )

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        voice: Literal[
            "auto", "flite:rms", "flite:slt", "flite:awb", "flite:kal16", "espeak", "flow", "pocket"
        ] = Field(default="auto", description="auto takes the best there is; pocket is pulled first")
        model: str = Field(
            default="pocket-tts", description="Of pocket: a name of `penstock models`, folder or hub id"
        )
        speaker: str = Field(default="alba", description="Of pocket: a name, or a .safetensors file")
        language: Annotated[str, written_as(r"[\w-]+", "a language's name, as english")] = Field(
            default="english", description="Of pocket"
        )
        stall: Duration = Field(
            default=400 * MS, ge=0, description="Without more text what is written is spoken; 0 waits"
        )
        endpoint: SpeechEndpoint | None = Field(
            default=None, description="Speaks in place of the embedded voice"
        )

    class Params(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        rate: float = Field(default=1.0, ge=0.5, le=2.0, description="Speed of speech")
        volume: float = Field(
            default=1.0, ge=0.0, le=2.0, description="1 is as the voice is; louder may clip"
        )

    async def setup(self) -> None:
        self._cutter = ClauseCutter()
        self._utterance: int | None = None
        self._void = 0  # frames of an older epoch are not spoken
        self._next_pts = 0  # end of the audio put last
        self._ahead: SpeechAhead | None = None  # the utterance being spoken
        self._remote: RemoteEngine | None = None
        self._delta_at = self._delta_epoch = 0  # of the text that came last
        self._stalling: asyncio.Task[None] | None = None
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
        o = self.options
        try:
            if o.voice == "pocket":
                return await self.ctx.pool().call(voices.load_pocket, o.model, o.speaker, o.language)
            return await self.ctx.pool().call(voices.load, o.voice)
        except NoVoice as e:
            raise StageError(f"node {self.ctx.node!r}: {e}") from e

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        assert isinstance(frame, TokenFrame)
        if frame.epoch < self._void:
            return
        clauses: list[tuple[int, str]] = []
        if frame.utterance != self._utterance:
            if self._utterance is not None:  # it was not ended: say what there is
                clauses.append((self._utterance, self._cutter.finish()))
            self._utterance = frame.utterance
        clauses += [(frame.utterance, clause) for clause in self._cutter.push(frame.text)]
        if frame.end:
            clauses.append((frame.utterance, self._cutter.finish()))
            self._utterance = None
        self._delta_at, self._delta_epoch = self.ctx.clock.now(), self.ctx.epoch
        if not frame.end and self.ctx.realtime and self.options.stall:
            self._watch(frame.pts, out)
        await self._say(clauses, frame.pts, out, drain=frame.end or not self.ctx.realtime)

    async def finish(self, out: Outputs) -> None:
        rest, utterance = self._cutter.finish(), self._utterance or 0
        await self._say([(utterance, rest)], self._next_pts, out, drain=True)

    async def control(self, message: Control) -> None:
        await super().control(message)
        if isinstance(message, Flush):
            self._void = message.epoch
            self._cutter.finish()
            self._utterance = None
            self._next_pts = 0
            # a flush may be told after the next reply has begun, which it does not mean
            if self._ahead is not None and self._ahead.epoch < message.epoch:
                self._ahead.cancel()
                self._ahead = None

    async def close(self) -> None:
        stalling: asyncio.Task[None] | None = getattr(self, "_stalling", None)
        if stalling is not None:
            stalling.cancel()
        ahead: SpeechAhead | None = getattr(self, "_ahead", None)
        if ahead is not None:
            await ahead.cancelled()
        remote: RemoteEngine | None = getattr(self, "_remote", None)
        if remote is not None:
            await remote.close()

    @property
    def busy(self) -> bool:
        """A request in flight has its own time limits; a voice of this machine that makes no sound has failed, unless
        others speak first."""
        ahead: SpeechAhead | None = getattr(self, "_ahead", None)
        if ahead is None or not ahead.busy:
            return False
        embedded: EmbeddedEngine | None = getattr(self, "_embedded", None)
        return getattr(self, "_remote", None) is not None or (embedded is not None and embedded.in_turn)

    async def _say(self, clauses: list[tuple[int, str]], pts: int, out: Outputs, *, drain: bool) -> None:
        """Have these spoken. drain: wait until all has gone out."""
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
        engine = self._remote or self._embedded
        assert engine is not None
        stop = Stop(self.ctx)

        async def emit(clause: Clause, piece: Spoken, rate_hz: int, first: bool) -> None:
            if first:
                self._begin(clause)
            await self._put(piece, rate_hz, clause.utterance, epoch, stop, out)

        name = f"{self.ctx.session}/{self.ctx.node}/speech"
        return SpeechAhead(engine, lambda: self.params.rate, stop, epoch, emit, name)

    # ---------------------------------------------------------------- a writer that stalls

    def _watch(self, pts: int, out: Outputs) -> None:
        """See to it that what there is gets spoken when no more text comes."""
        if self._stalling is None or self._stalling.done():
            name = f"{self.ctx.session}/{self.ctx.node}/stall"
            self._stalling = asyncio.create_task(self._stall(pts, out), name=name)

    async def _stall(self, pts: int, out: Outputs) -> None:
        clock = self.ctx.clock
        while self._utterance is not None:
            # while it still speaks nobody waits: later, longer clauses sound better
            due = max(self._delta_at + self.options.stall, self._next_pts - _LEAD)
            ahead = self._ahead
            if self._delta_epoch != self.ctx.epoch or (ahead is not None and ahead.over):
                return  # its flush is on its way, or whoever writes next learns what failed
            if clock.now() < due or (ahead is not None and ahead.busy):
                await clock.sleep(max(due - clock.now(), _LOOK))
                continue
            if words := self._cutter.whole_words():
                await self._say([(self._utterance, words)], pts, out, drain=False)
            return

    # ---------------------------------------------------------------- out

    def _begin(self, clause: Clause) -> None:
        """The next audio is this clause's: no earlier than it was written, nor than now."""
        self._next_pts = max(self._next_pts, clause.pts, self.ctx.clock.now() if self.ctx.realtime else 0)

    async def _put(
        self, piece: Spoken, rate_hz: int, utterance: int, epoch: int, stop: Stop, out: Outputs
    ) -> None:
        for part in cut(piece, rate_hz * _CHUNK_MS // 1000):
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
