"""The prompts that `tiny-restyle` understands: a closed vocabulary, read as a bag of words.

It knows the styles and modifiers below and ignores all other words: no new content, no open vocabulary. A prompt
without a known word is the null prompt, which leaves the picture as it is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import islice
from types import MappingProxyType
from typing import TypeAlias

Ids: TypeAlias = tuple[int, ...]

MAX_WORDS = 8  # known words that count; what training saw
MAX_CHARACTERS = 2000  # of a prompt that are read at all

PHRASES: MappingProxyType[str, tuple[str, ...]] = MappingProxyType(
    {
        "identity": ("photo", "original", "camera"),
        "pencil": ("pencil sketch", "pencil", "sketch", "graphite drawing", "pencil drawing"),
        "crayon": ("crayon", "colored pencil", "pastel crayon", "pastel", "chalk pastel"),
        "charcoal": ("charcoal", "charcoal drawing", "charcoal sketch"),
        "neon": ("neon", "neon glow", "neon edges", "cyberpunk", "cyberpunk neon"),
        "cartoon": ("cartoon", "comic ink", "comic book", "anime", "cartoon comic"),
        "watercolor": ("watercolor", "watercolor painting", "aquarelle", "watercolor wash"),
        "oil": ("oil painting", "oil", "impressionist painting", "oil canvas"),
        "thermal": ("thermal", "thermal camera", "infrared", "heat"),
        "noir": ("noir", "film noir", "black white", "monochrome"),
        "sepia": ("sepia", "sepia photo", "vintage photo", "vintage"),
        "pixel": ("pixel art", "pixel", "mosaic", "8bit", "8bit pixel"),
        "blueprint": ("blueprint", "technical drawing", "blueprint drawing"),
        "popart": ("pop art", "poster", "poster art", "warhol"),
        "night": ("night vision", "night"),
    }
)
"""Style → phrases that call it. The first is its usual name."""

MODIFIERS = ("warm", "cool", "vivid", "muted", "dark", "bright")
INKS = ("cyan", "magenta", "green", "orange", "blue", "red")
"""Colours of the line: of neon, pencil and charcoal."""

VOCABULARY: MappingProxyType[str, int] = MappingProxyType(
    {
        word: number + 1
        for number, word in enumerate(
            sorted(
                {w for p in PHRASES.values() for phrase in p for w in phrase.split()} | {*MODIFIERS, *INKS}
            )
        )
    }
)
"""Word → its number; 0 stands for no word. The order belongs to the weights: changing it needs a new training."""

SIZE = len(VOCABULARY) + 1

_SAME = {
    "colour": "color",
    "coloured": "colored",
    "watercolour": "watercolor",
    "crayons": "crayon",
    "pencils": "pencil",
    "pixels": "pixel",
    "pixelart": "pixel",
    "popart": "pop",
    "comics": "comic",
    "cartoons": "cartoon",
    "sketched": "sketch",
    "drawn": "drawing",
    "painted": "painting",
    "warmer": "warm",
    "cooler": "cool",
    "cold": "cool",
    "darker": "dark",
    "brighter": "bright",
    "thermographic": "thermal",
    "nightvision": "vision",
    "greyscale": "monochrome",
    "grayscale": "monochrome",
    "bw": "monochrome",
}
_WORD = re.compile(r"[a-z0-9]+")


def read(prompt: str) -> Ids:
    """The known words of a prompt, in any order and case; `8-bit` and British spelling are understood.

    At most MAX_WORDS numbers, none of them 0; () when nothing was understood: the picture stays as it is.
    """
    text = prompt[:MAX_CHARACTERS].lower().replace("8-bit", "8bit").replace("8 bit", "8bit")
    found: list[str] = _WORD.findall(text)
    words = [_SAME.get(w, w) for w in found]
    known = dict.fromkeys(VOCABULARY[w] for w in words if w in VOCABULARY)  # once each, in order
    return tuple(islice(known, MAX_WORDS))


def padded(ids: Iterable[int]) -> list[int]:
    """Numbers filled up with 0 to MAX_WORDS: rows of one batch have one shape."""
    few = list(islice(ids, MAX_WORDS))
    return few + [0] * (MAX_WORDS - len(few))
