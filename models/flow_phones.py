"""Words → phones: the dictionary that comes with PocketSphinx, and letters where it knows none.

Source: The CMU Pronouncing Dictionary (BSD-style), 39 phones of ARPAbet without stress.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from .pocketsphinx_asr import pronunciations

PAUSE = "pau"
_PHONES = (
    "aa ae ah ao aw ay b ch d dh eh er ey f g hh ih iy jh k l m n ng ow oy p r s sh t th uh uw v w y z zh"
)
PHONES = (
    "",  # padding
    PAUSE,
    *_PHONES.split(),
)
INDEX: Mapping[str, int] = MappingProxyType({name: i for i, name in enumerate(PHONES)})
VOWELS = frozenset(["aa", "ae", "ah", "ao", "aw", "ay", "eh", "er", "ey", "ih", "iy", "ow", "oy", "uh", "uw"])
SAME: Mapping[str, str] = MappingProxyType(
    {"ax": "ah", "axr": "er", "dx": "t", "el": "l", "em": "m", "en": "n", "nx": "n", "hv": "hh", "ix": "ih"}
)
"""Phones that the dictionary does not tell apart."""

FLAGS = 8  # see Phone.flags


@dataclass(frozen=True, slots=True)
class Phone:
    """One phone in its clause."""

    name: str
    first: bool = False  # of its word
    last: bool = False
    function: bool = False  # of a word that is rarely stressed
    question: bool = False  # of the clause
    ends: bool = False  # the clause ends a sentence (else a comma follows)
    place: float = 0.0  # in the clause, 0…1

    def flags(self) -> list[float]:
        """FLAGS numbers."""
        return [
            float(self.first),
            float(self.last),
            float(self.function),
            float(self.question),
            float(self.ends),
            self.place,
            float(self.place < 0.1),
            float(self.place > 0.9),
        ]


_FUNCTION_WORDS = (
    "a an the and or but of to in on at by for with from as is are was were be been am it its he she they we you i "
    "his her their our your my that this these those than then so if not do does did has have had will would can "
    "could should may might must there what which who"
)
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())

_LETTERS: Mapping[str, str] = MappingProxyType(
    {
        "a": "ey", "b": "b iy", "c": "s iy", "d": "d iy", "e": "iy", "f": "eh f", "g": "jh iy", "h": "ey ch", "i": "ay",
        "j": "jh ey", "k": "k ey", "l": "eh l", "m": "eh m", "n": "eh n", "o": "ow", "p": "p iy", "q": "k y uw",
        "r": "aa r", "s": "eh s", "t": "t iy", "u": "y uw", "v": "v iy", "w": "d ah b ah l y uw", "x": "eh k s",
        "y": "w ay", "z": "z iy",
    }
)  # fmt: skip
"""Letters by their names, for abbreviations."""

# written in English → most usual phones; the longest that fits is taken, from left to right
_SPELLINGS: tuple[tuple[str, str], ...] = (
    ("eigh", "ey"), ("ough", "ow"), ("augh", "ao"), ("tion", "sh ah n"), ("sion", "zh ah n"), ("tch", "ch"),
    ("igh", "ay"), ("sch", "s k"), ("dge", "jh"), ("que", "k"), ("ck", "k"), ("ch", "ch"), ("sh", "sh"), ("th", "th"),
    ("ph", "f"), ("wh", "w"), ("kn", "n"), ("wr", "r"), ("gh", "g"), ("ng", "ng"), ("qu", "k w"), ("ee", "iy"),
    ("ea", "iy"), ("oo", "uw"), ("ou", "aw"), ("ow", "ow"), ("oi", "oy"), ("oy", "oy"), ("ai", "ey"), ("ay", "ey"),
    ("au", "ao"), ("aw", "ao"), ("ie", "iy"), ("ei", "ey"), ("ey", "iy"), ("oa", "ow"), ("ue", "uw"), ("ui", "uw"),
    ("er", "er"), ("ir", "er"), ("ur", "er"), ("ar", "aa r"), ("or", "ao r"), ("bb", "b"), ("cc", "k"), ("dd", "d"),
    ("ff", "f"), ("gg", "g"), ("ll", "l"), ("mm", "m"), ("nn", "n"), ("pp", "p"), ("rr", "r"), ("ss", "s"),
    ("tt", "t"), ("zz", "z"), ("ce", "s"), ("ci", "s ih"), ("cy", "s iy"), ("ge", "jh"), ("gi", "jh ih"), ("a", "ae"),
    ("b", "b"), ("c", "k"), ("d", "d"), ("e", "eh"), ("f", "f"), ("g", "g"), ("h", "hh"), ("i", "ih"), ("j", "jh"),
    ("k", "k"), ("l", "l"), ("m", "m"), ("n", "n"), ("o", "aa"), ("p", "p"), ("q", "k"), ("r", "r"), ("s", "s"),
    ("t", "t"), ("u", "ah"), ("v", "v"), ("w", "w"), ("x", "k s"), ("y", "iy"), ("z", "z"), ("'", ""),
)  # fmt: skip


def phones_of(word: str) -> list[str]:
    """The phones of one word in lower case letters and apostrophes; a guess where the dictionary has none."""
    known = pronunciations()
    if word in known:
        return known[word][0].lower().split()
    for suffix, said in (
        ("'s", "z"),
        ("s", "z"),
        ("ing", "ih ng"),
        ("ed", "d"),
        ("ly", "l iy"),
        ("er", "er"),
    ):
        stem = word.removesuffix(suffix)
        if stem != word and stem in known:
            return [*known[stem][0].lower().split(), *said.split()]
    if not any(c in "aeiouy" for c in word):
        return [p for c in word if c in _LETTERS for p in _LETTERS[c].split()]
    return _spelled(word)


def letters_of(word: str) -> list[str]:
    """The phones of its letters' names, as for "ABC" and "ABC's"."""
    stem = word.removesuffix("'s")
    phones = [p for c in stem.lower() if c in _LETTERS for p in _LETTERS[c].split()]
    return phones if stem == word else [*phones, "z"]


def _spelled(word: str) -> list[str]:
    phones: list[str] = []
    at = 0
    while at < len(word):
        for letters, said in _SPELLINGS:
            if word.startswith(letters, at):
                silent = letters == "e" and at == len(word) - 1 and any(p in VOWELS for p in phones)
                phones += [] if silent else said.split()
                at += len(letters)
                break
        else:
            at += 1
    return phones


def clause(
    words: Sequence[Sequence[str]], names: Sequence[str], *, question: bool, ends: bool
) -> list[Phone]:
    """The phones of a clause between two pauses. words: the phones of each; names: how each is written."""
    total = max(1, sum(map(len, words)))
    out: list[Phone] = []
    at = 0
    for phones, name in zip(words, names, strict=True):
        function = name in FUNCTION_WORDS
        for i, phone in enumerate(phones):
            out.append(Phone(phone, i == 0, i == len(phones) - 1, function, question, ends, at / total))
            at += 1
    return out
