"""Which parts of the picture matter now: what a watching stage tells the encoder, so that bits go there.

An `importance` event, and an EventFrame of that name, hold

    grid        144 integers 0-255, row by row: 16 columns × 9 rows over the whole picture, 255 the most important
    confidence  0-1: how much the sender would bet on it; 0.3 is a hint, 0.8 is where an answer was read from
    ttl_ms      for how long it holds when nothing newer comes
    source      "attention" (a model's, onto the picture it answered from) or "reporter" (measured motion)

ADR 0012.
"""

from __future__ import annotations

from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from ..pipeline.frame import EventFrame, Frame
from ..pipeline.stage import Context

COLUMNS, ROWS = 16, 9
TTL_MS = 1500


def grid_of(weights: NDArray[Any]) -> list[int]:
    """(H, W) of any size, not negative → 144 integers; areas are averaged, the largest becomes 255."""
    small = cv2.resize(weights.astype(np.float32), (COLUMNS, ROWS), interpolation=_way(weights))
    top = float(small.max())
    scaled = np.zeros_like(small) if top <= 0 else small * (255 / top)
    return [int(x) for x in np.rint(scaled).clip(0, 255).ravel()]


def _way(weights: NDArray[Any]) -> int:
    return cv2.INTER_AREA if weights.shape[0] >= ROWS and weights.shape[1] >= COLUMNS else cv2.INTER_LINEAR


def tell(
    ctx: Context,
    cause: Frame,
    weights: NDArray[Any],
    confidence: float,
    source: Literal["attention", "reporter"],
    epoch: int,
) -> EventFrame:
    """Emit the event to the session, and make the frame for those that are wired to it."""
    fields = {
        "grid": grid_of(weights),
        "confidence": round(min(1.0, max(0.0, confidence)), 3),
        "ttl_ms": TTL_MS,
        "source": source,
    }
    ctx.emit("importance", **fields)
    return EventFrame(pts=cause.pts, deadline=cause.deadline, epoch=epoch, name="importance", fields=fields)
