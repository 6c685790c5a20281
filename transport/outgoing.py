"""Media on its way out: what the encoder of one connection asks for next.

Video is always the newest picture; audio is paced on our clock, 20 ms at a time, with silence in between.
"""

from __future__ import annotations

import asyncio
from collections import deque
from fractions import Fraction

import av
import numpy as np
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from numpy.typing import NDArray

from ..pipeline.clock import MS, SECOND, Clock
from ..pipeline.frame import AudioFrame, VideoFrame

VIDEO_RATE = 90_000  # Hz, the RTP clock of all video payloads (RFC 3551 section 5)
AUDIO_RATE = 48_000  # Hz, of Opus in RTP (RFC 7587 section 4.1)
AUDIO_FRAME = 20 * MS
SAMPLES = AUDIO_RATE * 20 // 1000
FADE = AUDIO_RATE * 5 // 1000  # samples: a cut without a ramp clicks
BEHIND = 100 * MS  # a loop that stood still longer does not catch up: it would burst


class VideoOut(MediaStreamTrack):
    """Sends the newest picture; one that was not yet taken is replaced, never queued."""

    kind = "video"

    def __init__(self) -> None:
        super().__init__()
        self._frame: VideoFrame | None = None
        self._fresh = asyncio.Event()
        self._origin: int | None = None
        self._last = -1
        self.replaced = 0
        self.sent = 0

    def show(self, frame: VideoFrame) -> None:
        if self._frame is not None:
            self.replaced += 1
        self._frame = frame
        self._fresh.set()

    async def recv(self) -> av.VideoFrame:
        """The next picture, even-sized, at a timestamp after the last. Raises: MediaStreamError at the end."""
        while self._frame is None:
            if self.readyState != "live":
                raise MediaStreamError
            self._fresh.clear()
            await self._fresh.wait()
        frame, self._frame = self._frame, None
        if self._origin is None:
            self._origin = frame.pts
        picture = to_av(frame)
        self._last = max(self._last + 1, (frame.pts - self._origin) * VIDEO_RATE // SECOND)
        picture.pts = self._last
        picture.time_base = Fraction(1, VIDEO_RATE)
        self.sent += 1
        return picture

    def stop(self) -> None:
        super().stop()
        self._fresh.set()


def to_av(frame: VideoFrame) -> av.VideoFrame:
    """rgb24 (H, W, 3) or i420 (H·3/2, W) → yuv-encodable picture; an odd last row or column is cut off."""
    if frame.format == "i420":
        return av.VideoFrame.from_ndarray(frame.image, format="yuv420p")
    image = frame.image[: frame.height & ~1, : frame.width & ~1]
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")


class AudioOut(MediaStreamTrack):
    """Plays what is written at real-time pace. Holds at most `ahead` ns beyond one written frame."""

    kind = "audio"

    def __init__(self, clock: Clock, ahead: int = 60 * MS) -> None:
        super().__init__()
        self.clock = clock
        self.ahead = ahead
        self._chunks: deque[tuple[int, NDArray[np.int16]]] = deque()  # (epoch, mono at 48 kHz (T,))
        self._buffered = 0  # samples
        self._taken = asyncio.Event()
        self._floor = 0  # frames of an older epoch are void
        self._started: int | None = None
        self._frames = 0  # 20 ms steps since the start
        self._resampler: av.AudioResampler | None = None
        self._format = (0, 0)
        self.flushed = 0  # samples thrown away by flushes
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
        if len(pcm):
            self._chunks.append((frame.epoch, pcm))
            self._buffered += len(pcm)
        while self.buffered > self.ahead and frame.epoch >= self._floor and self.readyState == "live":
            self._taken.clear()
            await self._taken.wait()

    def flush(self, epoch: int) -> None:
        """Forget all that is older than `epoch`; what sounds now fades out within 5 ms."""
        self._floor = max(self._floor, epoch)
        kept = deque(c for c in self._chunks if c[0] >= epoch)
        void = [pcm for old, pcm in self._chunks if old < epoch]
        if void:
            tail = np.concatenate(void)[:FADE]
            ramp = np.linspace(1.0, 0.0, len(tail), dtype=np.float32)
            kept.appendleft((epoch, (tail * ramp).astype(np.int16)))
            self.flushed += sum(map(len, void)) - len(tail)
        self._chunks = kept
        self._buffered = sum(len(pcm) for _, pcm in kept)
        self._resampler = None  # it still holds a little of the old sound
        self._taken.set()

    async def recv(self) -> av.AudioFrame:
        """20 ms of mono PCM at 48 kHz, when they are due. Raises: MediaStreamError at the end."""
        now = self.clock.now()
        if self._started is None:
            self._started = now
        due = self._started + self._frames * AUDIO_FRAME
        if now < due:
            await self.clock.sleep(due - now)
        elif now - due > BEHIND:
            self._frames += (now - due) // AUDIO_FRAME  # the far end hears a gap, not a burst
        if self.readyState != "live":
            raise MediaStreamError
        frame = av.AudioFrame.from_ndarray(self._take()[None, :], format="s16", layout="mono")
        frame.sample_rate = AUDIO_RATE
        frame.pts = self._frames * SAMPLES
        frame.time_base = Fraction(1, AUDIO_RATE)
        self._frames += 1
        return frame

    def stop(self) -> None:
        super().stop()
        self._taken.set()

    def _take(self) -> NDArray[np.int16]:
        """(SAMPLES,): buffered sound, then silence."""
        out = np.zeros(SAMPLES, np.int16)
        filled = 0
        while filled < SAMPLES and self._chunks:
            epoch, pcm = self._chunks.popleft()
            n = min(len(pcm), SAMPLES - filled)
            out[filled : filled + n] = pcm[:n]
            filled += n
            if n < len(pcm):
                self._chunks.appendleft((epoch, pcm[n:]))
        if 0 < filled < SAMPLES:
            self.underruns += 1
        self._buffered -= filled
        self.played += filled
        self._taken.set()
        return out

    def _to_output(self, frame: AudioFrame) -> NDArray[np.int16]:
        """(T, C) at any rate → (T',) at 48 kHz."""
        channels = frame.pcm.shape[1]
        if frame.rate_hz == AUDIO_RATE and channels == 1:
            return frame.pcm[:, 0]
        if self._resampler is None or self._format != (frame.rate_hz, channels):
            self._resampler = av.AudioResampler(format="s16", layout="mono", rate=AUDIO_RATE)
            self._format = (frame.rate_hz, channels)
        layout = "mono" if channels == 1 else "stereo"
        packed = np.ascontiguousarray(frame.pcm).reshape(1, -1)
        source = av.AudioFrame.from_ndarray(packed, format="s16", layout=layout)
        source.sample_rate = frame.rate_hz
        parts = [f.to_ndarray()[0] for f in self._resampler.resample(source)]
        return np.concatenate(parts) if parts else np.zeros(0, np.int16)
