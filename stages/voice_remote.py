"""A voice behind an OpenAI-compatible speech endpoint, with an embedded one for when it fails."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, JsonValue

from ..models.voice import Evenly, Spoken, paced
from ..pipeline.clock import SECOND
from ..pipeline.stage import Context
from ..pipeline.units import Duration
from .endpoint import EndpointOptions, is_local, key_of
from .endpoint_guard import EndpointGuard
from .endpoint_http import EndpointFailed
from .speech_client import SpeechClient, SpeechLimits
from .speech_sound import Format, Pcm

if TYPE_CHECKING:
    from .voice_engine import Engine, Put, Stop

log = logging.getLogger(__name__)

_PIECE_MS = (20, 60)  # shortest and longest that is put on
_TAIL_MS = 10  # held back to the end, so that there is sound for the last words to go with
_PACE = 14.0  # characters a second, of an English reader; then as this voice was heard to be


class SpeechEndpoint(EndpointOptions):
    """An OpenAI-compatible speech endpoint."""

    base_url: str = Field(description="As http://localhost:8880/v1; /audio/speech is appended")
    model: str = Field(default="tts-1", min_length=1, description="As the endpoint names it")
    voice: str = Field(default="alloy", min_length=1, description="As the endpoint names it")
    format: Format = Field(default="pcm", description="What is asked for; pcm is 16 bit, mono, and soonest")
    rate_hz: int = Field(default=24_000, ge=8_000, le=48_000, description="Of pcm, which does not say it")
    extra: dict[str, JsonValue] = Field(
        default_factory=dict, max_length=16, description="Further fields of the request, as instructions"
    )
    fallback: bool = Field(default=True, description="While it fails, an embedded voice speaks")
    connect: Duration = Field(default=2 * SECOND, gt=0, description="Time to connect in")
    first_byte: Duration = Field(default=3 * SECOND, gt=0, description="From the request to the first sound")
    between_bytes: Duration = Field(
        default=2 * SECOND, gt=0, description="From one piece of sound to the next"
    )
    response_bytes: int = Field(
        default=8_388_608, ge=1_024, le=67_108_864, description="Longest response read"
    )
    failures: int = Field(default=1, ge=1, le=100, description="In a row, then it is left alone for a while")


class RemoteEngine:
    """One session's side of an endpoint; an `Engine`. A failure is told once (event `tts_failed`) until it is over.

    Endpoints tell no times of words: they are placed evenly along the clause, at the pace at which this voice
    spoke the clauses before. So an interrupted reply's last word may be off by one or two.
    """

    ahead = 200  # pieces of up to 60 ms: a clause, and the beginning of the next; 0.6 MB

    def __init__(self, options: SpeechEndpoint, ctx: Context, embedded: Engine | None) -> None:
        self._options, self._ctx, self._embedded = options, ctx, embedded
        o = options
        self._guard = EndpointGuard(
            ctx.clock, o.base_url, o.model, o.key, failures=o.failures, cooldown=o.cooldown
        )
        self._client: SpeechClient | None = None
        self._told = False  # of this outage
        self._pace = _PACE

    async def start(self) -> None:
        """Raises: StageError."""
        o, ctx = self._options, self._ctx
        key = await key_of(ctx, o.key)
        if not is_local(o.base_url) and o.base_url.startswith("http:"):
            log.warning("%s: what is spoken (and a key) travels unencrypted; use https", ctx.node)
        limits = SpeechLimits(o.connect, o.first_byte, o.between_bytes, o.response_bytes)
        self._client = SpeechClient(o.base_url, key, limits)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def speak(self, text: str, rate: float, stop: Stop, put: Put) -> None:
        if not any(c.isalnum() for c in text):
            return
        pieces = _Pieces(text, self._pace * rate, put)
        if await self._ask(text, rate, pieces):
            self._pace = paced(self._pace, len(text.strip()) / pieces.seconds / rate)
        elif self._embedded is not None and not stop.is_set():
            await self._embedded.speak(text[pieces.said :], rate, stop, put)

    async def _ask(self, text: str, rate: float, pieces: _Pieces) -> bool:
        """Was the clause spoken to its end?"""
        assert self._client is not None
        o, ctx, guard = self._options, self._ctx, self._guard
        if (attempt := guard.allow()) is None:
            self._tell("it is left alone for a while")
            return False
        request: dict[str, Any] = {**o.extra, "model": o.model, "voice": o.voice}
        # JSON could spell half a character (a lone surrogate), which servers reject
        request["input"] = text.strip().encode(errors="replace").decode()
        if rate != 1.0:
            request["speed"] = rate
        try:
            with attempt:
                await self._client.stream(request, o.format, o.rate_hz, pieces.push)
        except EndpointFailed as e:
            self._tell(str(e))
            await pieces.cut()
            return False
        if self._told:
            log.info("%s/%s: the speech endpoint is back", ctx.session, ctx.node)
            self._told = False
        await pieces.finish()
        return True

    def _tell(self, what: str) -> None:
        """Once an outage."""
        if self._told:
            return
        self._told, ctx = True, self._ctx
        instead = "an embedded voice speaks" if self._embedded is not None else "nothing is spoken"
        state = self._guard.state
        log.warning("%s/%s: speech endpoint: %s; circuit %s, %s", ctx.session, ctx.node, what, state, instead)
        ctx.emit("tts_failed", error=what, circuit=state, instead=instead)


class _Pieces:
    """Cuts a clause's sound as it comes, and its text along it."""

    def __init__(self, text: str, pace: float, put: Put) -> None:
        self._text, self._pace, self._put = text, pace, put
        self._marked: Evenly | None = None
        self._held: Pcm = np.zeros(0, np.int16)
        self._rate_hz = 0
        self._put_samples = 0
        self.said = 0  # characters that have gone out

    @property
    def seconds(self) -> float:
        """Of sound so far; above 0 once there was any."""
        return (self._put_samples + len(self._held)) / max(self._rate_hz, 1)

    async def push(self, pcm: Pcm, rate_hz: int) -> None:
        if self._marked is None:
            self._rate_hz = rate_hz
            self._marked = Evenly(self._text, self._pace, rate_hz)
        self._held = np.concatenate([self._held, pcm])
        shortest, longest = (ms * rate_hz // 1000 for ms in _PIECE_MS)
        at, end = 0, len(self._held) - _TAIL_MS * rate_hz // 1000
        while end - at >= shortest:
            piece = self._held[at : min(at + longest, end)]
            at += len(piece)
            await self._out(piece, self._marked.upto(self._put_samples + len(piece)))
        self._held = self._held[at:]

    async def finish(self) -> None:
        """What is left, with the words that are left: the sound was longer than thought, or shorter."""
        if self._marked is not None:
            await self._out(self._held, self._marked.rest())
            self._held = self._held[:0]

    async def cut(self) -> None:
        """The sound ends here, softly; the words that are left were not said."""
        if len(self._held):
            fade = np.linspace(1, 0, len(self._held), dtype=np.float32)
            await self._out((self._held * fade).astype(np.int16), "")
            self._held = self._held[:0]

    async def _out(self, pcm: Pcm, text: str) -> None:
        self._put_samples += len(pcm)
        self.said += len(text)
        await self._put(Spoken(pcm, text), self._rate_hz)
