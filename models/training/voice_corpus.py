"""What the neural voice is trained on: sentences of common words and of any words, said by flite, phone by phone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ..flow_phones import INDEX, PAUSE, SAME, Phone, clause
from ..flow_vocoder import DIMS
from ..pocketsphinx_asr import common_words, pronunciations
from . import flite_params

FRAME_S = 0.01

_GLUE = (
    "the {} of the {}", "a {} {} is {}", "i {} the {}", "you can {} it with a {}", "there is a {} in the {}",
    "we {} to {} them", "what {} does the {} have", "he was {} by the {}", "it is {} and {}", "do you {} this {}",
    "they have {} from {} to {}", "please {} the {}", "she {} her {} at the {}", "my {} will {} tomorrow",
    "this {} looks {}", "how {} is your {}", "no {} for {} or {}", "that {} has been {}", "{} it", "{} {} {}",
)  # fmt: skip
_NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million point percent "
    "first second third o'clock half past morning afternoon monday tuesday wednesday thursday friday saturday sunday "
    "january february march april may june july august september october november december"
)
_NUMBERS = _NUMBER_WORDS.split()
_SAID = (
    "hello how can i help you today", "i see a picture that is bright mostly blue with some movement",
    "sorry i did not understand", "ask what time is it or what do you see", "back to normal", "pencil sketch",
    "you are welcome", "goodbye", "i see nothing yet is the camera on", "film noir", "watercolor", "thermal", "neon",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Example:
    """One utterance: phones (P,), flags (P, FLAGS), frames of each phone (P,), parameters (T, DIMS)."""

    phones: NDArray[np.int64]
    flags: NDArray[np.float32]
    durations: NDArray[np.int64]
    frames: NDArray[np.float32]


@cache
def _any_words() -> tuple[str, ...]:
    return tuple(sorted(w for w in pronunciations() if w.isalpha() and 3 <= len(w) <= 10))


def sentence(rng: np.random.Generator) -> str:
    """A few words, without much sense."""
    common, rare = common_words(), _any_words()

    def word() -> str:
        words = common if rng.random() < 0.6 else rare
        return str(words[int(rng.integers(len(words)))])

    kind = rng.random()
    if kind < 0.08:
        text = _SAID[int(rng.integers(len(_SAID)))]
    elif kind < 0.2:
        text = " ".join(str(rng.choice(_NUMBERS)) for _ in range(int(rng.integers(2, 6))))
    else:
        parts = [
            _GLUE[int(rng.integers(len(_GLUE)))].format(word(), word(), word())
            for _ in range(int(rng.integers(1, 4)))
        ]
        text = str(rng.choice([", ", " and ", " "])).join(parts)
    return text[0].upper() + text[1:] + str(rng.choice([".", ".", ".", "?", "!", ","]))


def example(text: str) -> Example:
    """Raises: as `flite_params.analyse`."""
    said = flite_params.analyse(text)
    phones = _described(said.phones, question=text.endswith("?"), ends=not text.endswith(","))
    ends = [min(round(p.end / FRAME_S), len(said.frames)) for p in said.phones]
    ends[-1] = len(said.frames)
    durations = np.diff([0, *ends])
    keep = durations > 0
    indices = np.array([INDEX[p.name] for p in phones], np.int64)
    flags = np.array([p.flags() for p in phones], np.float32)
    assert said.frames.shape[1] == DIMS
    return Example(indices[keep], flags[keep], durations[keep].astype(np.int64), said.frames)


def _described(phones: Sequence[flite_params.Phone], *, question: bool, ends: bool) -> list[Phone]:
    """flite's phones as the front end would describe them: clauses lie between pauses."""
    out: list[Phone] = []
    words: dict[int, list[str]] = {}
    names: dict[int, str] = {}
    last = max((i for i, p in enumerate(phones) if p.name != PAUSE), default=-1)
    for i, phone in enumerate(phones):
        if phone.name != PAUSE:
            words.setdefault(phone.word, []).append(SAME.get(phone.name, phone.name))
            names[phone.word] = phone.written
        if words and (phone.name == PAUSE or i == len(phones) - 1):
            final = i > last or i == len(phones) - 1
            out += clause(
                list(words.values()), list(names.values()), question=question and final, ends=ends and final
            )
            words, names = {}, {}
        if phone.name == PAUSE:
            out.append(Phone(PAUSE))
    return out
