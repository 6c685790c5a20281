"""Which of all that is said about the picture counts now. Policy only: times are given.

Sources, best first: the user's tap or box, boxes of a model that was asked, its attention, detectors. A better
source hides the others while it is fresh; what is past its time fades, as the sender fades it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..pipeline.clock import MS, SECOND
from .importance import (
    CELLS,
    DQP_MOST,
    GRID_H,
    GRID_W,
    HALF_LIFE,
    Box,
    ImportanceMap,
    Source,
    clip_box,
    grid_of,
    smoothed,
)
from .rt_messages import MAX_TTL_MS

NAMES = {  # of an event's `source`
    "boxes": Source.boxes,
    "attention": Source.attention,
    "detector": Source.detector,
    "reporter": Source.detector,
}
DETECTOR_DQP = 6  # blind detectors are wrong too often for more (docs/bitrate.md)
FOUND_DQP = 12  # … but for one that knows what it found; at 24 other print hid what was meant for good
MAX_BOXES = 32


class Attention:
    """`look` and `told` what is said; `current` is what holds."""

    def __init__(self) -> None:
        self._maps: dict[Source, ImportanceMap] = {}

    def look(self, box: Box | None, ttl: int, now: int) -> None:
        """The user points at a box, or (None) no longer does."""
        if box is None:
            self._maps.pop(Source.user, None)
        else:
            self._maps[Source.user] = ImportanceMap(grid_of([box]), 1.0, now, ttl, source=Source.user)

    def told(self, fields: Mapping[str, Any], now: int) -> None:
        """An `importance` event: `grid` (144 integers) or `boxes` (shares of the picture), confidence, ttl_ms, source,
        found (a detector has read what it found). Raises: ValueError naming the field."""
        name = fields.get("source")
        if not isinstance(name, str) or name not in NAMES:
            raise ValueError(f"importance: source is {name!r}; known: {', '.join(NAMES)}")
        source = NAMES[name]
        confidence, ttl_ms = fields.get("confidence"), fields.get("ttl_ms", 1500)
        if confidence is None or not _number(confidence) or not 0 <= confidence <= 1:
            raise ValueError(f"importance: confidence is {confidence!r}; 0 to 1 is taken")
        if not _number(ttl_ms) or not 0 <= ttl_ms <= MAX_TTL_MS:
            raise ValueError(f"importance: ttl_ms is {ttl_ms!r}; 0 to {MAX_TTL_MS} are taken")
        dqp = DQP_MOST if source != Source.detector else FOUND_DQP if fields.get("found") else DETECTOR_DQP
        made = ImportanceMap(_grid(fields), float(confidence), now, round(ttl_ms * MS), dqp, source)
        self._maps[source] = smoothed(self._maps.get(source), made) if source >= Source.attention else made

    def current(self, now: int) -> ImportanceMap | None:
        """The best map that still has any strength; None: uniform."""
        fading: ImportanceMap | None = None
        for source in sorted(self._maps):
            found = self._maps[source]
            if now - found.at > found.ttl + 4 * HALF_LIFE:
                del self._maps[source]
            elif found.dqp(now):
                if now - found.at <= found.ttl:
                    return found
                fading = fading or found
        return fading


def aged(found: ImportanceMap, now: int) -> ImportanceMap:
    """The same map with what is left of its time, for one who hears of it only now."""
    return replace(found, at=now, ttl=max(0, found.at + found.ttl - now))


def changed(old: ImportanceMap | None, new: ImportanceMap | None) -> bool:
    """Is it worth a message?"""
    if old is None or new is None:
        return old is not new
    if old.source != new.source or abs(old.confidence - new.confidence) > 0.1 or old.dqp_max != new.dqp_max:
        return True
    difference = np.abs(old.grid.astype(np.int16) - new.grid)
    return float(difference.mean()) > 0.02 * 255


UNIFORM = ImportanceMap(np.zeros((GRID_H, GRID_W), np.uint8), 0.0, 0, SECOND)


def _grid(fields: Mapping[str, Any]) -> NDArray[np.uint8]:
    given = fields.get("grid")
    if given is not None:
        if (
            not isinstance(given, list | tuple)
            or len(given) != CELLS
            or not all(_number(v) and 0 <= v <= 255 for v in given)
        ):
            raise ValueError(f"importance: grid must be {CELLS} numbers from 0 to 255")
        return np.asarray(given, np.float32).astype(np.uint8).reshape(GRID_H, GRID_W)
    boxes = fields.get("boxes")
    if not isinstance(boxes, list | tuple) or not 0 < len(boxes) <= MAX_BOXES:
        raise ValueError(f"importance: grid or up to {MAX_BOXES} boxes are needed")
    clipped: list[Box] = []
    for box in boxes:
        if not isinstance(box, list | tuple) or len(box) != 4 or not all(_number(v) for v in box):
            raise ValueError(f"importance: box {box!r:.60} is not [x, y, width, height]")
        if (inside := clip_box([float(v) for v in box])) is not None:
            clipped.append(inside)
    if not clipped:
        raise ValueError("importance: no box has anything of the picture")
    return grid_of(clipped, soft=True)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
