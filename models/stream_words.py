"""From committed tokens to words with times: what the recognisers that write over a window share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from .local_optimality import Hypothesis
from .window_seam import Said
from .word_times import even_shares, group_words, token_times


class Spelling(Protocol):
    """What is needed to know of a vocabulary."""

    def decode(self, ids: Sequence[int]) -> str: ...

    def begins_word(self, token: int) -> bool: ...


@dataclass(frozen=True, slots=True)
class StreamWord:
    """A committed word; frames of 20 ms since the stream began."""

    text: str
    begin: int
    end: int


class Window(Protocol):
    """The words' part of a stream's state."""

    origin: int  # frames of the stream before this window
    worded: int  # tokens of the window that have been given as words
    said: list[Said]  # words of the window that have been given
    last_end: int  # end of the last word given, in frames since the stream began

    @property
    def text(self) -> Hypothesis: ...


def give_words(
    spelling: Spelling, window: Window, now: int, attention: Tensor | None, *, everything: bool = False
) -> list[StreamWord]:
    """Whole words below the commit line that have not been given yet, with their times.

    now: frames in the window. attention: (K, n + 1, A) of the last n tokens and the end; without it, times are even
    shares.
    """
    tokens, line = window.text.tokens, window.text.committed
    starts = [spelling.begins_word(t) for t in tokens]
    end = line
    if not everything:  # a word is whole when the next one has begun, also when that may still change
        while end > window.worded and end < len(tokens) and not starts[end]:
            end -= 1
    if end <= window.worded:
        return []
    new = len(tokens) - window.worded
    times: list[tuple[int, int]] = []
    before = 0 if attention is None else len(tokens) + 1 - attention.shape[1]  # tokens without a row
    if attention is not None and 0 <= before <= window.worded:
        shift = now - attention.shape[2]
        heard = attention[:, :, max(0, window.last_end - window.origin - shift) :]  # words are in order
        if heard.shape[2] > new:
            shift = now - heard.shape[2]
            times = [(a + shift, b + shift) for a, b in token_times(heard, window.worded - before)]
    if not times:
        begin = max(0, window.last_end - window.origin)
        times = even_shares(new, begin, max(now, begin + 1))
    words: list[StreamWord] = []
    spans = group_words(starts[window.worded : end], times[: end - window.worded])
    for first, after, (a, b) in spans:
        text = spelling.decode(tokens[window.worded + first : window.worded + after]).strip()
        begin = max(window.last_end, window.origin + a)  # words are in order
        window.last_end = max(begin, window.origin + b)
        said = Said(window.worded + after, begin - window.origin, window.last_end - window.origin)
        window.said.append(said)
        if text:
            words.append(StreamWord(text, begin, window.last_end))
    window.worded = end
    return words
