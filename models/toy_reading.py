"""What the toy's eye sees now, read off without its decoder: is a thing there, which colour, which shape, on which side.

The eye knows these at 99 %; asked in words, the decoder loses a third of them on the way (benchmarks/LOG.md). What the
eye does not speak of (what left, how much motion, how many there were) is the decoder's and the log's to answer.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from torch import Tensor

from .toy_vlm import CELL_PARTS
from .toy_world import COLOURS, SHAPES

_SHAPE = 1
_COLOUR = _SHAPE + len(SHAPES)
_C, _S = "|".join(COLOURS), "|".join(SHAPES)
_IS_THERE = re.compile(rf"is there (?:an? )?({_C}) ({_S})")
_WHAT_SHAPE = re.compile(rf"what shape is ({_C})")
_WHAT_COLOUR = re.compile(rf"what color is the ({_S})")
_WHERE = re.compile(rf"where is ({_C})")
_SIDES = ("left", "center", "right")
assert sum(CELL_PARTS[1:3]) + 1 == _COLOUR + len(COLOURS)


class Read(NamedTuple):
    answer: str
    p: float
    at: int | None = None  # the thing that it is about


def read(line: str, things: Tensor) -> Read | None:
    """A question in lower case, things (n, THING) as `toy_vlm.things` gives them.

    None where the question is another one, or is about a thing that is not seen.
    """
    line = " ".join(line.replace("colour", "color").replace("?", " ").split())
    there = things[:, 0].clamp_min(1e-6)
    shapes, colours = things[:, _SHAPE:_COLOUR], things[:, _COLOUR : _COLOUR + len(COLOURS)]  # times `there`
    if found := _IS_THERE.fullmatch(line):
        both = colours[:, COLOURS.index(found[1])] * shapes[:, SHAPES.index(found[2])] / there
        p = float(both.max())
        return Read("yes", p, int(both.argmax())) if p > 0.5 else Read("no", 1 - p)
    if found := _WHAT_COLOUR.fullmatch(line):
        return _of(shapes[:, SHAPES.index(found[1])], colours / there[:, None], COLOURS)
    by_colour = _WHAT_SHAPE.fullmatch(line), _WHERE.fullmatch(line)
    for found, parts, names in zip(by_colour, (shapes, things[:, -3:]), (SHAPES, _SIDES), strict=True):
        if found:
            return _of(colours[:, COLOURS.index(found[1])], parts / there[:, None], names)
    return None


def _of(which: Tensor, parts: Tensor, names: tuple[str, ...]) -> Read | None:
    """The likeliest name of the thing that `which` (n,) points at."""
    at = int(which.argmax())
    if which[at] < 0.5:
        return None
    p = parts[at]
    return Read(names[int(p.argmax())], float(which[at] * p.max() / p.sum().clamp_min(1e-6)), at)
