"""Speech with known word times, from the Flite voice library: material for training and closed-loop tests."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .. import flite_lib
from ..flite_lib import LOCK, RATE_HZ

VOICE = "slt"

_WORD_BEGINS = b"R:SylStructure.daughter1.daughter1.R:Segment.p.end"
_END = b"end"
_WORD_ENDS = b"R:SylStructure.daughtern.daughtern.R:Segment.end"


@dataclass(frozen=True, slots=True)
class Spoken:
    """An utterance and when each of its words ends."""

    pcm: NDArray[np.float32]  # (S,) at 16 kHz, −1…1
    words: tuple[str, ...]
    starts: tuple[float, ...]  # s
    ends: tuple[float, ...]  # s
    phones: tuple[tuple[str, float], ...] = ()  # all segments, silences too: name and end in s


def available(voice: str = VOICE) -> bool:
    """Whether the voice can be loaded here."""
    try:
        flite_lib.voice(voice)
    except FileNotFoundError:
        return False
    return True


def speak(text: str, voice: str = VOICE) -> Spoken:
    """Synthesise a phrase. Raises: FileNotFoundError, ValueError for a voice of another rate."""
    flite, voice_at = flite_lib.library(), flite_lib.voice(voice)
    with LOCK:
        utterance = flite.flite_synth_text(text.encode(), voice_at)
        try:
            wave = flite.utt_wave(utterance).contents
            if wave.sample_rate != RATE_HZ:
                raise ValueError(f"voice {voice!r} speaks at {wave.sample_rate} Hz; needed: {RATE_HZ}")
            pcm = np.ctypeslib.as_array(wave.samples, (wave.num_samples,)).astype(np.float32) / np.float32(
                32768
            )
            words: list[str] = []
            starts: list[float] = []
            ends: list[float] = []
            item = flite.relation_head(flite.utt_relation(utterance, b"Word"))
            while item:
                words.append(flite.item_feat_string(item, b"name").decode())
                starts.append(flite.ffeature_float(item, _WORD_BEGINS))
                ends.append(flite.ffeature_float(item, _WORD_ENDS))
                item = flite.item_next(item)
            phones: list[tuple[str, float]] = []
            item = flite.relation_head(flite.utt_relation(utterance, b"Segment"))
            while item:
                name = flite.item_feat_string(item, b"name").decode()
                phones.append((name, flite.ffeature_float(item, _END)))
                item = flite.item_next(item)
        finally:
            flite.delete_utterance(utterance)
    return Spoken(pcm, tuple(words), tuple(starts), tuple(ends), tuple(phones))
