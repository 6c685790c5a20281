"""Time-aligned speech to fine-tune on: a folder of recordings, or the fixture's synthetic voice.

A folder holds `aligned.jsonl`, one utterance a line, as forced aligners give it (times in s, `audio` beside the file):

    {"audio": "84/121123.flac", "words": [["go", 0.31, 0.47], ["do", 0.47, 0.6]]}
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ..log_mel import RATE_HZ, LogMel
from ..tokens import Tokens
from .aligned import Aligned
from .command_speech import Bank, Sample, draw, spoken_bank

MANIFEST = "aligned.jsonl"
_HELD_OUT = 1 << 30  # seeds of evaluation
_EVERY = 20  # of a folder's utterances, one is held out


class Material(Protocol):
    """Utterances to learn from, the same ones for one seed."""

    def draw(self, seed: Sequence[int], count: int) -> list[Aligned]: ...

    def held_out(self, count: int) -> list[tuple[str, Aligned]]:
        """Utterances that `draw` never gives, with their text."""
        ...


def utterance(
    pcm: NDArray[np.float32], words: Sequence[str], ends: Sequence[float], mel: LogMel, tokens: Tokens
) -> Aligned:
    """(S,) samples, words and when each ends → what the model takes; every token of a word ends with it."""
    frames = mel.forward(torch.from_numpy(pcm))
    ids, when = list[int](), list[float]()
    for word, end in zip(words, ends, strict=True):
        pieces = tokens.encode(word)
        ids += pieces
        when += [end] * len(pieces)
    return Aligned(frames[:, : frames.shape[1] // 2 * 2], tuple(ids), tuple(when))


class SyntheticCommands:
    """Phrases of 31 words in one flite voice: for the fixture's vocabulary only."""

    def __init__(self, bank: Bank, tokens: Tokens, n_mels: int = 80) -> None:
        self._bank, self._tokens, self._mel = bank, tokens, LogMel(n_mels)

    @classmethod
    def at(
        cls, kept: Path, tokens: Tokens, phrases: int, seed: int, told: Callable[[int], None]
    ) -> SyntheticCommands:
        """Spoken once into `kept`. Raises: FileNotFoundError without libflite."""
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            spoken_bank(seed, phrases, told).save(kept)
        return cls(Bank.load(kept), tokens)

    def draw(self, seed: Sequence[int], count: int) -> list[Aligned]:
        return [self._aligned(s) for s in draw(self._bank, seed, count)]

    def held_out(self, count: int) -> list[tuple[str, Aligned]]:
        return [
            (" ".join(s.words), self._aligned(s)) for s in draw(self._bank, [_HELD_OUT], count) if s.words
        ]

    def _aligned(self, sample: Sample) -> Aligned:
        return utterance(sample.pcm, sample.words, sample.ends, self._mel, self._tokens)


@dataclass(frozen=True, slots=True)
class _Line:
    audio: Path
    words: tuple[str, ...]
    starts: tuple[float, ...]
    ends: tuple[float, ...]


class Recordings:
    """A folder of aligned recordings; each utterance is cut to the model's window, between words."""

    def __init__(self, folder: Path, tokens: Tokens, window_s: float, n_mels: int = 80) -> None:
        """Raises: FileNotFoundError, ValueError that names the line."""
        self._tokens, self._window, self._mel = tokens, window_s, LogMel(n_mels)
        lines = [_line(folder, n, text) for n, text in _rows(folder / MANIFEST)]
        if not lines:
            raise ValueError(f"{folder / MANIFEST} holds no utterance")
        self._kept = lines[::_EVERY] if len(lines) > 1 else lines
        self._lines = [line for i, line in enumerate(lines) if i % _EVERY] or lines

    def draw(self, seed: Sequence[int], count: int) -> list[Aligned]:
        rng = np.random.default_rng(seed)
        return [self._cut(self._lines[int(i)], rng)[1] for i in rng.integers(len(self._lines), size=count)]

    def held_out(self, count: int) -> list[tuple[str, Aligned]]:
        rng = np.random.default_rng(_HELD_OUT)
        return [self._cut(line, rng) for line in self._kept[:count]]

    def _cut(self, line: _Line, rng: np.random.Generator) -> tuple[str, Aligned]:
        pcm = decode(line.audio)
        longest = int(self._window * RATE_HZ) - RATE_HZ // 50
        words, ends, begin = line.words, line.ends, 0
        if len(pcm) > longest:  # from before some word to the window's end
            starts = [i for i, s in enumerate(line.starts) if s * RATE_HZ <= len(pcm) - longest / 2] or [0]
            first = int(rng.choice(starts))
            begin = max(0, math.floor(line.starts[first] * RATE_HZ) - RATE_HZ // 20)
            pcm = pcm[begin : begin + longest]
            inside = [i for i in range(first, len(words)) if ends[i] * RATE_HZ <= begin + len(pcm)]
            words, ends = (
                tuple(words[i] for i in inside),
                tuple(ends[i] - begin / RATE_HZ for i in inside),
            )
        return " ".join(words), utterance(pcm, words, ends, self._mel, self._tokens)


def _rows(path: Path) -> list[tuple[int, str]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: one JSON object a line, with audio and words")
    return [(n, text) for n, text in enumerate(path.read_text().splitlines(), 1) if text.strip()]


def _line(folder: Path, number: int, text: str) -> _Line:
    where = f"{folder / MANIFEST}, line {number}"
    try:
        raw: Any = json.loads(text)
        audio = folder / raw["audio"]
        words = [(str(w), float(a), float(b)) for w, a, b in raw["words"]]
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f'{where}: needed is {{"audio": …, "words": [[word, begin, end], …]}} ({e})') from e
    if not audio.is_file():
        raise ValueError(f"{where}: {audio} is missing")
    order = [t for _, a, b in words for t in (a, b)]
    if order != sorted(order) or any(t < 0 for t in order):
        raise ValueError(f"{where}: the words' times must rise from 0 on")
    columns = tuple(zip(*words, strict=True)) if words else ((), (), ())
    return _Line(audio, *columns)


def decode(path: Path) -> NDArray[np.float32]:
    """(S,) at 16 kHz. Raises: ValueError for what is no audio."""
    import av
    from av.error import FFmpegError

    resampler = av.AudioResampler("flt", "mono", RATE_HZ)
    try:
        with av.open(str(path)) as container:
            parts = [
                f.to_ndarray()[0] for frame in container.decode(audio=0) for f in resampler.resample(frame)
            ]
            parts += [f.to_ndarray()[0] for f in resampler.resample(None)]
    except (FFmpegError, IndexError) as e:
        raise ValueError(f"{path} cannot be read as audio ({e})") from e
    return np.concatenate(parts).astype(np.float32) if parts else np.zeros(0, np.float32)
