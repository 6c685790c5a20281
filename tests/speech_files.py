"""Sound as speech endpoints send it."""

from __future__ import annotations

import io
import struct
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

RATE = 24_000


def tone(seconds: float, rate_hz: int = RATE) -> NDArray[np.int16]:
    return (8000 * np.sin(np.arange(round(seconds * rate_hz)) * 2 * np.pi * 440 / rate_hz)).astype(np.int16)


def wav(pcm: NDArray[np.int16], rate_hz: int, channels: int = 1, extra: bytes = b"") -> bytes:
    """As servers stream it: sizes unknown."""
    fmt = struct.pack("<HHIIHH", 1, channels, rate_hz, rate_hz * 2 * channels, 2 * channels, 16)
    head = b"WAVEfmt " + struct.pack("<I", 16) + fmt + extra + b"data\xff\xff\xff\xff"
    return b"RIFF\xff\xff\xff\xff" + head + pcm.tobytes()


def encoded(container: str, codec: str, pcm: NDArray[np.int16], rate_hz: int) -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream: Any = out.add_stream(codec, rate=rate_hz, layout="mono")
        frame = av.AudioFrame.from_ndarray(pcm[None, :], format="s16", layout="mono")
        frame.sample_rate = rate_hz
        for f in [*av.AudioResampler(format=stream.format, rate=rate_hz).resample(frame), None]:
            out.mux(stream.encode(f))
    return file.getvalue()


MP3 = encoded("mp3", "libmp3lame", tone(1.0), RATE)
OPUS = encoded("ogg", "libopus", tone(1.0, 48_000), 48_000)
