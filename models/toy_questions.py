"""What can be asked about the synthetic world, with the true answer: the toy VLM's lessons and its examination."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .toy_world import (
    COLOURS,
    DIRECTIONS,
    SHAPES,
    SIZE,
    Happening,
    Image,
    Thing,
    Tick,
    brightness_name,
    main_colour,
    motion_name,
)

NUMBERS = ("zero", "one", "two", "three")
SHARES = {  # of the examination, as in the pilot
    "count": 0.1, "color": 0.1, "shape": 0.1, "where": 0.1, "moves": 0.1, "exist": 0.06, "bright": 0.05,
    "motion": 0.05, "main": 0.05, "left": 0.13, "came": 0.08, "was": 0.08,
}  # fmt: skip
_KINDS, _WEIGHTS = tuple(SHARES), np.array(tuple(SHARES.values()))
WORDS = (
    "<pad>", "<sys>", "<look>", "<silence>", "<ask>", "<answer>", "<end>",
    "how", "many", "shapes", "what", "color", "shape", "is", "the", "where", "which", "way", "moves", "there",
    "bright", "motion", "main", "much", "left", "came", "last", "was", "yes", "no", "nothing",
    *NUMBERS, "center", "right", "up", "down", "still", "dark", "medium", "none", "little", "gray",
    *SHAPES, *COLOURS,
)  # fmt: skip
COLOURS_AND_SHAPES = frozenset((*COLOURS, *SHAPES))
INDEX = {word: i for i, word in enumerate(WORDS)}


def encode(text: str) -> list[int]:
    """Words → ids. Raises: ValueError naming a word that the toy does not know."""
    ids: list[int] = []
    for word in text.lower().replace("colour", "color").replace("?", " ").split():
        if word in ("a", "an"):
            continue
        if word not in INDEX or word.startswith("<"):
            raise ValueError(
                f"the toy VLM does not know the word {word!r}; ask it, for example, "
                "'how many shapes' or 'what color is the circle'"
            )
        ids.append(INDEX[word])
    return ids


@dataclass(frozen=True, slots=True)
class Moment:
    """The truth about one tick, without its picture."""

    things: tuple[Thing, ...]
    happening: Happening | None
    brightness: str
    motion: str
    main: str
    first: bool  # nothing is before it: nothing has moved


def moment(now: Tick, before: Image | None) -> Moment:
    """What is true of a tick whose predecessor showed `before`."""
    image = now.image
    return Moment(
        now.things, now.happening, brightness_name(image), motion_name(before, image), main_colour(image),
        before is None,
    )  # fmt: skip


def question(
    rng: np.random.Generator, now: Moment, past: Sequence[Happening], kind: str | None = None
) -> tuple[str, str, str]:
    """(kind, question, answer) about `now`; `past`: what happened up to it, oldest first.

    A kind that the picture does not allow (the colour of nothing) becomes a count.
    """
    kind = kind or str(rng.choice(_KINDS, p=_WEIGHTS / _WEIGHTS.sum()))
    things = now.things
    match kind:
        case "bright":
            return kind, "how bright", now.brightness
        case "motion":
            return kind, "how much motion", now.motion
        case "main":
            return kind, "what main color", now.main
        case "left" | "came":
            names = [h.name for h in past if h.what == kind]
            return kind, f"what {kind} last", names[-1] if names else "nothing"
        case "was":
            seen = {h.name.split()[0] for h in past} | {COLOURS[t.colour] for t in things}
            pick = sorted(seen) if seen and rng.random() < 0.5 else COLOURS
            colour = str(rng.choice(pick))
            return kind, f"was there {colour}", "yes" if colour in seen else "no"
        case "exist":
            shape, colour = int(rng.integers(len(SHAPES))), int(rng.integers(len(COLOURS)))
            if things and rng.random() < 0.6:
                thing = things[int(rng.integers(len(things)))]
                colour, shape = thing.colour, thing.shape if rng.random() < 0.7 else shape
            there = any(t.colour == colour and t.shape == shape for t in things)
            return kind, f"is there {COLOURS[colour]} {SHAPES[shape]}", "yes" if there else "no"
        case "color":
            alone = [t for t in things if sum(o.shape == t.shape for o in things) == 1]
            if alone:
                thing = alone[int(rng.integers(len(alone)))]
                return kind, f"what color is the {SHAPES[thing.shape]}", COLOURS[thing.colour]
        case "shape" | "where" | "moves" if things:
            thing = things[int(rng.integers(len(things)))]
            colour = COLOURS[thing.colour]
            if kind == "shape":
                return kind, f"what shape is {colour}", SHAPES[thing.shape]
            if kind == "where":
                side = "left" if thing.x < SIZE / 3 else "right" if thing.x > 2 * SIZE / 3 else "center"
                return kind, f"where is {colour}", side
            fresh = now.happening is not None and now.happening.name == thing.name
            if not now.first and not fresh:  # what has just come has not moved yet
                return kind, f"which way {colour} moves", DIRECTIONS[thing.direction]
        case _:
            pass
    return "count", "how many shapes", NUMBERS[len(things)]
