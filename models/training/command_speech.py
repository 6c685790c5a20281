"""The fixture's material: 31 command words in one Flite voice, in random order, with the time of each word."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .flite_words import RATE_HZ, speak

_SAID = (
    "hello stop start help pencil neon cartoon thermal noir pixel watercolor blueprint normal sketch style make "
    "it show me switch to turn on off what do you see time please thanks"
)
WORDS: list[str] = [*_SAID.split()]
MAX_S = 3.9  # fits the fixture's window of 4 s


@dataclass(frozen=True, slots=True)
class Sample:
    """One training utterance: (S,) float32 at 16 kHz, its words and when each ends, in s."""

    pcm: NDArray[np.float32]
    words: tuple[str, ...]
    ends: tuple[float, ...]


def phrase(rng: np.random.Generator, longest: int = 6) -> list[str]:
    """Words in random order: nothing but the sound says which comes next"""
    count = int(rng.integers(1, longest + 1))
    return [str(w) for w in rng.choice(WORDS, count)]


def sample(rng: np.random.Generator, words: list[str]) -> Sample:
    """Say `words` with another speed, loudness, noise and silence each time; some begin cut, as after a seam."""
    spoken = speak(" ".join(words))
    if list(spoken.words) != words:
        raise ValueError(f"the voice reads {' '.join(words)!r} as {' '.join(spoken.words)!r}")
    pcm, ends = spoken.pcm, np.array(spoken.ends)
    speed = rng.uniform(0.93, 1.07)
    at = np.arange(0, len(pcm) - 1, speed)
    pcm = np.interp(at, np.arange(len(pcm)), pcm).astype(np.float32)
    ends = ends / speed
    lead, trail = rng.uniform(0.0, 0.5), rng.uniform(0.25, 0.9)
    pcm = np.concatenate([np.zeros(int(lead * RATE_HZ)), pcm, np.zeros(int(trail * RATE_HZ))])
    ends = ends + int(lead * RATE_HZ) / RATE_HZ
    if len(words) > 2 and rng.random() < 0.25:
        drop = int(rng.integers(1, len(words) - 1))
        cut = max(0.0, float(ends[drop - 1]) - rng.uniform(0.0, 0.15))
        pcm, words, ends = pcm[int(cut * RATE_HZ) :], words[drop:], ends[drop:] - cut
    pcm = pcm[: int(MAX_S * RATE_HZ)]
    kept = [i for i, end in enumerate(ends) if end < len(pcm) / RATE_HZ - 0.1]
    level = 10 ** rng.uniform(-0.9, 0.2)
    noise = rng.normal(size=len(pcm)) * 10 ** rng.uniform(-4.5, -3.0)
    loud = np.clip(pcm * level + noise, -1, 1).astype(np.float32)
    return Sample(loud, tuple(words[i] for i in kept), tuple(float(ends[i]) for i in kept))


def corpus(seed: int, count: int) -> list[Sample]:
    """`count` utterances, the same words and times for one seed; the voice's breath noise is its own."""
    rng = np.random.default_rng(seed)
    return [sample(rng, phrase(rng)) for _ in range(count)]
