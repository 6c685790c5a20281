"""libopus, the parts of its decoder that FFmpeg does not pass on: packet loss concealment and in-band FEC.

Source: RFC 6716 section 4.4 and libopus' opus.h.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bundled import candidates

RATE_HZ = 48_000
CHANNELS = 2
MAX_SAMPLES = RATE_HZ * 120 // 1000  # of one packet and channel


class OpusError(ValueError):
    """The packet is no Opus packet."""


@functools.cache
def library() -> Any | None:
    """The loaded libopus; None where there is none."""
    for path in candidates("opus"):
        try:
            lib = ctypes.CDLL(path)
        except OSError:
            continue
        lib.opus_decoder_get_size.argtypes = [ctypes.c_int]
        lib.opus_decoder_get_size.restype = ctypes.c_int
        lib.opus_decoder_init.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int]
        lib.opus_decoder_init.restype = ctypes.c_int
        lib.opus_decode.argtypes = [
            ctypes.c_void_p,
            ctypes.c_char_p,
            ctypes.c_int32,
            ctypes.c_void_p,
            ctypes.c_int,
            ctypes.c_int,
        ]
        lib.opus_decode.restype = ctypes.c_int
        return lib
    return None


class OpusDecoder:
    """State of one stream. All give int16 (T, 2) at 48 kHz. Raises: OSError where libopus is missing."""

    def __init__(self) -> None:
        lib = library()
        if lib is None:
            raise OSError("libopus was not found: install the package libopus0")
        self._decode = lib.opus_decode
        # memory of ours: it is freed with this object, on whatever thread
        self._state = ctypes.create_string_buffer(lib.opus_decoder_get_size(CHANNELS))
        if lib.opus_decoder_init(self._state, RATE_HZ, CHANNELS) != 0:
            raise OSError("libopus refused to make a decoder")
        self._out = np.empty((MAX_SAMPLES, CHANNELS), np.int16)
        self.samples = RATE_HZ // 50  # of the last packet

    def decode(self, packet: bytes) -> NDArray[np.int16]:
        """Raises: OpusError."""
        pcm = self._run(packet, MAX_SAMPLES, fec=False)
        self.samples = len(pcm)
        return pcm

    def conceal(self, follower: bytes = b"") -> NDArray[np.int16]:
        """One lost packet, as long as the last one: from the copy that `follower`, the packet after it,
        carries, if it does; else continued from the past, fading out. Raises: OpusError."""
        return self._run(follower, self.samples, fec=bool(follower))

    def _run(self, packet: bytes, samples: int, *, fec: bool) -> NDArray[np.int16]:
        out = self._out.ctypes.data_as(ctypes.c_void_p)
        count = self._decode(self._state, packet or None, len(packet), out, samples, int(fec))
        if count < 0:
            raise OpusError(f"libopus error {count} on a packet of {len(packet)} bytes")
        return self._out[:count].copy()
