"""Sound on its way out.

Generated sound is paced on our clock, 20 ms at a time, with silence in between; live sound leaves as it comes, and delay
that a stall has left in it is taken out again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import cast

import av
import numpy as np
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from numpy.typing import NDArray

from ..pipeline.clock import MS, SECOND, Clock
from ..pipeline.frame import AudioFrame
from .playout import LONGEST_CUT, StandingDelay, cut_at_pitch
from .speech_gap import CutWord, SpeechGap

AUDIO_RATE = 48_000  # Hz, of Opus in RTP (RFC 7587 section 4.1)
AUDIO_FRAME = 20 * MS
SAMPLES = AUDIO_RATE * 20 // 1000
FADE = AUDIO_RATE * 5 // 1000  # samples: a cut without a ramp clicks
GRACE = 20 * MS  # that a live frame may come late before silence takes its place
LIVE_MOST = 200 * MS  # of live sound that waits; older is dropped
BEHIND = 100 * MS  # a loop that stood still longer does not catch up: it would burst


@dataclass(slots=True)
class _Chunk:
    """Sound that waits: pcm (T, 1 or 2) at 48 kHz, and the words of a reply that have been said at its end."""

    epoch: int
    pcm: NDArray[np.int16]
    utterance: int = 0
    text: str = ""
    pts: int = 0  # of its first sample


class AudioOut(MediaStreamTrack):
    """Plays what is written at real-time pace.

    Generated sound: holds at most `ahead` ns beyond one written frame, loses nothing and keeps its order. Where it
    comes too late its last period goes on for a moment; `hold` silences it and lets it go on later.
    `live` sound: leaves as soon as 20 ms of it are there; a writer never waits, the oldest is dropped instead.
    """

    kind = "audio"

    def __init__(self, clock: Clock, ahead: int = 60 * MS, live: bool = False) -> None:
        super().__init__()
        self.clock = clock
        self.ahead = ahead
        self.live = live
        self._chunks: deque[_Chunk] = deque()
        self._buffered = 0  # samples
        self._taken = asyncio.Event()
        self._written = asyncio.Event()
        self._floor = 0  # frames of an older epoch are void
        self._started: int | None = None
        self._frames = 0  # 20 ms steps since the start
        self._resampler: av.AudioResampler | None = None
        self._format = (0, 0)
        self._standing = StandingDelay()
        self._gap = SpeechGap()
        self._word = CutWord()
        self._said: list[tuple[int, str]] = []  # words that ended since the last step
        self._carry = (0, "")  # words of frames that the resampler has not given out yet
        self._hold_until = 0  # ns; 0 when not held
        self._cut = False  # held: what sounded has been faded out
        self.on_step: Callable[[int, int, NDArray[np.int16] | None, int, list[tuple[int, str]]], None] | None
        self.on_step = None  # see Playback.step
        self.tap: Callable[[NDArray[np.int16], int | None], None] | None = (
            None  # given each step and `captured`
        )
        self.captured: int | None = None  # when the first sample of the last step was, where sound is live
        self.shortened = 0  # samples of live sound taken out to catch up
        self.underruns = 0  # times that speech ran dry inside a frame
        self.played = 0  # samples of written audio sent

    @property
    def buffered(self) -> int:
        """ns of audio that wait to be sent."""
        return self._buffered * SECOND // AUDIO_RATE

    async def write(self, frame: AudioFrame) -> None:
        """Take one frame, then wait until not more than `ahead` is buffered, or the frame was flushed."""
        if frame.epoch < self._floor or self.readyState != "live":
            return
        pcm = self._to_output(frame)
        self._gap.muted = False
        utterance, text = self._carry
        if frame.text:
            utterance, text = frame.utterance, (text if utterance == frame.utterance else "") + frame.text
        if len(pcm):
            self._chunks.append(_Chunk(frame.epoch, pcm, utterance, text, frame.pts))
            self._buffered += len(pcm)
            self._written.set()
            utterance, text = 0, ""
        self._carry = (utterance, text)
        if self.live:
            while self.buffered > LIVE_MOST:
                self._shorten_by(len(self._chunks.popleft().pcm))
            return
        while self.buffered > self.ahead and frame.epoch >= self._floor and self.readyState == "live":
            self._taken.clear()
            await self._taken.wait()

    def flush(self, epoch: int) -> None:
        """Forget all that is older than `epoch`; what sounds now fades out within 5 ms."""
        self._floor = max(self._floor, epoch)
        kept = deque(c for c in self._chunks if c.epoch >= epoch)
        void = [c.pcm for c in self._chunks if c.epoch < epoch]
        if void:
            tail = _joined(void)[: 0 if self._cut else FADE]
            ramp = np.linspace(1.0, 0.0, len(tail), dtype=np.float32)[:, None]
            if len(tail):
                kept.appendleft(_Chunk(epoch, (tail * ramp).astype(np.int16)))
        self._chunks = kept
        self._buffered = sum(len(c.pcm) for c in kept)
        self._word.ended()
        self._carry = (0, "")
        self._gap.muted = True
        self._hold_until = 0  # what was held is void
        self._resampler = None  # it still holds a little of the old sound
        self._taken.set()

    def hold(self, until: int) -> None:
        """Silence generated sound until `until` (ns), then go on with the word that was cut. A past time: go on now."""
        if not self.live:
            self._hold_until = until
            self._taken.set()

    def take_over(self, other: AudioOut) -> None:
        """Send what `other` has not sent; order, epochs and a hold are kept. `other` is empty afterwards."""
        self._floor = max(self._floor, other._floor)
        self._chunks, other._chunks = other._chunks + self._chunks, deque()
        self._buffered, other._buffered = other._buffered + self._buffered, 0
        self._said, other._said = other._said + self._said, []
        self._carry, self._resampler, self._format = other._carry, other._resampler, other._format
        self._hold_until, self._cut, self._word = other._hold_until, other._cut, other._word
        other._taken.set()
        self._written.set()

    async def pull(self) -> tuple[NDArray[np.int16], int]:
        """20 ms of PCM at 48 kHz, (960, 1 or 2), when they are due, and their time in samples.

        Raises: MediaStreamError at the end.
        """
        now = self.clock.now()
        if self._started is None:
            self._started = now
        due = self._started + self._frames * AUDIO_FRAME
        if now - due > BEHIND:
            self._frames += (now - due) // AUDIO_FRAME  # the far end hears a gap, not a burst
        elif self.live:
            await self._live_frame(due)
        elif now < due:
            await self.clock.sleep(due - now)
        if self.readyState != "live":
            raise MediaStreamError
        at = self._frames * SAMPLES
        self._frames += 1
        return self._take(), at

    async def recv(self) -> av.AudioFrame:
        """As `pull`, for aiortc. Raises: MediaStreamError at the end."""
        pcm, pts = await self.pull()
        layout = "mono" if pcm.shape[1] == 1 else "stereo"
        frame = av.AudioFrame.from_ndarray(pcm.reshape(1, -1), format="s16", layout=layout)
        frame.sample_rate = AUDIO_RATE
        frame.pts = pts
        frame.time_base = Fraction(1, AUDIO_RATE)
        return frame

    async def _live_frame(self, due: int) -> None:
        """Until 20 ms of sound are here, at most one frame early; silence goes out `GRACE` after it was due."""
        assert self._started is not None
        while self.readyState == "live":
            now = self.clock.now()
            enough = self._buffered >= SAMPLES
            prompt = SAMPLES <= self._buffered < 2 * SAMPLES  # no delay has built up
            until = due - AUDIO_FRAME if prompt else due if enough else due + GRACE
            if now >= until:
                if prompt:  # our steps follow the far end's clock, so that frames find them free
                    self._started += max(-AUDIO_FRAME, min(AUDIO_FRAME, now - due)) // 16
                return
            if enough:
                await self.clock.sleep(until - now)
                continue
            self._written.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout((until - now) / SECOND):
                    await self._written.wait()

    def stop(self) -> None:
        super().stop()
        self._taken.set()
        self._written.set()

    def _take(self) -> NDArray[np.int16]:
        """(SAMPLES, C): buffered sound, then silence."""
        if self.live:
            self._catch_up()
            self.captured = self._chunks[0].pts if self._chunks else None
            taken = self._pop(SAMPLES)
        else:
            taken = self._speech()
        filled = len(taken)
        if filled < SAMPLES and filled and not self._cut:
            self.underruns += 1
        if self.live:
            out = np.concatenate([taken, np.zeros((SAMPLES - filled, taken.shape[1]), np.int16)])
        else:
            out = self._gap.step(taken, SAMPLES)
        self.played += filled
        self._standing.left(self._buffered)
        self._taken.set()
        if self.tap is not None:
            self.tap(out, self.captured)
        if self.on_step is not None:
            said, self._said = self._said, []
            self.on_step(self.clock.now(), SAMPLES, out if out.any() else None, self.buffered, said)
        return out

    def _speech(self) -> NDArray[np.int16]:
        """Up to SAMPLES of generated sound, (T, C); the last of it faded out when a hold begins."""
        if self._hold_until > self.clock.now():
            if self._cut:
                return np.zeros((0, 1), np.int16)
            self._cut = True
            self._gap.stop()
            tail = self._pop(FADE)
            return (tail * np.linspace(1.0, 0.0, len(tail), dtype=np.float32)[:, None]).astype(np.int16)
        if self._cut:
            self._cut, self._hold_until = False, 0
            parts = self._word.take()
            for part in reversed(parts):
                self._chunks.appendleft(_Chunk(self._floor, part))
            self._buffered += sum(map(len, parts))
        return self._pop(SAMPLES)

    def _catch_up(self) -> None:
        """Take delay out of live sound that no jitter needs: silence at once, else a few ms where it repeats."""
        excess = self._standing.excess
        if not excess or self._buffered < SAMPLES + excess:
            return
        epoch, pts = self._chunks[0].epoch, self._chunks[0].pts
        stretch = self._pop(SAMPLES + excess)
        shorter = cut_at_pitch(stretch[: SAMPLES + min(excess, LONGEST_CUT)], excess)
        if np.abs(stretch).max(initial=0) > 0 and excess > LONGEST_CUT:
            shorter = np.concatenate([shorter, stretch[SAMPLES + LONGEST_CUT :]])
        elif excess > LONGEST_CUT:
            shorter = stretch[excess:]
        gone = len(stretch) - len(shorter)
        self._chunks.appendleft(_Chunk(epoch, shorter, pts=pts + gone * SECOND // AUDIO_RATE))
        self._buffered += len(shorter)
        self.shortened += gone
        self._standing.cut(gone)

    def _shorten_by(self, samples: int) -> None:
        self._buffered -= samples
        self.shortened += samples

    def _pop(self, most: int) -> NDArray[np.int16]:
        """Up to `most` samples off the front, (T, C)."""
        parts: list[NDArray[np.int16]] = []
        missing = most
        while missing and self._chunks:
            chunk = self._chunks[0]
            part = chunk.pcm[:missing]
            parts.append(part)
            missing -= len(part)
            if not self.live:
                self._word.played(part)
            if len(part) < len(chunk.pcm):
                chunk.pcm = chunk.pcm[len(part) :]
                chunk.pts += len(part) * SECOND // AUDIO_RATE
                break
            self._chunks.popleft()
            if chunk.text:
                self._said.append((chunk.utterance, chunk.text))
                self._word.ended()
        self._buffered -= most - missing
        return _joined(parts)

    def _to_output(self, frame: AudioFrame) -> NDArray[np.int16]:
        """(T, C) at any rate → (T', C) at 48 kHz, C at most 2."""
        channels = frame.pcm.shape[1]
        if frame.rate_hz == AUDIO_RATE:
            return frame.pcm
        if self._resampler is None or self._format != (frame.rate_hz, channels):
            layout = "mono" if channels == 1 else "stereo"
            self._resampler = av.AudioResampler(format="s16", layout=layout, rate=AUDIO_RATE)
            self._format = (frame.rate_hz, channels)
        packed = np.ascontiguousarray(frame.pcm).reshape(1, -1)
        source = av.AudioFrame.from_ndarray(
            packed, format="s16", layout="mono" if channels == 1 else "stereo"
        )
        source.sample_rate = frame.rate_hz
        resampled = self._resampler.resample(source)
        parts = [cast("NDArray[np.int16]", f.to_ndarray()).reshape(-1, channels) for f in resampled]
        return np.concatenate(parts) if parts else np.zeros((0, channels), np.int16)


def _joined(parts: list[NDArray[np.int16]]) -> NDArray[np.int16]:
    """[(T, 1 or 2)] → (T, C): stereo if one of them is."""
    channels = max((p.shape[1] for p in parts), default=1)
    wide = [p if p.shape[1] == channels else np.repeat(p, channels, axis=1) for p in parts]
    return np.concatenate(wide) if wide else np.zeros((0, channels), np.int16)
