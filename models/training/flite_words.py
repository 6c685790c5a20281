"""Speech with known word times, from the Flite voice library: material for training and closed-loop tests."""

from __future__ import annotations

import ctypes as C
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 16_000
VOICE = "slt"


class _Wave(C.Structure):
    """`cst_wave` of flite's cst_wave.h."""

    _fields_ = (
        ("type", C.c_char_p),
        ("sample_rate", C.c_int),
        ("num_samples", C.c_int),
        ("num_channels", C.c_int),
        ("samples", C.POINTER(C.c_short)),
    )


@dataclass(frozen=True, slots=True)
class Spoken:
    """An utterance and when each of its words ends."""

    pcm: NDArray[np.float32]  # (S,) at 16 kHz, −1…1
    words: tuple[str, ...]
    starts: tuple[float, ...]  # s
    ends: tuple[float, ...]  # s


@cache
def _library(voice: str) -> tuple[C.CDLL, int]:
    """Flite and a voice's address. Raises: FileNotFoundError, naming the package."""
    try:
        flite = C.CDLL("libflite.so.1", C.RTLD_GLOBAL)
        for name in ("libflite_cmulex.so.1", "libflite_usenglish.so.1"):
            C.CDLL(name, C.RTLD_GLOBAL)
        voices = C.CDLL(f"libflite_cmu_us_{voice}.so.1", C.RTLD_GLOBAL)
    except OSError as e:
        raise FileNotFoundError(f"the Flite voice {voice!r} is missing; install libflite1 ({e})") from e
    pointer, text = C.c_void_p, C.c_char_p
    flite.flite_init()
    for name, result, arguments in (
        ("flite_synth_text", pointer, [text, pointer]),
        ("utt_wave", C.POINTER(_Wave), [pointer]),
        ("utt_relation", pointer, [pointer, text]),
        ("relation_head", pointer, [pointer]),
        ("item_next", pointer, [pointer]),
        ("item_feat_string", text, [pointer, text]),
        ("flite_ffeature_float", C.c_float, [pointer, text]),
        ("delete_utterance", None, [pointer]),
    ):
        function = getattr(flite, name)
        function.restype, function.argtypes = result, arguments
    register = getattr(voices, f"register_cmu_us_{voice}")
    register.restype, register.argtypes = pointer, [text]
    return flite, register(None)


def available(voice: str = VOICE) -> bool:
    """Whether the voice can be loaded here."""
    try:
        _library(voice)
    except FileNotFoundError:
        return False
    return True


def speak(text: str, voice: str = VOICE) -> Spoken:
    """Synthesise a phrase. Raises: FileNotFoundError, ValueError for a voice of another rate."""
    flite, voice_at = _library(voice)
    utterance = flite.flite_synth_text(text.encode(), voice_at)
    try:
        wave = flite.utt_wave(utterance).contents
        if wave.sample_rate != RATE_HZ:
            raise ValueError(f"voice {voice!r} speaks at {wave.sample_rate} Hz; needed: {RATE_HZ}")
        pcm = np.ctypeslib.as_array(wave.samples, (wave.num_samples,)).astype(np.float32) / np.float32(32768)
        words: list[str] = []
        starts: list[float] = []
        ends: list[float] = []
        item = flite.relation_head(flite.utt_relation(utterance, b"Word"))
        while item:
            words.append(flite.item_feat_string(item, b"name").decode())
            first = b"R:SylStructure.daughter1.daughter1.R:Segment.p.end"
            starts.append(flite.flite_ffeature_float(item, first))
            ends.append(flite.flite_ffeature_float(item, b"R:SylStructure.daughtern.daughtern.R:Segment.end"))
            item = flite.item_next(item)
    finally:
        flite.delete_utterance(utterance)
    return Spoken(pcm, tuple(words), tuple(starts), tuple(ends))
