"""Text in as it is written, sound out in small pieces with its words, one step at a time. No thread, no clock.

push("Well, I th") push("ink so. ") ──▶ clauses ──▶ voice ──step()──▶ Chunk(pcm, text, marks) …
                                                      cancel(samples played) ──▶ what was spoken
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .clauses import ClauseCutter
from .voice import Mark, Speech, Spoken, SteppedVoice, Voice, cut

CHUNK_MS = 80  # the longest chunk


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an utterance."""

    pcm: NDArray[np.int16]  # (T,) mono, at most CHUNK_MS
    text: str  # the words that end in it; all chunks together give the text
    start: int  # samples of the utterance before it
    mark: Mark  # up to which character of the utterance it is spoken when this chunk has sounded


class TtsSession:
    """One utterance. Steps are short: a frame of a stepped voice, a clause of flite or espeak-ng.

    `step` may run on another thread than the rest; `push` and `cancel` then take effect with the next one (flite and
    espeak-ng look at every 40 ms of sound whether they are cancelled).
    """

    def __init__(self, voice: Voice, *, rate: float = 1.0) -> None:
        """rate: times the usual speed."""
        self._voice, self._rate = voice, rate
        self._cutter = ClauseCutter()
        self._clauses: deque[str] = deque()
        self._text = ""  # of the clauses so far
        self._begun = 0  # characters of clauses that have been begun
        self._clause = 0  # where the present one begins
        self._said = 0  # characters of it that have come out
        self._speech: Speech | None = None
        self._ready: deque[Spoken] = deque()
        self._samples = 0
        self._marks: list[Mark] = []
        self._cancelled = False

    @property
    def rate_hz(self) -> int:
        return self._voice.rate_hz

    @property
    def samples(self) -> int:
        """That came out so far."""
        return self._samples

    @property
    def ready(self) -> bool:
        """Is the next chunk made already? Then its step costs nothing."""
        return bool(self._ready)

    def push(self, delta: str) -> None:
        """More of the text; what completes a clause can be spoken."""
        for clause in self._cutter.push(delta):
            self.say(clause)

    def end(self) -> None:
        """No more text: what is left can be spoken."""
        if rest := self._cutter.finish():
            self.say(rest)

    def say(self, clause: str) -> None:
        """A clause as it is, after those before."""
        self._text += clause
        self._clauses.append(clause)

    def step(self) -> Chunk | None:
        """The next chunk; None when there is no whole clause to speak, and for ever after `cancel`."""
        while not self._ready:
            if self._cancelled:
                return None
            if self._speech is None:
                if not self._clauses:
                    return None
                self._begin(self._clauses.popleft())
            assert self._speech is not None
            pieces = self._speech.step()
            if not pieces:
                self._speech = None
            longest = self._voice.rate_hz * CHUNK_MS // 1000
            self._ready.extend(part for piece in pieces for part in cut(piece, longest))
        if self._cancelled:
            return None
        piece, start = self._ready.popleft(), self._samples
        self._said += len(piece.text)
        self._samples += len(piece.pcm)
        before = self._marks[-1].until_char if self._marks else 0
        # a clause that nobody can say (an emoji) goes with the words after it
        mark = Mark(self._clause + self._said if piece.text else before, self._samples)
        self._marks.append(mark)
        return Chunk(piece.pcm, self._text[before : mark.until_char], start, mark)

    def cancel(self, played: int) -> str:
        """No chunk follows. played: samples that were heard. Returns: the text whose words were heard to their end."""
        self._cancelled = True
        self._ready.clear()
        heard = 0
        for mark in self._marks:
            if mark.sample > played:
                break
            heard = mark.until_char
        return self._text[:heard]

    def _begin(self, clause: str) -> None:
        self._clause, self._said = self._begun, 0
        self._begun += len(clause)
        if isinstance(self._voice, SteppedVoice):
            self._speech = self._voice.begin(clause, rate=self._rate)
        else:
            self._speech = _AtOnce(self._voice, clause, self._rate, lambda: self._cancelled)


class _AtOnce:
    """A clause of a voice that cannot be stepped: made whole in the first step."""

    def __init__(self, voice: Voice, text: str, rate: float, should_stop: Callable[[], bool]) -> None:
        self._voice, self._text, self._rate, self._should_stop = voice, text, rate, should_stop
        self._done = False

    def step(self) -> list[Spoken]:
        pieces: list[Spoken] = []
        if not self._done:
            self._done = True
            self._voice.synthesise(self._text, pieces.append, self._should_stop, rate=self._rate)
        return pieces
