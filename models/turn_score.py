"""Is a turn over? From silence, how long the text has not changed, and what it ends like.

Each kind of ending has a silence after which an end is as likely as a pause (score ½). Pauses inside English turns
last 200 ms in the median and over 500 ms rarely, most of them after words that leave a sentence open (Ten Bosch et al.,
2005; Skantze, "Turn-taking in conversational systems", 2021, section 3); so those words wait longest.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

_SETTLE_MS = 240  # text that changed less long ago may still grow: one block of a recogniser and its decoding


class Ending(Enum):
    """What a text ends like; the values are what events tell."""

    COMPLETE = "complete"  # . ? !
    OPEN = "open"  # a word that wants another, a comma, a filler
    PLAIN = "plain"
    NONE = "none"  # no words

    @classmethod
    def of(cls, text: str) -> Ending:
        words = text.split()
        if not words:
            return cls.NONE
        last = re.sub(r"[^\w'.?!,;:…-]", "", words[-1].lower())
        if last.endswith(("...", "…", ",", ";", ":", "-")) or last.rstrip(".?!") in _FILLERS:
            return cls.OPEN
        if last.endswith((".", "?", "!")):
            return cls.COMPLETE
        return cls.OPEN if last in _WANTING else cls.PLAIN


_FILLERS = frozenset({"uh", "um", "er", "erm", "hmm", "mm"})
_WANTING_WORDS = (
    "a an the my your his her its our their this these those and or but because so if when while that which who "
    "of to in on at for from with by about into over under than as is are was were am be i you we they he she "
    "can could will would should may might must do does did have has had not very really just i'm it's let's"
)
_WANTING = frozenset(_WANTING_WORDS.split())
"""English words that seldom end a sentence. "it", "that one" and the like are left out: they do."""

_EVEN_MS = {Ending.COMPLETE: 320, Ending.PLAIN: 480, Ending.OPEN: 1200, Ending.NONE: 800}
_DEAF_MS = 600  # without a recogniser


@dataclass(frozen=True, slots=True)
class Hearing:
    """What is known of a turn now."""

    silence_ms: int  # since the voice
    stable_ms: int  # since the text changed
    text: str
    listening: bool = True  # there is a recogniser


def ending(hearing: Hearing, patience: float = 1.0) -> float:
    """How sure it is that the turn is over, 0…1. ½ when silence has lasted as long as the ending needs."""
    even = _EVEN_MS[Ending.of(hearing.text)] if hearing.listening else _DEAF_MS
    quiet = 1 - 2 ** (-hearing.silence_ms / (even * patience))
    settled = min(1.0, hearing.stable_ms / _SETTLE_MS) if hearing.listening and hearing.text else 1.0
    return quiet * (0.5 + 0.5 * settled)
