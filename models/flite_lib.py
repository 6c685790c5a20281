"""flite's C library through ctypes: what the voice and the training recipes share.

Source: https://github.com/festvox/flite 2.2 (BSD-style), include/cst_wave.h, cst_audio.h, cst_synth.h, cst_item.h.
"""

from __future__ import annotations

import ctypes as C
import threading
from functools import cache
from typing import Any

RATE_HZ = 16_000

LOCK = threading.Lock()
"""flite has one set of global tables for all voices: nothing in it may run twice at once."""


class FliteMissing(FileNotFoundError):
    """A library of flite cannot be loaded; the message says what to install."""


class Wave(C.Structure):
    """`cst_wave`."""

    _fields_ = (
        ("type", C.c_char_p),
        ("sample_rate", C.c_int),
        ("num_samples", C.c_int),
        ("num_channels", C.c_int),
        ("samples", C.POINTER(C.c_short)),
    )


class StreamingInfo(C.Structure):
    """`cst_audio_streaming_info`."""

    _fields_ = (
        ("min_buffsize", C.c_int),
        ("asc", C.c_void_p),
        ("utt", C.c_void_p),
        ("item", C.c_void_p),
        ("userdata", C.c_void_p),
    )


class VoiceHead(C.Structure):
    """The beginning of `cst_voice`."""

    _fields_ = (("name", C.c_char_p), ("features", C.c_void_p))


AudioCallback = C.CFUNCTYPE(C.c_int, C.POINTER(Wave), C.c_int, C.c_int, C.c_int, C.POINTER(StreamingInfo))


def load(name: str) -> C.CDLL:
    """Raises: FliteMissing."""
    try:
        return C.CDLL(name, mode=C.RTLD_GLOBAL)  # the voices look for symbols of the main library
    except OSError as e:
        raise FliteMissing(f"{name} is missing: install libflite1 (apt install libflite1)") from e


@cache
def library() -> C.CDLL:
    """flite with the signatures that are used here. Raises: FliteMissing."""
    lib = load("libflite.so.1")
    for name in ("libflite_cmulex.so.1", "libflite_usenglish.so.1"):
        load(name)
    pointer, text = C.c_void_p, C.c_char_p
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "flite_init": (C.c_int, []),
        "new_audio_streaming_info": (C.POINTER(StreamingInfo), []),
        "audio_streaming_info_val": (pointer, [C.POINTER(StreamingInfo)]),
        "feat_set": (None, [pointer, text, pointer]),
        "feat_set_float": (None, [pointer, text, C.c_float]),
        "flite_synth_text": (pointer, [text, pointer]),
        "utt_wave": (C.POINTER(Wave), [pointer]),
        "delete_utterance": (None, [pointer]),
        "utt_relation": (pointer, [pointer, text]),
        "relation_head": (pointer, [pointer]),
        "item_next": (pointer, [pointer]),
        "item_feat_string": (text, [pointer, text]),
        "ffeature_float": (C.c_float, [pointer, text]),
        "ffeature_string": (text, [pointer, text]),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
    lib.flite_init()
    return lib


@cache
def voice(name: str) -> int:
    """The C voice of that name (rms, slt, …). flite gives the same one to all who ask. Raises: FliteMissing."""
    library()
    register = getattr(load(f"libflite_cmu_us_{name}.so.1"), f"register_cmu_us_{name}")
    register.restype, register.argtypes = C.c_void_p, [C.c_char_p]
    return int(register(None))
