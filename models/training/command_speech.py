"""The fixture's material: 31 command words in one Flite voice, in random order, with the time of each word.

Synthesis is the dear part (20 ms of CPU a second of speech), so a `Bank` is spoken once and utterances are cut and
joined from it at the borders of words, each with its own speed, loudness, pauses and noise: no two are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .flite_words import RATE_HZ, speak

_SAID = (
    "hello stop start help pencil neon cartoon thermal noir pixel watercolor blueprint normal sketch style make "
    "it show me switch to turn on off what do you see time please thanks"
)
WORDS: list[str] = [*_SAID.split()]
MAX_S = 3.9  # fits the fixture's window of 4 s
_LEAVE_S = 0.1  # a word that ends this close to the end of the audio is not asked for


@dataclass(frozen=True, slots=True)
class Sample:
    """One training utterance: (S,) float32 at 16 kHz, its words and when each ends, in s."""

    pcm: NDArray[np.float32]
    words: tuple[str, ...]
    ends: tuple[float, ...]
    phones: NDArray[np.int64]  # (T,) of each 20 ms, ids of the bank


@dataclass(frozen=True, slots=True)
class Bank:
    """Spoken phrases, one after the other; word w of the bank is WORDS[word[w]], samples [start[w], end[w]).
    Phone 0 is silence."""

    pcm: NDArray[np.int16]  # (S,)
    first: NDArray[np.int64]  # (P + 1,) the word that each phrase begins with, and the number of words
    word: NDArray[np.int64]  # (W,)
    start: NDArray[np.int64]  # (W,) samples
    end: NDArray[np.int64]  # (W,)
    phone: NDArray[np.int64]  # (K,)
    until: NDArray[np.int64]  # (K,) samples, rising

    def save(self, path: Path) -> None:
        np.savez(path, **{f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: Path) -> Bank:
        with np.load(path, allow_pickle=False) as file:
            return cls(*(file[f.name] for f in fields(cls)))


def phrase(rng: np.random.Generator, longest: int = 6) -> list[str]:
    """Words in random order: nothing but the sound says which comes next"""
    count = int(rng.integers(1, longest + 1))
    return [str(w) for w in rng.choice(WORDS, count)]


def spoken_bank(seed: int, phrases: int, told: Callable[[int], None] = lambda _: None) -> Bank:
    """Say `phrases` phrases; `told` hears how many are done. The same words for one seed."""
    rng = np.random.default_rng(seed)
    pcm: list[NDArray[np.int16]] = []
    first, word, start, end = [0], list[int](), list[int](), list[int]()
    names, phone, until = {"pau": 0}, list[int](), list[int]()
    at = 0
    for done in range(phrases):
        words = phrase(rng)
        spoken = speak(" ".join(words))
        if list(spoken.words) != words:
            raise ValueError(f"the voice reads {' '.join(words)!r} as {' '.join(spoken.words)!r}")
        for w, a, b in zip(words, spoken.starts, spoken.ends, strict=True):
            word.append(WORDS.index(w))
            start.append(at + int(a * RATE_HZ))
            end.append(at + int(b * RATE_HZ))
        for name, stop in spoken.phones:
            phone.append(names.setdefault(name, len(names)))
            until.append(at + int(stop * RATE_HZ))
        pcm.append((spoken.pcm * 32767).astype(np.int16))
        at += len(spoken.pcm)
        first.append(len(word))
        told(done + 1)
    columns = (first, word, start, end, phone, until)
    return Bank(np.concatenate(pcm), *(np.array(x, np.int64) for x in columns))


def run(bank: Bank, rng: np.random.Generator, longest: int) -> tuple[int, int]:
    """Some words of one phrase that follow each other: [begin, end) in the bank."""
    p = int(rng.integers(len(bank.first) - 1))
    begin, end = int(bank.first[p]), int(bank.first[p + 1])
    count = int(rng.integers(1, min(longest, end - begin) + 1))
    begin = int(rng.integers(begin, end - count + 1))
    return begin, begin + count


def sample(bank: Bank, rng: np.random.Generator, longest: int = 6) -> Sample:
    """Up to `longest` words with another speed, loudness, noise and pauses each time; some begin inside a word,
    as after a seam."""
    parts: list[NDArray[np.float32]] = [np.zeros(int(rng.uniform(0.0, 0.6) * RATE_HZ), np.float32)]
    words, ends = list[str](), list[float]()
    at, left = len(parts[0]), int(rng.integers(1, longest + 1))
    speed = rng.uniform(0.92, 1.08)
    clipped = rng.random() < 0.1
    phones = np.zeros(int(MAX_S * 50), np.int64)
    middle = (np.arange(len(phones)) + 0.5) * RATE_HZ / 50  # of each 20 ms, in samples
    while left > 0:
        begin, end = run(bank, rng, left)
        a, b = int(bank.start[begin]), int(bank.end[end - 1])
        if clipped:  # the tail of a word that is not in the text
            a = int(bank.end[begin]) - int(rng.uniform(0.02, 0.15) * RATE_HZ)
        source = a + ((middle - at) * speed).astype(np.int64)
        here = (source >= a) & (source < b)
        phones[here] = bank.phone[np.searchsorted(bank.until, source[here], side="right")]
        piece = bank.pcm[a:b].astype(np.float32) / np.float32(32767)
        piece = np.interp(np.arange(0, len(piece) - 1, speed), np.arange(len(piece)), piece).astype(
            np.float32
        )
        for w in range(begin + clipped, end):
            words.append(WORDS[int(bank.word[w])])
            ends.append((at + (int(bank.end[w]) - a) / speed) / RATE_HZ)
        clipped = False
        pause = np.zeros(int(rng.uniform(0.0, 0.35) * RATE_HZ), np.float32)
        parts += [piece, pause]
        at += len(piece) + len(pause)
        left -= end - begin
    parts.append(np.zeros(int(rng.uniform(0.1, 0.9) * RATE_HZ), np.float32))
    pcm = np.concatenate(parts)[: int(MAX_S * RATE_HZ)]
    kept = [i for i, e in enumerate(ends) if e < len(pcm) / RATE_HZ - _LEAVE_S]
    level = 10 ** rng.uniform(-0.9, 0.2)
    noise = rng.standard_normal(len(pcm), np.float32) * np.float32(10 ** rng.uniform(-4.5, -3.0))
    loud = np.clip(pcm * np.float32(level) + noise, -1, 1).astype(np.float32)
    here = phones[: len(pcm) * 50 // RATE_HZ]
    return Sample(loud, tuple(words[i] for i in kept), tuple(ends[i] for i in kept), here)


def draw(bank: Bank, seed: Sequence[int], count: int, longest: int = 6) -> list[Sample]:
    """`count` utterances, the same ones for one seed."""
    rng = np.random.default_rng(seed)
    return [sample(bank, rng, longest) for _ in range(count)]
