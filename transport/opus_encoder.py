"""Opus as we send it: what it is set to follows what it is given."""
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import sys
from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

from . import opus

AUDIO_HZ = 48_000  # of Opus in RTP (RFC 7587 section 4.1)
OPUS_BPS = {1: 28_000, 2: 64_000}
OPUS_COMPLEXITY = 5  # of 10: half the time of 10; on speech at 28 kb/s nobody hears it
OPUS_LOSS = 5  # %, that the in-band copies are made for
NARROW = 64  # of 32,768: channels that differ by less than that (-54 dB) are one
STEREO_AFTER = 2  # frames that differ, then it is stereo
MONO_AFTER = 100  # alike frames, 2 s
SILENT = 4  # of 32,768 (-78 dB): nothing that anybody hears
SILENT_AFTER = 10  # frames, then silence is not sent (FFmpeg does not pass libopus' own DTX on) ...
SILENT_EVERY = 20  # ... but each 400 ms, as libopus does, so that nobody takes us for gone


class OpusEncoder:
    """20 ms frames at 48 kHz, mono unless the channels differ, with in-band FEC, and nothing in silence. 0.1 ms a
    frame."""

    def __init__(self) -> None:
        self.channels = 1
        self._streak = 0  # frames that speak for the other number of channels
        self._silent = 0  # frames in a row
        self._coders: dict[int, opus.LibopusEncoder | _FFmpegOpus] = {}

    def encode(self, pcm: NDArray[np.int16]) -> bytes:
        """pcm: int16 (960, 1 or 2). Returns b"" for silence that need not be sent (RFC 7587 section 3.1.3).

        Raises: ValueError.
        """
        if len(pcm) != AUDIO_HZ // 50 or pcm.ndim != 2 or pcm.shape[1] not in (1, 2):
            raise ValueError(f"a sound frame of shape {pcm.shape}; (960, 1) and (960, 2) are taken")
        is_silent = pcm.max() <= SILENT and pcm.min() >= -SILENT
        self._silent = self._silent + 1 if is_silent else 0
        if self._silent > SILENT_AFTER and self._silent % SILENT_EVERY:
            return b""
        self._choose(pcm)
        if pcm.shape[1] == self.channels:
            shaped = pcm
        elif self.channels == 1:
            shaped = pcm.mean(axis=1, keepdims=True).astype(np.int16)
        else:
            shaped = np.repeat(pcm, 2, axis=1)
        return self._coder().encode(shaped)

    def _choose(self, pcm: NDArray[np.int16]) -> None:
        wide = pcm.shape[1] == 2 and int(np.abs(pcm[:, 0].astype(np.int32) - pcm[:, 1]).max()) > NARROW
        self._streak = self._streak + 1 if wide == (self.channels == 1) else 0
        if self._streak >= (STEREO_AFTER if wide else MONO_AFTER):
            self.channels = 2 if wide else 1
            self._streak = 0

    def _coder(self) -> opus.LibopusEncoder | _FFmpegOpus:
        coder = self._coders.get(self.channels)
        if coder is None:
            # elsewhere than on Linux the settings, a variadic call, may be passed in another way
            direct = sys.platform.startswith("linux") and opus.library() is not None
            make = opus.LibopusEncoder if direct else _FFmpegOpus
            coder = self._coders[self.channels] = make(
                self.channels, OPUS_BPS[self.channels], OPUS_COMPLEXITY, OPUS_LOSS, self.channels == 1
            )
        return coder


class _FFmpegOpus:
    """As `LibopusEncoder`, where that cannot be reached by itself."""

    def __init__(self, channels: int, bitrate_bps: int, complexity: int, loss_pct: int, voice: bool) -> None:
        self._layout = "mono" if channels == 1 else "stereo"
        self._pts = 0
        context = av.CodecContext.create("libopus", "w")
        assert isinstance(context, av.AudioCodecContext)
        context.format = "s16"
        context.layout = self._layout
        context.sample_rate = AUDIO_HZ
        context.time_base = Fraction(1, AUDIO_HZ)
        context.bit_rate = bitrate_bps
        context.options = {
            "application": "voip" if voice else "audio",
            "fec": "1",
            "packet_loss": str(loss_pct),
            "frame_duration": "20",
            "compression_level": str(complexity),
        }
        self._context = context

    def encode(self, pcm: NDArray[np.int16]) -> bytes:
        packed = np.ascontiguousarray(pcm).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(packed, format="s16", layout=self._layout)
        frame.sample_rate = AUDIO_HZ
        frame.pts = self._pts
        self._pts += len(pcm)
        return b"".join(map(bytes, self._context.encode(frame)))
