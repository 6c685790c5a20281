"""What can be measured of a camera's pictures: brightness, colours, motion and where, whether it is frozen.

It recognises no things and no people (see models/scene_reporter.py).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ..models.event_log import Event
from ..models.scene_words import event_sentence
from ..models.sights import LEAST_MOTION, SECOND, Sight
from ..pipeline.frame import EventFrame, VideoFrame
from .look import Image, colour_votes, thumbnail

_NOISE = 12  # levels that a sensor's noise changes a blurred thumbnail by, at most
_RELIT = 3  # levels of the median change: more than half of the picture got brighter or darker together
_APART = 2 * SECOND  # two pictures further apart say nothing of motion
_MOST = 0.8  # of the changed pixels have to be in a region before it is named


def region_of(moved: NDArray[np.bool_]) -> str:
    """Where the changed pixels (H, W) are; "somewhere" when they are in no one place, "" when they are too few."""
    if moved.mean() < LEAST_MOTION:
        return ""
    height, width = moved.shape
    rows, columns = np.nonzero(moved)
    x, y = (columns + 0.5) / width, (rows + 0.5) / height
    cells = np.histogram2d(y, x, bins=3, range=((0, 1), (0, 1)))[0] / (height * width / 9)
    if (cells > 0.1).sum() >= 7:
        return "everywhere"
    inside = {
        "centre": (np.abs(x - 0.5) < 0.25) & (np.abs(y - 0.5) < 0.25),
        "left": x < 0.4,
        "right": x > 0.6,
        "top": y < 0.4,
        "bottom": y > 0.6,
    }
    for name, where in inside.items():
        if where.mean() >= _MOST:
            return name
    return "somewhere"


class Measure:
    """Pictures → sights. It keeps the last picture, nothing else."""

    def __init__(self) -> None:
        self._last: VideoFrame | None = None
        self._blurred: NDArray[np.int16] | None = None  # (48, 64, 3)
        self._same_since = 0  # pts of the first of the equal pictures
        self.moved: NDArray[np.bool_] | None = None  # (48, 64) what changed; None when it cannot be told

    def __call__(self, frame: VideoFrame) -> Sight:
        rgb: Image = thumbnail(frame)
        sharp = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        blurred = cv2.blur(rgb, (3, 3)).astype(np.int16)
        last, before = self._last, self._blurred
        fresh = last is None or last.image.shape != frame.image.shape or last.format != frame.format
        if last is None or fresh or not np.array_equal(last.image, frame.image):
            self._same_since = frame.pts
        self._last, self._blurred = frame, blurred
        motion, region, relit = None, "", False
        self.moved = None
        if last is not None and before is not None and not fresh and frame.pts - last.pts <= _APART:
            change = blurred - before
            relit = abs(float(np.median(change.mean(-1)))) >= _RELIT
            if not relit:
                moved = np.abs(change).max(-1) > _NOISE  # red on green of one brightness is motion too
                motion, region = float(moved.mean()), region_of(moved)
                self.moved = moved
        votes = colour_votes(rgb)
        total = sum(votes.values())
        return Sight(
            frame.pts, float(sharp.mean()) / 255, {name: n / total for name, n in votes.items()}, motion, region,
            (frame.pts - self._same_since) / SECOND, frame.width, frame.height, relit,
        )  # fmt: skip


def event_frame(event: Event, frame: VideoFrame, epoch: int) -> EventFrame:
    """A measured event for those outside."""
    fields = {**event.fields, "sentence": event_sentence(event)}
    if event.thing:
        fields["region"] = event.thing
    return EventFrame(pts=event.at, deadline=frame.deadline, epoch=epoch, name=event.what, fields=fields)
