"""Decoders of one audio track that also know what to do for a lost frame, so that a loss is no hole and no click."""

from __future__ import annotations

from fractions import Fraction
from typing import Any, Protocol

import av
import numpy as np
from aiortc.codecs import get_decoder
from aiortc.jitterbuffer import JitterFrame
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from av.error import InvalidDataError
from numpy.typing import NDArray

from . import opus
from .jitter_buffer import EncodedFrame

HALVES = 0.5  # gain at the end of each made-up frame over that at its start: silent after about six
SMOOTH_HZ = 400  # of the ramp that leads from what was made up into what came: 2.5 ms


class AudioDecoder(Protocol):
    """Takes frames in order. Raises: av's FFmpegError on garbage."""

    def decode(self, encoded: EncodedFrame) -> list[av.AudioFrame]: ...


def audio_decoder(codec: RTCRtpCodecParameters) -> AudioDecoder:
    """The best for this codec: Opus by libopus, else aiortc's with repeated, fading frames."""
    if codec.mimeType.lower() == "audio/opus" and opus.library() is not None:
        return ConcealingOpus()
    return Repeating(get_decoder(codec), codec.clockRate)


class ConcealingOpus:
    """Opus with its own concealment and in-band FEC; s16 stereo at 48 kHz."""

    def __init__(self) -> None:
        self._opus = opus.OpusDecoder()
        self._begun = False

    def decode(self, encoded: EncodedFrame) -> list[av.AudioFrame]:
        if encoded.lost and not self._begun:
            return []  # there is no past to continue
        try:
            pcm = self._opus.conceal(encoded.data) if encoded.lost else self._opus.decode(encoded.data)
        except opus.OpusError as e:
            raise InvalidDataError(-1, str(e)) from e
        self._begun = True
        return [_frame(pcm, encoded.timestamp, opus.RATE_HZ, opus.RATE_HZ)]


class Repeating:
    """For codecs without concealment (G.711, G.722): the last frame again, ever softer, then a short ramp back."""

    def __init__(self, decoder: Any, rate_hz: int) -> None:
        self._decoder = decoder
        self._rate_hz = rate_hz  # of the timestamps
        self._last: NDArray[np.int16] | None = None  # (T, C)
        self._audio_rate_hz = rate_hz
        self._gain = 1.0

    def decode(self, encoded: EncodedFrame) -> list[av.AudioFrame]:
        if encoded.lost:
            return [] if self._last is None else [self._made_up(encoded.timestamp, self._last)]
        out: list[av.AudioFrame] = []
        for frame in self._decoder.decode(JitterFrame(encoded.data, encoded.timestamp)):
            pcm = frame.to_ndarray().reshape(-1, frame.layout.nb_channels)
            self._audio_rate_hz = frame.sample_rate
            if self._gain < 1:
                ramp = np.ones((len(pcm), 1), np.float32)
                rise = min(len(pcm), frame.sample_rate // SMOOTH_HZ)
                ramp[:rise, 0] = np.linspace(self._gain, 1, rise, dtype=np.float32)
                pcm = (pcm * ramp).astype(np.int16)
                self._gain = 1.0
            self._last = pcm
            out.append(_frame(pcm, encoded.timestamp, frame.sample_rate, self._rate_hz))
        return out

    def _made_up(self, timestamp: int, last: NDArray[np.int16]) -> av.AudioFrame:
        ramp = np.linspace(self._gain, self._gain * HALVES, len(last), dtype=np.float32)[:, None]
        self._gain *= HALVES
        return _frame((last * ramp).astype(np.int16), timestamp, self._audio_rate_hz, self._rate_hz)


def _frame(pcm: NDArray[np.int16], timestamp: int, rate_hz: int, clock_hz: int) -> av.AudioFrame:
    """pcm (T, C) → a frame with its RTP timestamp."""
    channels = pcm.shape[1]
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(pcm).reshape(1, -1), format="s16", layout="mono" if channels == 1 else "stereo"
    )
    frame.sample_rate = rate_hz
    frame.pts = timestamp
    frame.time_base = Fraction(1, clock_hz)
    return frame
