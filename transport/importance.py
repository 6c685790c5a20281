"""Where in the picture the bits belong: a grid of importance, how far it is trusted, and for how long.

Policies only: times are given. The grid is GRID_W × GRID_H cells over the whole picture, whatever its size.
Source of the scheme: "Chat with AI", arXiv 2507.10510 (the further from what matters, the coarser the quantiser);
the steps by confidence were measured (docs/bitrate.md): a wrong map at full strength costs more than it ever saves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from ..pipeline.clock import MS, SECOND

GRID_W, GRID_H = 16, 9
CELLS = GRID_W * GRID_H
DQP_MOST = 24  # steps of the H.264 quantiser between what matters most and least
CONFIDENT = ((0.8, 24.0), (0.6, 12.0), (0.4, 5.0))  # confidence from which on that many steps are dared
TTL = 1500 * MS
HALF_LIFE = 3 * SECOND  # of the strength, after the time to live
FAINT = 1.5  # steps; weaker is uniform
LEVELS = 3  # of a map's strength, beside 0: few regions, and VP8 has four segments

Box = tuple[float, float, float, float]
"""(x, y, width, height), shares of the picture in [0, 1]."""


class Source(IntEnum):
    """Who says so, the most trusted first."""

    user = 0  # a tap or a box
    boxes = 1  # of a model that was asked
    attention = 2  # of a model's layers
    detector = 3


@dataclass(frozen=True, slots=True)
class ImportanceMap:
    """grid: uint8 (GRID_H, GRID_W), 255 matters most. at: since when it holds, ns on the reader's clock."""

    grid: NDArray[np.uint8]
    confidence: float
    at: int
    ttl: int = TTL
    dqp_max: float = DQP_MOST
    source: Source = Source.detector
    seq: int = 0

    def strength(self, now: int) -> float:
        """1 while it is fresh, then halved every HALF_LIFE: a stale map fades into uniform."""
        stale = now - self.at - self.ttl
        return 1.0 if stale <= 0 else 0.5 ** (stale / HALF_LIFE)

    def dqp(self, now: int) -> float:
        """Steps of the quantiser between the most and the least important cell, 0 when none are dared."""
        dared = next((steps for least, steps in CONFIDENT if self.confidence >= least), 0.0)
        steps = min(dared, self.dqp_max) * self.strength(now)
        return steps if steps >= FAINT and int(self.grid.max()) > int(self.grid.min()) else 0.0


@dataclass(frozen=True, slots=True)
class Region:
    """Pixels [top, bottom) × [left, right), and the steps of the quantiser that they are coarser by."""

    top: int
    bottom: int
    left: int
    right: int
    dqp: float


def clip_box(box: Sequence[float]) -> Box | None:
    """The part of a box inside the picture; None when there is none, or it is no box at all."""
    if len(box) != 4 or not all(math.isfinite(v) for v in box):
        return None
    x0, y0 = max(0.0, box[0]), max(0.0, box[1])
    x1, y1 = min(1.0, box[0] + box[2]), min(1.0, box[1] + box[3])
    if x1 - x0 <= 1e-6 or y1 - y0 <= 1e-6:
        return None
    return x0, y0, x1 - x0, y1 - y0


def grid_of(boxes: Iterable[Box], soft: bool = False) -> NDArray[np.uint8]:
    """(GRID_H, GRID_W): 255 in each cell that a box touches. soft: the cells beside them get half, for things
    that move."""
    grid = np.zeros((GRID_H, GRID_W), np.uint8)
    for x, y, w, h in boxes:
        columns = slice(int(x * GRID_W), max(int(x * GRID_W) + 1, math.ceil((x + w) * GRID_W - 1e-9)))
        rows = slice(int(y * GRID_H), max(int(y * GRID_H) + 1, math.ceil((y + h) * GRID_H - 1e-9)))
        grid[rows, columns] = 255
    if soft:
        near = np.pad(grid, 1)
        around = np.max([near[r : r + GRID_H, c : c + GRID_W] for r in range(3) for c in range(3)], axis=0)
        grid = np.maximum(grid, around // 2)
    return grid


def smoothed(old: ImportanceMap | None, new: ImportanceMap, weight: float = 0.5) -> ImportanceMap:
    """The new map, its grid averaged with the old one's of the same source: a model's attention flickers."""
    if old is None or old.source != new.source or new.at - old.at > old.ttl + HALF_LIFE:
        return new
    mixed = weight * new.grid.astype(np.float32) + (1 - weight) * old.grid
    top = float(mixed.max())
    return replace(new, grid=(mixed * (255 / top if top else 0)).astype(np.uint8))


def regions(grid: NDArray[np.uint8], dqp: float, width: int, height: int, most: int = 16) -> list[Region]:
    """At most `most` rectangles that cover the picture; where they overlap the first one holds.

    Cells are put into LEVELS + 1 steps; those of a step are joined to rectangles, the important ones first. What finds
    no room counts as unimportant but for the finest step, whose bounding box is taken instead.
    """
    steps = np.rint(grid.astype(np.float32) * (LEVELS / 255)).astype(int)
    found: list[Region] = []
    room = most - 1
    for level in range(LEVELS, 0, -1):
        rectangles = _rectangles(steps == level)
        if len(rectangles) > room and level == LEVELS:
            rows, columns = np.nonzero(steps == level)
            rectangles = [(rows.min(), rows.max() + 1, columns.min(), columns.max() + 1)]
        for top, bottom, left, right in rectangles[:room]:
            found.append(
                Region(
                    top * height // GRID_H,
                    -(-bottom * height // GRID_H),
                    left * width // GRID_W,
                    -(-right * width // GRID_W),
                    dqp * (1 - level / LEVELS),
                )
            )
        room = most - 1 - len(found)
    return [*found, Region(0, height, 0, width, dqp)]


def _rectangles(cells: NDArray[np.bool_]) -> list[tuple[int, int, int, int]]:
    """(top, bottom, left, right) of rectangles that hold the true cells, each once, the largest first."""
    left_over = cells.copy()
    found: list[tuple[int, int, int, int]] = []
    for top in range(GRID_H):
        for left in range(GRID_W):
            if not left_over[top, left]:
                continue
            right = left
            while right < GRID_W and left_over[top, right]:
                right += 1
            bottom = top
            while bottom < GRID_H and left_over[bottom, left:right].all():
                bottom += 1
            left_over[top:bottom, left:right] = False
            found.append((top, bottom, left, right))
    return sorted(found, key=lambda r: (r[0] - r[1]) * (r[3] - r[2]))
