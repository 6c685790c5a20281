"""The sharp part of a picture that was sent as a crop and its context (`VideoFrame.sharp`), as a picture of its own.

A model that shrinks pictures to its own size would lose what the sender took care to send: it is shown the whole, and the
crop beside it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from ..pipeline.frame import Frame, VideoFrame
from ..pipeline.pixels import to_rgb
from .importance import COLUMNS, ROWS

Box = tuple[float, float, float, float]


def close_up(frame: Frame) -> VideoFrame | None:
    """rgb24; None when all of the picture is equally sharp."""
    if not isinstance(frame, VideoFrame) or frame.sharp is None:
        return None
    x, y, w, h = frame.sharp
    rgb = to_rgb(frame)
    height, width = rgb.shape[:2]
    left, top = min(round(x * width), width - 1), min(round(y * height), height - 1)
    right, bottom = max(left + 1, round((x + w) * width)), max(top + 1, round((y + h) * height))
    cut = np.ascontiguousarray(rgb[top:bottom, left:right])
    return replace(frame, image=cut, format="rgb24", sharp=None)


def placed(weights: NDArray[Any], box: Box) -> NDArray[np.float32]:
    """Weights over a close-up (H, W) → over the whole picture that it was cut from (ROWS, COLUMNS)."""
    whole = np.zeros((ROWS, COLUMNS), np.float32)
    left, top = min(round(box[0] * COLUMNS), COLUMNS - 1), min(round(box[1] * ROWS), ROWS - 1)
    right, bottom = (
        max(left + 1, round((box[0] + box[2]) * COLUMNS)),
        max(top + 1, round((box[1] + box[3]) * ROWS)),
    )
    inside = cv2.resize(
        weights.astype(np.float32), (right - left, bottom - top), interpolation=cv2.INTER_LINEAR
    )
    whole[top:bottom, left:right] = inside[: ROWS - top, : COLUMNS - left]
    return whole
