"""libvpx, what FFmpeg does not pass on of its VP8 encoder: a bit rate that changes from picture to picture.

Source: libvpx' vpx_encoder.h, vp8cx.h and vpx_image.h. Its structures are laid out alike since version 1.4 on 64-bit
machines; `library` looks whether they still are, by the defaults that it finds in them, and gives none when they are not.
"""

from __future__ import annotations

import ctypes
import functools
import struct
import sys
from typing import Any

import av

from .bundled import candidates

HZ = 90_000  # of timestamps
_CONFIG_BYTES, _CONTEXT_BYTES, _IMAGE_BYTES = 4096, 1024, 1024  # several times what they are
# of 32-bit words in vpx_codec_enc_cfg
_THREADS, _WIDTH, _HEIGHT, _TIME_NUM, _TIME_DEN = 1, 3, 4, 7, 8
_LAG, _END_USAGE = 11, 18
_BITRATE, _MIN_Q, _MAX_Q, _UNDERSHOOT, _OVERSHOOT = 28, 29, 30, 31, 32
_BUFFER, _BUFFER_INITIAL, _BUFFER_OPTIMAL = 33, 34, 35
_KEY_MAX = 42
_DEFAULTS = {_BITRATE: 256, _MIN_Q: 4, _MAX_Q: 63, _BUFFER: 6000, _BUFFER_INITIAL: 4000, _KEY_MAX: 128}
_PLANES, _STRIDES = 48, 80  # bytes into vpx_image
_CBR = 1
_I420 = 0x102
_ABI_MISMATCH = 3
_ABIS = range(20, 80)  # each version of the interface has another number
_FORCE_KEY = 1
_REALTIME = 1
_CPU_USED, _STATIC_THRESHOLD, _MAX_INTRA_PCT = 13, 17, 26  # vp8e_enc_control_id

SPEED = -10  # against -8 a picture takes a fifth less time, and is .4 dB worse at 400 kb/s, as good at 1.2 Mb/s (640x480)
NO_KEYFRAMES = 3000  # pictures between keyframes that nobody asked for
BUFFER_MS = 600
INTRA_PCT = 300  # a keyframe has at most so much of a picture's mean
FINE_Q, COARSE_Q = 44, 63  # the coarsest quantiser of a keyframe, until it has shown to be too large


class VpxError(RuntimeError):
    """libvpx refused."""


@functools.cache
def library() -> tuple[Any, int] | None:
    """The loaded libvpx and the number of its interface; None where there is none that we know."""
    if sys.maxsize < 1 << 32:
        return None
    for path in candidates("vpx"):
        try:
            lib = ctypes.CDLL(path)
            lib.vpx_codec_vp8_cx.restype = ctypes.c_void_p
        except (OSError, AttributeError):
            continue
        pointer, number, long = ctypes.c_void_p, ctypes.c_int, ctypes.c_long
        lib.vpx_codec_enc_config_default.argtypes = [pointer, pointer, ctypes.c_uint]
        lib.vpx_codec_enc_init_ver.argtypes = [pointer, pointer, pointer, long, number]
        lib.vpx_codec_enc_config_set.argtypes = [pointer, pointer]
        lib.vpx_codec_control_.argtypes = [pointer, number, number]
        lib.vpx_codec_encode.argtypes = [
            pointer,
            pointer,
            ctypes.c_int64,
            ctypes.c_ulong,
            long,
            ctypes.c_ulong,
        ]
        lib.vpx_codec_get_cx_data.argtypes = [pointer, pointer]
        lib.vpx_codec_get_cx_data.restype = pointer
        lib.vpx_codec_destroy.argtypes = [pointer]
        lib.vpx_img_wrap.argtypes = [pointer, number, ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, pointer]
        lib.vpx_img_wrap.restype = pointer
        config = _default(lib)
        words = (ctypes.c_uint32 * (_CONFIG_BYTES // 4)).from_buffer(config)
        if any(words[at] != value for at, value in _DEFAULTS.items()):
            continue
        for abi in _ABIS:
            context = ctypes.create_string_buffer(_CONTEXT_BYTES)
            result = lib.vpx_codec_enc_init_ver(context, lib.vpx_codec_vp8_cx(), config, 0, abi)
            if result == 0:
                lib.vpx_codec_destroy(context)
                if _image_is_known(lib):
                    return lib, abi
            if result != _ABI_MISMATCH:
                break
    return None


def _default(lib: Any) -> Any:
    config = ctypes.create_string_buffer(_CONFIG_BYTES)
    lib.vpx_codec_enc_config_default(lib.vpx_codec_vp8_cx(), config, 0)
    return config


def _image_is_known(lib: Any) -> bool:
    image, data = ctypes.create_string_buffer(_IMAGE_BYTES), ctypes.create_string_buffer(64 * 48 * 3 // 2)
    base = ctypes.addressof(data)
    lib.vpx_img_wrap(image, _I420, 64, 48, 1, base)
    planes = struct.unpack_from("@3Q", image, _PLANES)
    return planes == (base, base + 3072, base + 3840) and struct.unpack_from("@3i", image, _STRIDES) == (
        64,
        32,
        32,
    )


class Vp8:
    """One stream of one size. Not for several threads at once. Raises: OSError where libvpx is missing."""

    def __init__(
        self, width: int, height: int, bitrate_bps: int, max_q: int = COARSE_Q, cpu_used: int = SPEED
    ) -> None:
        """max_q: the coarsest quantiser of the first picture, 0 to 63; later ones may have all."""
        found = library()
        if found is None:
            raise OSError("libvpx was not found: install the package libvpx7 or newer")
        self._lib, abi = found
        self.width, self.height = width, height
        self.bitrate_bps = bitrate_bps
        self._last = -1  # pts
        self._is_second = False  # is the next picture the second?
        self._duration = HZ // 30
        self._config = _default(self._lib)
        self._words = (ctypes.c_uint32 * (_CONFIG_BYTES // 4)).from_buffer(self._config)
        self._image = ctypes.create_string_buffer(_IMAGE_BYTES)
        self._lib.vpx_img_wrap(self._image, _I420, width, height, 1, ctypes.addressof(self._image))
        for at, value in (
            (_THREADS, 1),  # threads of one picture wait for each other on a busy machine
            (_WIDTH, width),
            (_HEIGHT, height),
            (_TIME_NUM, 1),
            (_TIME_DEN, HZ),
            (_LAG, 0),
            (_END_USAGE, _CBR),
            (_UNDERSHOOT, 100),
            (_OVERSHOOT, 15),
            (_BUFFER, BUFFER_MS),
            (_BUFFER_INITIAL, BUFFER_MS // 2),
            (_BUFFER_OPTIMAL, BUFFER_MS * 6 // 10),
            (_KEY_MAX, NO_KEYFRAMES),
        ):
            self._words[at] = value
        self._words[_BITRATE] = max(1, bitrate_bps // 1000)
        self._words[_MAX_Q] = max_q
        context = ctypes.create_string_buffer(_CONTEXT_BYTES)
        if error := self._lib.vpx_codec_enc_init_ver(
            context, self._lib.vpx_codec_vp8_cx(), self._config, 0, abi
        ):
            raise VpxError(f"libvpx error {error} at {width}x{height}")
        self._context = context
        for control, value in ((_CPU_USED, cpu_used), (_STATIC_THRESHOLD, 1), (_MAX_INTRA_PCT, INTRA_PCT)):
            self._lib.vpx_codec_control_(context, control, value)

    def encode(self, picture: av.VideoFrame, keyframe: bool, bitrate_bps: int) -> tuple[bytes, bool]:
        """A yuv420p picture of the encoder's size, its pts in 1/90,000 s → its bytes and is it a keyframe; b"" when it was left
        out. Raises: VpxError."""
        assert (picture.width, picture.height) == (self.width, self.height)
        assert picture.pts is not None
        first = self._last < 0
        if abs(bitrate_bps - self.bitrate_bps) > 0.03 * self.bitrate_bps or self._is_second:
            self.bitrate_bps = bitrate_bps
            self._words[_BITRATE] = max(1, bitrate_bps // 1000)
            self._words[_MAX_Q] = COARSE_Q
            self._lib.vpx_codec_enc_config_set(self._context, self._config)
        self._is_second = first
        if not first:
            self._duration = max(1, min(HZ, picture.pts - self._last))
        self._last = max(picture.pts, self._last + 1)
        planes = picture.planes
        struct.pack_into("@3Q", self._image, _PLANES, *(p.buffer_ptr for p in planes))
        struct.pack_into("@3i", self._image, _STRIDES, *(p.line_size for p in planes))
        flags = _FORCE_KEY if keyframe else 0
        error = self._lib.vpx_codec_encode(
            self._context, self._image, self._last, self._duration, flags, _REALTIME
        )
        if error:
            raise VpxError(f"libvpx error {error} while encoding")
        position = ctypes.c_void_p()
        data, is_key = b"", False
        while packet := self._lib.vpx_codec_get_cx_data(self._context, ctypes.byref(position)):
            # vpx_codec_cx_pkt: kind, then of a frame: buffer, size, pts, duration, flags
            kind, buffer, size, _, _, marks = struct.unpack("@iPNqLI", ctypes.string_at(packet, 44))
            if kind == 0:
                data += ctypes.string_at(buffer, size)
                is_key = is_key or bool(marks & 1)
        return data, is_key

    def __del__(self) -> None:
        if (context := getattr(self, "_context", None)) is not None:
            self._lib.vpx_codec_destroy(context)
