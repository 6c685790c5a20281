"""`asr.pocketsphinx`: speech to text without a download."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ..models import pocketsphinx_asr
from ..models.pocketsphinx_asr import RATE_HZ, Recogniser
from ..models.profanity import mask
from ..pipeline.frame import AudioFrame, EventFrame, Frame, TokenFrame
from ..pipeline.stage import Control, In, Out, Outputs, Ports, SetParams, Stage, StageError
from .commands import COMMANDS, bare, exact, spoken_phrases
from .resample import MonoStream

Mode = Literal["commands", "open"]
T = TypeVar("T")

_KEEP = 3 * RATE_HZ  # samples of past audio: the VAD's word that somebody speaks comes after the first words
_LEAD = 3 * RATE_HZ // 10  # taken from before the onset: unvoiced beginnings are not yet speech to a VAD
_TAIL = RATE_HZ // 5  # and after the end
_BACKLOG_LIVE = 12 * RATE_HZ  # live: what is older than this when the recogniser cannot keep up is lost
_BACKLOG_FILE = RATE_HZ  # file runs wait instead
_LONGEST: dict[Mode, int] = {"commands": 8 * RATE_HZ, "open": 15 * RATE_HZ}  # a turn is cut there


class PocketSphinxAsr(Stage):
    """The embedded fallback recogniser: it works offline on any CPU and knows American English only.

    `commands` hears the demo's phrases and nothing else: what is none of them is not committed. `open`
    takes any words and gets a third to two thirds of them wrong (benchmarks/asr_embedded.py).

    A turn is what lies between the VAD's `speech_start` and `speech_end`; its partials replace each other,
    an empty one takes them back, a commit is final.
    """

    ports = Ports(
        inputs={"audio": In(AudioFrame), "speech": In(EventFrame)},
        outputs={"partial": Out(TokenFrame, origin="token"), "commit": Out(TokenFrame, origin="token")},
    )

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        mask_profanity: bool = Field(
            default=True, description="Mask swear words of the open mode, often misheard"
        )

    class Params(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        mode: Mode = Field(
            default="commands", description="commands: the demo's phrases; open: any English words"
        )

    async def setup(self) -> None:
        self._audio = MonoStream(RATE_HZ)
        self._kept = np.zeros(0, np.float32)
        self._first = 0  # index of the first sample in _kept
        self._marks: deque[tuple[str, int]] = deque()  # the VAD's events: name, pts
        self._turn: _Turn | None = None
        self._utterance = 0
        self._ended = False
        self._work: asyncio.Task[None] | None = None
        self._recognisers: dict[Mode, Recogniser] = {}
        await self._recogniser(self.params.mode)

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        if isinstance(frame, EventFrame):
            if frame.name in ("speech_start", "speech_end"):
                self._marks.append((frame.name, frame.pts))
        else:
            assert isinstance(frame, AudioFrame)
            self._keep(self._audio.push(frame))
        self._kick(out)
        if not self.ctx.realtime and (self._marks or self._behind() > _BACKLOG_FILE):
            await self._settle()

    async def finish(self, out: Outputs) -> None:
        await self._settle()
        self._ended = True
        self._kick(out)
        await self._settle()

    async def control(self, message: Control) -> None:
        await super().control(message)
        if isinstance(message, SetParams) and self.params.mode not in self._recognisers:
            await self._recogniser(self.params.mode)

    async def close(self) -> None:
        work = getattr(self, "_work", None)
        if work is not None and not work.done():
            work.cancel()
            await asyncio.wait([work])

    @property
    def busy(self) -> bool:
        return self._work is not None and not self._work.done()

    # ------------------------------------------------------------ audio kept until it is decoded

    def _keep(self, samples: NDArray[np.float32]) -> None:
        self._kept = np.concatenate([self._kept, samples])
        needed = self._audio.given - _KEEP
        if self._turn is not None:
            needed = min(needed, self._turn.fed)
            if self.ctx.realtime and self._audio.given - needed > _BACKLOG_LIVE:
                lost = self._audio.given - _BACKLOG_LIVE - self._turn.fed
                self.ctx.emit("behind", lost_ms=round(lost * 1000 / RATE_HZ))
                needed = self._turn.fed = self._turn.fed + lost
        drop = min(len(self._kept), max(0, needed - self._first))
        self._kept = self._kept[drop:]
        self._first += drop

    def _behind(self) -> int:
        """Samples that a turn still has to decode."""
        return self._audio.given - self._turn.fed if self._turn is not None else 0

    def _take(self, start: int, stop: int) -> NDArray[np.float32]:
        return self._kept[max(0, start - self._first) : max(0, stop - self._first)]

    # ------------------------------------------------------------ decoding, beside the stage's own task

    def _kick(self, out: Outputs) -> None:
        """See to it that somebody decodes what has come."""
        if self._work is not None:
            if not self._work.done():
                return  # it looks again before it ends
            self._work.result()  # a failure belongs to the stage
        if self._turn is not None or self._marks:
            self._work = asyncio.create_task(
                self._drain(out), name=f"{self.ctx.session}/{self.ctx.node}/decode"
            )

    async def _settle(self) -> None:
        if self._work is not None:
            await asyncio.shield(self._work)  # close() ends it, not whoever waits

    async def _drain(self, out: Outputs) -> None:
        """Begin, feed and end turns as far as the audio and the marks go."""
        while True:
            if self._turn is None:
                if not self._marks:
                    return
                name, pts = self._marks.popleft()
                if name == "speech_start":
                    await self._begin(pts)
                continue
            turn = self._turn
            stop = self._audio.given
            if self._marks:
                stop = min(stop, self._audio.index_of(self._marks[0][1]) + _TAIL)
            cut = turn.fed - turn.start >= turn.longest
            if stop - turn.fed >= pocketsphinx_asr.BLOCK and not cut:
                stop = min(stop, turn.fed + 5 * pocketsphinx_asr.BLOCK)
                samples, turn.fed = self._take(turn.fed, stop), stop
                self._show(turn, await self._call(turn.recogniser.advance, samples), out)
            elif cut or self._closed(turn):
                await self._end(turn, stop, cut, out)
            else:
                return

    def _closed(self, turn: _Turn) -> bool:
        """All audio of the turn is here."""
        if not self._marks:
            return self._ended
        end = self._audio.index_of(self._marks[0][1]) + _TAIL
        return self._ended or self._audio.given >= end

    async def _begin(self, pts: int) -> None:
        start = max(self._first, self._audio.index_of(pts) - _LEAD)
        mode: Mode = self.params.mode
        recogniser = await self._recogniser(mode)
        self._turn = _Turn(mode, recogniser, pts, start)
        await self._call(recogniser.begin)

    async def _end(self, turn: _Turn, stop: int, cut: bool, out: Outputs) -> None:
        if not cut and stop > turn.fed:
            samples, turn.fed = self._take(turn.fed, stop), stop
            await self._call(turn.recogniser.advance, samples)
        until = self._audio.pts_of(turn.fed)
        if self._marks and not cut:
            name, pts = self._marks[0]
            until = pts
            if name == "speech_end":
                self._marks.popleft()
        text = self._text(turn, await self._call(turn.recogniser.finish))
        if text:
            out.post("commit", self._token(turn, text, until, out))
        elif turn.shown:
            out.post("partial", self._token(turn, "", until, out))
        self._utterance += 1
        self._turn = None
        if cut:  # somebody speaks on: the next utterance begins where this one was cut
            self._turn = _Turn(turn.mode, turn.recogniser, until, turn.fed)
            await self._call(turn.recogniser.begin)

    def _show(self, turn: _Turn, raw: str, out: Outputs) -> None:
        """Put a partial where the guess has changed. A guess that no command begins with is not shown."""
        words = bare(raw.split())
        if turn.mode == "open":
            text = mask(raw) if self.options.mask_profanity else raw
        elif raw and any(c.startswith(" ".join(words)) for c in COMMANDS):
            text = raw
        else:
            return
        if text and text != turn.shown:
            turn.shown = text
            out.post("partial", self._token(turn, text, self._audio.pts_of(turn.fed), out))

    def _text(self, turn: _Turn, raw: str) -> str:
        """What may be committed of a final result."""
        if turn.mode == "commands":
            return raw if raw and exact(raw) is not None else ""
        return mask(raw) if self.options.mask_profanity else raw

    def _token(self, turn: _Turn, text: str, until: int, out: Outputs) -> TokenFrame:
        return TokenFrame(
            pts=turn.pts, until=max(until, turn.pts), text=text, utterance=self._utterance, epoch=out.epoch
        )

    async def _recogniser(self, mode: Mode) -> Recogniser:
        if mode not in self._recognisers:
            try:
                self._recognisers[mode] = await self._call(_load, mode)
            except FileNotFoundError as e:
                raise StageError(f"node {self.ctx.node!r}: {e}") from e
        return self._recognisers[mode]

    async def _call(self, fn: Callable[..., T], *args: object) -> T:
        return await self.ctx.pool().call(fn, *args)


class _Turn:
    """Speech from an onset to its end."""

    __slots__ = ("fed", "longest", "mode", "pts", "recogniser", "shown", "start")

    def __init__(self, mode: Mode, recogniser: Recogniser, pts: int, start: int) -> None:
        self.mode: Mode = mode
        self.longest = _LONGEST[mode]
        self.recogniser = recogniser
        self.pts = pts
        self.start = start  # sample index
        self.fed = start  # samples up to here are decoded
        self.shown = ""  # the last partial


def _load(mode: Mode) -> Recogniser:
    if mode == "open":
        return pocketsphinx_asr.open_recogniser()
    return pocketsphinx_asr.phrase_recogniser(spoken_phrases())
