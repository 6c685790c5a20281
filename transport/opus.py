"""libopus itself: what FFmpeg does not pass on of its decoder (packet loss concealment, in-band FEC), and its encoder without
the frames and packets around it, which cost a quarter of the whole.

Source: RFC 6716 section 4.4; libopus' opus.h and opus_defines.h.
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
MAX_PACKET = 1275 * 3 + 7  # bytes (RFC 6716 section 3.4)
VOIP, AUDIO = 2048, 2049  # OPUS_APPLICATION_…
_SET_BITRATE, _SET_COMPLEXITY, _SET_INBAND_FEC, _SET_PACKET_LOSS_PERC = 4002, 4010, 4012, 4014


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
        lib.opus_encoder_get_size.argtypes = [ctypes.c_int]
        lib.opus_encoder_get_size.restype = ctypes.c_int
        lib.opus_encoder_init.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int, ctypes.c_int]
        lib.opus_encoder_init.restype = ctypes.c_int
        lib.opus_encode.argtypes = [
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_int,
            ctypes.c_void_p,
            ctypes.c_int32,
        ]
        lib.opus_encode.restype = ctypes.c_int32
        lib.opus_encoder_ctl.restype = ctypes.c_int
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


class LibopusEncoder:
    """State of one stream of 48 kHz sound. Raises: OSError where libopus is missing, OpusError for settings that it refuses."""

    def __init__(self, channels: int, bitrate_bps: int, complexity: int, loss_pct: int, voice: bool) -> None:
        """complexity: 0 to 10. loss_pct: that its in-band copies are made for. voice: speech, else music."""
        lib = library()
        if lib is None:
            raise OSError("libopus was not found: install the package libopus0")
        self.channels = channels
        self._encode = lib.opus_encode
        self._state = ctypes.create_string_buffer(lib.opus_encoder_get_size(channels))
        error = lib.opus_encoder_init(self._state, RATE_HZ, channels, VOIP if voice else AUDIO)
        for request, value in (
            (_SET_BITRATE, bitrate_bps),
            (_SET_COMPLEXITY, complexity),
            (_SET_INBAND_FEC, 1),
            (_SET_PACKET_LOSS_PERC, loss_pct),
        ):
            error = error or lib.opus_encoder_ctl(self._state, ctypes.c_int(request), ctypes.c_int(value))
        if error:
            raise OpusError(f"libopus error {error} for an encoder of {channels} channels")
        self._out = ctypes.create_string_buffer(MAX_PACKET)

    def encode(self, pcm: NDArray[np.int16]) -> bytes:
        """pcm: int16 (T, channels), T of 2.5 to 60 ms. Raises: OpusError."""
        packed = np.ascontiguousarray(pcm)
        assert packed.dtype == np.int16
        assert packed.shape[1] == self.channels
        size = self._encode(self._state, packed.ctypes.data, len(packed), self._out, MAX_PACKET)
        if size < 0:
            raise OpusError(f"libopus error {size} on {len(packed)} samples")
        return self._out.raw[:size]
