"""What a voice is: text in, audio with its words out, chunk by chunk, until told to stop."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray


class NoVoice(Exception):
    """No voice of the wanted kind can be loaded here; the message says what to install."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """A piece of speech."""

    pcm: NDArray[np.int16]  # (T,) mono
    text: str  # the words that end in it, as written; all pieces together give the text


def cut(piece: Spoken, longest: int) -> list[Spoken]:
    """Parts of at most `longest` samples; the words go with the last."""
    parts = max(1, -(-len(piece.pcm) // longest))
    arrays = np.array_split(piece.pcm, parts)
    return [Spoken(pcm, piece.text if i == parts - 1 else "") for i, pcm in enumerate(arrays)]


Sink: TypeAlias = Callable[[Spoken], None]


class Voice(Protocol):
    """Thread-safe: one call at a time goes through, others wait. Calls are short (a clause)."""

    name: str
    rate_hz: int

    def synthesise(
        self, text: str, sink: Sink, should_stop: Callable[[], bool], *, rate: float = 1.0
    ) -> None:
        """Speak `text` at `rate` times the usual speed; no `sink` call follows a true `should_stop`."""
        ...


class Speech(Protocol):
    """A clause being spoken by a voice that is driven step by step."""

    def step(self) -> list[Spoken]:
        """The next pieces, of up to 80 ms; nothing after the last. Nothing happens between two steps."""
        ...


@runtime_checkable
class SteppedVoice(Protocol):
    """A voice that works only when stepped: to cancel is to step no more."""

    def begin(self, text: str, *, rate: float = 1.0) -> Speech: ...


def run(speech: Speech, sink: Sink, should_stop: Callable[[], bool]) -> None:
    """A stepped voice's `synthesise`."""
    while not should_stop() and (pieces := speech.step()):
        for piece in pieces:
            if should_stop():
                return
            sink(piece)


@dataclass(frozen=True, slots=True)
class Mark:
    """A word: where in the text it ends (blanks after it included), and when its sound does, in samples."""

    until_char: int
    sample: int


class Marked:
    """Cuts a text along the audio: which words end in the samples up to now."""

    def __init__(self, text: str, marks: list[Mark]) -> None:
        self._text = text
        self._marks = marks
        self._next = 0
        self._said = 0  # characters given out

    def upto(self, sample: int) -> str:
        """The text of the words that end before `sample` and were not given out yet."""
        said = self._said
        while self._next < len(self._marks) and self._marks[self._next].sample <= sample:
            said = max(said, self._marks[self._next].until_char)
            self._next += 1
        piece, self._said = self._text[self._said : said], said
        return piece

    def rest(self) -> str:
        """What has no mark: for the last piece."""
        piece, self._said = self._text[self._said :], len(self._text)
        return piece


# A word with what follows it; Japanese and Chinese have no blanks, there each character counts as one.
_WORD = re.compile(r"\s*(?:[\u3040-\u30ff\u3400-\u9fff]|[^\s\u3040-\u30ff\u3400-\u9fff]+)\s*")


class Evenly(Marked):
    """Words placed evenly along sound of which nobody tells when they are said; the last ends with the sound."""

    def __init__(self, text: str, pace: float, rate_hz: int) -> None:
        """pace: characters a second."""
        ends = [m.end() for m in _WORD.finditer(text)][:-1]
        super().__init__(text, [Mark(end, int(end / pace * rate_hz)) for end in ends])


def paced(before: float, heard: float) -> float:
    """Characters a second to place the next words by, after a clause that was heard at `heard` of them."""
    return min(max(0.7 * before + 0.3 * heard, 2.0), 40.0)


def speakable(text: str, longest_word: int = 40) -> str:
    """`text` in ASCII of the same length: what a C library with an English dictionary can be given.

    Accents go, other characters become blanks, and a word without end gets blanks in it: the libraries'
    buffers were never meant for one.
    """
    out: list[str] = []
    run = 0
    for char in text:
        base = unicodedata.normalize("NFKD", char)[0]
        base = _PLAIN.get(base, base)
        if not (" " < base <= "~") or base in _UNSPOKEN:
            base = " "
        run = 0 if base == " " else run + 1
        if run > longest_word:
            base, run = " ", 0
        out.append(base)
    return "".join(out)


_PLAIN = {"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "."}
_UNSPOKEN = frozenset('<>{}[]\\^`|~_*#"')  # markup, not words
