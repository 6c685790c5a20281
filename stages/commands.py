"""What the demo understands: the agent acts on these phrases, the recogniser listens for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

STYLES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "none": ("normal", "original"),
        "pencil": ("pencil sketch", "pencil", "sketch"),
        "neon": ("neon",),
        "cartoon": ("cartoon",),
        "thermal": ("thermal",),
        "noir": ("noir", "film noir", "black and white"),
        "pixel": ("pixel", "pixel art", "pixels"),
        "watercolor": ("watercolor",),
    }
)
"""Value of the restyle stage's `style` → the words people use for it, the best known first."""

_STYLE_PATTERNS = ("{}", "{} style", "make it {}", "show me {}", "switch to {}", "turn on {}")

_PHRASES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "time": ("what time is it", "what is the time", "what's the time", "tell me the time", "time"),
        "look": (
            "what do you see",
            "what can you see",
            "what do you see now",
            "describe what you see",
            "tell me what you see",
        ),
        "stop": ("stop", "stop it", "stop talking", "be quiet"),
        "help": ("help", "help me", "what can you do", "what can i say"),
        "hello": ("hello", "hello there", "hi", "hi there", "good morning", "good evening"),
        "thanks": ("thank you", "thanks"),
        "bye": ("goodbye",),
        "who": ("who are you", "what is your name"),
        "style:none": ("no style", "style off", "back to normal", "turn it off"),
    }
)

POLITE = frozenset({"please", "now", "hey", "okay", "so", "um", "uh", "computer"})
"""Said before or after a command without changing it."""


@dataclass(frozen=True, slots=True)
class Command:
    """`intent` is a key of the agent's replies; `style` is set where it is "style"."""

    intent: str
    style: str = ""


def _table() -> dict[str, Command]:
    table = {p: _command(key) for key, phrases in _PHRASES.items() for p in phrases}
    for style, names in STYLES.items():
        for name in names:
            for pattern in _STYLE_PATTERNS:
                table[pattern.format(name)] = Command("style", style)
    return table


def _command(key: str) -> Command:
    intent, _, style = key.partition(":")
    return Command(intent, style)


COMMANDS: Mapping[str, Command] = MappingProxyType(_table())
"""Phrase, in lower case without punctuation → what it asks for."""


def spoken_phrases() -> tuple[str, ...]:
    """All a language model should expect, with the polite forms people say most."""
    polite = tuple(f"{p} please" for p in COMMANDS)
    return (*COMMANDS, *polite)


def bare(words: list[str]) -> list[str]:
    """The words without polite ones at either end; as they are when nothing else is left."""
    first, last = 0, len(words)
    while first < last and words[first] in POLITE:
        first += 1
    while last > first and words[last - 1] in POLITE:
        last -= 1
    return words[first:last] or words


def exact(text: str) -> Command | None:
    """The command that `text` is, word for word but for politeness."""
    return COMMANDS.get(" ".join(bare(text.split())))
