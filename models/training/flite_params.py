"""What flite's statistical voices compute before they make a sound: phones, their exact ends, and the vocoder's input.

Source: https://github.com/festvox/flite 2.2, src/cg/cst_cg.c and cst_mlpg.c (means and deviations of 25 mel-cepstral
coefficients and their deltas every 5 ms, five strengths of voicing); maximum-likelihood trajectories: K. Tokuda et
al., "Speech parameter generation algorithms for HMM-based speech synthesis", 2000.
"""

from __future__ import annotations

import ctypes as C
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solveh_banded

from .. import flite_lib
from ..flite_lib import LOCK
from ..flow_vocoder import BANDS, DIMS, LF0, MCEP, STRENGTH, VOICED

VOICE = "rms"
STEP_MS = 5  # of flite's tracks; every second one is kept


class _Track(C.Structure):
    """`cst_track`."""

    _fields_ = (
        ("type", C.c_char_p),
        ("num_frames", C.c_int),
        ("num_channels", C.c_int),
        ("times", C.POINTER(C.c_float)),
        ("frames", C.POINTER(C.POINTER(C.c_float))),
    )


@dataclass(frozen=True, slots=True)
class Phone:
    """One phone: its name in lower case ARPAbet or "pau", where it ends (s), and the word it is of ("" for none)."""

    name: str
    end: float
    word: int  # index of the word; −1 for a pause
    written: str


@dataclass(frozen=True, slots=True)
class Parameters:
    """An utterance: (T, DIMS) every 10 ms, and its phones."""

    frames: NDArray[np.float32]
    phones: tuple[Phone, ...]


def analyse(text: str) -> Parameters:
    """Raises: FileNotFoundError when flite is missing, ValueError when the voice gives no tracks."""
    lib, at = flite_lib.library(), flite_lib.voice(VOICE)
    lib.feat_val.restype, lib.feat_val.argtypes = C.c_void_p, [C.c_void_p, C.c_char_p]
    lib.val_track.restype, lib.val_track.argtypes = C.POINTER(_Track), [C.c_void_p]
    with LOCK:
        utterance = lib.flite_synth_text(text.encode("ascii"), at)
        try:
            features = C.cast(utterance, C.POINTER(C.c_void_p))[0]
            means, strengths = (_matrix(lib, features, name) for name in (b"param_track", b"str_track"))
            phones = _phones(lib, utterance)
        finally:
            lib.delete_utterance(utterance)
    return Parameters(_frames(means, strengths), phones)


def _matrix(lib: C.CDLL, features: int | None, name: bytes) -> NDArray[np.float64]:
    value = lib.feat_val(features, name)
    if not value:
        raise ValueError(f"the voice has no {name.decode()}: it is not a statistical one")
    track = lib.val_track(value).contents
    rows = [np.ctypeslib.as_array(track.frames[i], (track.num_channels,)) for i in range(track.num_frames)]
    return np.array(rows, np.float64)


def _phones(lib: C.CDLL, utterance: int) -> tuple[Phone, ...]:
    phones: list[Phone] = []
    word, last = -1, b""
    segment = lib.relation_head(lib.utt_relation(utterance, b"Segment"))
    while segment:
        name = lib.item_feat_string(segment, b"name").decode()
        if name == "pau":
            phones.append(Phone(name, lib.ffeature_float(segment, b"end"), -1, ""))
        else:
            # the address of the word, as a number that differs between equal words
            key = lib.ffeature_string(segment, b"R:SylStructure.parent.parent.R:Word.p.name") + b"/"
            key += lib.ffeature_string(segment, b"R:SylStructure.parent.parent.R:Word.name")
            key += b"/" + lib.ffeature_string(segment, b"R:SylStructure.parent.parent.R:Word.n.name")
            if key != last:
                word, last = word + 1, key
            written = lib.ffeature_string(segment, b"R:SylStructure.parent.parent.name").decode()
            phones.append(Phone(name, lib.ffeature_float(segment, b"end"), word, written))
        segment = lib.item_next(segment)
    return tuple(phones)


def _frames(means: NDArray[np.float64], strengths: NDArray[np.float64]) -> NDArray[np.float32]:
    """flite's tracks → (T, DIMS) every 10 ms."""
    count = min(len(means), len(strengths))
    out = np.zeros((count, DIMS), np.float32)
    for k in range(MCEP):
        out[:, k] = trajectory(means[:count], k)
    f0 = means[:count, 0]
    voiced = f0 > 30
    out[:, VOICED] = np.where(voiced, 1.0, -1.0)
    if voiced.any():
        places = np.arange(count)
        out[:, LF0] = np.interp(places, places[voiced], np.log(f0[voiced]))
    else:
        out[:, LF0] = np.log(100.0)
    out[:, STRENGTH : STRENGTH + BANDS] = strengths[:count, :BANDS]
    return np.ascontiguousarray(out[:: 10 // STEP_MS])


def trajectory(track: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """(T,): the likeliest course of coefficient `k`, given means and deviations of it and of its delta."""
    count = len(track)
    at, delta = 2 * (k + 1), 2 * (k + 1 + MCEP)
    mean, weight = track[:, at], 1 / np.square(np.maximum(track[:, at + 1], 1e-3))
    slope, trust = track[:, delta], 1 / np.square(np.maximum(track[:, delta + 1], 1e-3))
    trust = np.where((np.arange(count) == 0) | (np.arange(count) == count - 1), 0, trust)
    # normal equations of static + delta (x[t+1] − x[t−1]) / 2: five diagonals, symmetric
    bands = np.zeros((3, count))
    bands[2] = weight
    bands[2, 1:] += 0.25 * trust[:-1]
    bands[2, :-1] += 0.25 * trust[1:]
    bands[0, 2:] = -0.25 * trust[1:-1]
    right = weight * mean
    right[1:] += 0.5 * (trust * slope)[:-1]
    right[:-1] -= 0.5 * (trust * slope)[1:]
    return solveh_banded(bands, right)
