"""Standing questions, "tell me when …": rules on what is measured, each with hysteresis and a cooldown."""

# ruff: noqa: E501 - tables of patterns read best one a line

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from .event_log import Event
from .scene_words import WORDS, place, span, spell
from .sights import SECOND, Sight

COOLDOWN = 10 * SECOND  # before a rule that repeats may speak again
MOST = 8  # rules at one time

_CAN = (
    "I can tell you when something moves, also on one side; when all is still; when it gets dark or bright; "
    "when the picture goes black, freezes or comes back; and when its size changes."
)
# in a wish they are clear; in a question they may ask what cannot be known
_MORE_WORDS = frozenset({"back", "comes", "ends", "its", "stops", "unfrozen"})
_BACK = ("black_ended", "white_ended", "frozen_ended")


@dataclass(slots=True)
class Rule:
    """One standing question. It speaks when one of `events` happens, or when stillness has lasted."""

    words: str  # "something moves on the left"
    events: frozenset[str]
    region: str = ""  # only motion there
    still: int = 0  # ns without motion; then `events` is not looked at
    repeat: bool = False
    spoke: int | None = None  # ns
    armed: bool = True


def rule_from(line: str) -> Rule | str:
    """A rule from "tell me when …" in lower case, or in words why not."""
    found = re.search(r"\b(when|whenever|if|once|as soon as)\b(.*)", line)
    wish = found[2].strip() if found else ""
    strange = [w for w in wish.split() if w not in WORDS | _MORE_WORDS and not w.isdigit()]
    if strange or not wish:
        about = f"I know nothing of {strange[0]!r}. " if strange else ""
        return f"I cannot watch for that. {about}{_CAN}"
    repeat = found is not None and (found[1] == "whenever" or "every time" in line)
    if re.search(
        r"\b(still|quiet|calm|stops? moving|(motion|movement) (stops|ends)|not (move|moving|change|changing)"
        r"|(nothing|no|without)( is)? (moves|moving|motion|movement|happens|happening|changes|changing))\b",
        wish,
    ):
        length = span(wish) or 5 * SECOND
        return Rule(f"nothing moves for {spell(length / SECOND)}", frozenset(), still=length, repeat=repeat)
    denied = re.search(r"\b(not|no|nothing|without)\b", wish) is not None
    table: tuple[tuple[str, str, tuple[str, ...]], ...] = (
        (r"\b(freezes?|frozen|stuck|hangs|black|covered|off|white)\b", "the picture comes back", _BACK),
        (r"\b(dark|darker)\b", "it is no longer dark", ("got_lighter", "got_bright")),
        (r"\bbright\b", "it is no longer bright", ("got_dimmer", "got_dark")),
    ) if denied else (
        (r"\b(back|ends?|ended|unfrozen)\b", "the picture comes back", _BACK),
        (r"\b(freezes?|frozen|stuck|hangs)\b", "the picture freezes", ("frozen_started",)),
        (r"\b(black|covered|off)\b", "the picture goes black", ("black_started",)),
        (r"\bwhite\b", "the picture goes white", ("white_started",)),
        (r"\b(dark|darker)\b", "it gets dark", ("got_dark",)),
        (r"\b(bright|brighter|lighter)\b", "it gets brighter", ("got_bright", "got_lighter")),
        (r"\blight (changes?|changed)\b", "the light changes", ("got_dark", "got_bright", "got_lighter", "got_dimmer")),
        (r"\b(size|resolution)\b", "the size changes", ("size_changed",)),
        (r"\bagain\b", "the picture comes back", _BACK),
    )  # fmt: skip
    if (
        re.search(r"\b(moves?|moving|motion|movement|happens|changes|changed)\b", wish)
        and "light" not in wish
        and not denied
    ):
        sides = {"left": "left", "right": "right", "top": "top", "bottom": "bottom", "middle": "centre", "centre": "centre", "center": "centre"}  # fmt: skip
        side = next((region for word, region in sides.items() if re.search(rf"\b{word}\b", wish)), "")
        if not re.search(r"\b(size|resolution)\b", wish):
            where = place(side) if side else ""
            return Rule(
                f"something moves or changes{where}",
                frozenset({"motion_started"}),
                region=side,
                repeat=repeat,
            )
    for pattern, words, events in table:
        if re.search(pattern, wish):
            return Rule(words, frozenset(events), repeat=repeat)
    return f"I cannot watch for that. {_CAN}"


class Standing:
    """The rules of one session."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self._still_since: int | None = None

    def add(self, rule: Rule) -> str:
        """Take up a rule, in place of one that says the same. → what to say to it."""
        self.rules = [r for r in self.rules if r.words != rule.words]
        if len(self.rules) >= MOST:
            return f"I already watch for {MOST} things. Say stop telling me, and ask again."
        self.rules.append(rule)
        return f"I will tell you {'each time' if rule.repeat else 'when'} {rule.words}."

    def clear(self) -> str:
        n = len(self.rules)
        self.rules = []
        return "I was not watching for anything." if not n else "I have stopped watching for that."

    def see(self, sight: Sight, events: Sequence[Event]) -> list[str]:
        """What the rules have to say to a sight and its events."""
        if sight.blind or sight.motion is None or sight.region:
            self._still_since = None
        elif self._still_since is None:
            self._still_since = sight.at
        said: list[str] = []
        for rule in list(self.rules):
            if not self._fires(rule, sight, events):
                continue
            rule.spoke = sight.at
            if not rule.repeat:
                self.rules.remove(rule)
            said.append(f"You asked me to tell you: {rule.words}.")
        return said

    def _fires(self, rule: Rule, sight: Sight, events: Sequence[Event]) -> bool:
        if rule.still:
            quiet = self._still_since is not None and sight.at - self._still_since >= rule.still
            fires, rule.armed = quiet and rule.armed, not quiet  # again only after something has moved
        elif rule.region:
            # motion that began elsewhere and gets there counts too
            there = sight.region == rule.region and not sight.blind
            fires, rule.armed = there and rule.armed, not there
        else:
            fires = any(e.what in rule.events for e in events)
        return fires and (rule.spoke is None or sight.at - rule.spoke >= COOLDOWN)
