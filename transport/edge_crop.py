"""What an edge client cuts out: the cells that matter as a track of their own, the whole picture small as another.

The same choice as a browser's (web/crop.js, web/gaze.js), for the same server (docs/protocol.md, "Crop and context").
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from ..pipeline.frame import VideoFrame
from ..pipeline.pixels import i420_from_rgb, i420_planes
from .crop_track import BLOCK, COLUMNS, STRIP, Cells, pixels_of, stamped_i420
from .importance import GRID_H, GRID_W, ImportanceMap, Source

# steps of the quantiser from which on a crop is dared: what is only guessed stays in the picture
SENT_FROM = 6.0
MOST = 0.6  # of the picture: a larger crop saves nothing
CONTEXT_WIDTH = 160
CONTEXT_FPS = 1.0
CONTEXT_KBPS = 12  # until the server divides


def choose(
    last: Cells | None, found: ImportanceMap | None, now: int, width: int, height: int
) -> Cells | None:
    """The crop to send of a picture of that size, `last` being the one before; None for the whole picture."""
    if found is None or not width or found.source == Source.detector or found.dqp(now) < SENT_FROM:
        return None  # detectors would never again see what is not in their crop
    rows, columns = np.nonzero(found.grid.astype(int) * 2 >= int(found.grid.max()))
    left, right, top, bottom = (int(v) for v in (columns.min(), columns.max(), rows.min(), rows.max()))
    # no less than holds a stamp
    w = max(right + 1 - left, -(-COLUMNS * BLOCK * GRID_W // width))
    h = max(bottom + 1 - top, -(-2 * STRIP * GRID_H // height))
    if w > GRID_W or h > GRID_H:
        return None
    x = min(GRID_W - w, max(0, (left + right + 1 - w) // 2))
    y = min(GRID_H - h, max(0, (top + bottom + 1 - h) // 2))
    return follow(last, (x, y, w, h))


def follow(last: Cells | None, wanted: Cells) -> Cells | None:
    """No smaller than the last crop, so that encoders seldom begin anew; None: nearly all is wanted."""
    x, y, w, h = wanted
    if w * h > MOST * GRID_W * GRID_H:
        return None
    wide, high = (max(w, last[2]), max(h, last[3])) if last is not None else (w, h)
    if last is None or wide * high > 2 * w * h:
        return wanted
    x = min(GRID_W - wide, _into(last[0], wide, x, w))
    y = min(GRID_H - high, _into(last[1], high, y, h))
    return x, y, wide, high


def _into(at: int, size: int, start: int, length: int) -> int:
    """Where a window of that size, now at `at`, begins when it has moved no more than it must to hold the length."""
    return min(max(at, start + length - size), start)


def crop_of(frame: VideoFrame, cells: Cells) -> VideoFrame:
    """The cells of a picture, i420 with their stamp."""
    left, top, right, bottom = pixels_of(cells, frame.width & ~1, frame.height & ~1)
    planes = i420_planes(_i420(frame))
    cut = [
        plane[top // half : bottom // half, left // half : right // half]
        for plane, half in zip(planes, (1, 2, 2), strict=True)
    ]
    return replace(frame, image=stamped_i420(cut, cells), format="i420")


def context_of(frame: VideoFrame) -> VideoFrame:
    """The whole picture small, i420 with its stamp."""
    width = min(CONTEXT_WIDTH, frame.width & ~1)
    height = max(2, round(width * frame.height / frame.width / 2) * 2)
    small = [
        np.asarray(cv2.resize(plane, (width // half, height // half), interpolation=cv2.INTER_AREA), np.uint8)
        for plane, half in zip(i420_planes(_i420(frame)), (1, 2, 2), strict=True)
    ]
    return replace(frame, image=stamped_i420(small, None), format="i420")


def _i420(frame: VideoFrame) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return frame.image if frame.format == "i420" else i420_from_rgb(frame.image)
