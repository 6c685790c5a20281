"""`focus.detect`: after a question, finds the part of the picture that it is about, with no model at all.

The weakest of the sources of importance (docs/bitrate.md): it knows the kind of the question by its words, and looks for
print (`print_finder.py`), codes or motion. What it finds is a hint, told with little confidence; print that it saw again and
again, and a code that it could locate, with more.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ..pipeline.clock import SECOND
from ..pipeline.frame import Frame, Gap, TokenFrame, VideoFrame
from ..pipeline.stage import In, Outputs, Ports, Stage
from ..pipeline.units import Duration
from .importance import COLUMNS, ROWS, TTL_MS, grid_of
from .print_finder import PrintMemory, find_print
from .question_rules import Need, need

Gray = NDArray[np.uint8]
LOCATED, MOVING = 0.6, 0.45  # confidence
MOVED = 14  # levels that camera noise does not reach on a shrunk picture


def gray_of(frame: VideoFrame) -> Gray:
    """(H, W)."""
    if frame.format == "i420":
        return np.asarray(frame.image[: frame.height], np.uint8)
    return np.asarray(cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY), np.uint8)


class Detectors:
    """Remembers the last picture, which motion is measured against, and what was print."""

    def __init__(self) -> None:
        self._codes: Any = cv2.QRCodeDetector()
        self._print = PrintMemory()
        self._last: NDArray[np.float32] | None = None

    def codes(self, gray: Gray) -> NDArray[np.float32] | None:
        """(ROWS, COLUMNS): 1 where a QR code is, and in the cells around it; None when there is none."""
        found, corners = self._codes.detectMulti(gray)
        if not found:
            return None
        height, width = gray.shape
        cells = np.zeros((ROWS, COLUMNS), np.float32)
        for quad in corners:
            left, top = (quad.min(0) * (COLUMNS / width, ROWS / height)).astype(int) - 1
            right, bottom = (quad.max(0) * (COLUMNS / width, ROWS / height)).astype(int) + 2
            cells[max(0, top) : max(0, bottom), max(0, left) : max(0, right)] = 1
        return cells

    def text(self, gray: Gray, now: int) -> dict[str, Any] | None:
        """The fields of an `importance` event: surfaces that are printed on, or else a code; None when there is neither."""
        fields: dict[str, Any] = {"ttl_ms": TTL_MS, "source": "detector"}
        if (found := self._print.look(find_print(gray), now)) is not None:
            boxes, confidence = found
            return fields | {"boxes": boxes, "confidence": confidence, "found": confidence >= LOCATED}
        if (codes := self.codes(gray)) is not None:
            return fields | {"grid": grid_of(codes), "confidence": LOCATED, "found": True}
        return None

    def motion(self, gray: Gray) -> NDArray[np.float32] | None:
        """(ROWS, COLUMNS): change that the motion of the camera does not explain; None when there is none."""
        small = cv2.resize(gray, (160, 120), interpolation=cv2.INTER_AREA).astype(np.float32)
        last, self._last = self._last, small
        if last is None:
            return None
        (dx, dy), _ = cv2.phaseCorrelate(last, small)
        shift = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
        moved = np.abs(small - cv2.warpAffine(last, shift, (160, 120), borderMode=cv2.BORDER_REPLICATE))
        moved[moved < MOVED] = 0
        cells = np.asarray(cv2.resize(moved, (COLUMNS, ROWS), interpolation=cv2.INTER_AREA), np.float32)
        share = float((cells > 0).mean())
        return cells if 0 < share < 0.6 else None  # everywhere is nowhere


class FocusOptions(BaseModel):
    """hold: how long a question stays the one in question. fetch: ask the sender for a still of what was found."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    hold: Duration = Field(default=20 * SECOND, gt=0)
    fetch: bool = False


class FocusDetect(Stage):
    """After a question, hints at the part of the picture that it is about. A picture a second is enough."""

    ports = Ports({"video": In(VideoFrame), "ask": In(TokenFrame, many=True)}, {})
    Options = FocusOptions

    async def setup(self) -> None:
        self._detectors = Detectors()
        self._need: Need = "unknown"
        self._until = -1
        self._fetch = False

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        if isinstance(frame, TokenFrame):
            self._need, self._until = need(frame.text), frame.pts + self.options.hold
            self._fetch = self.options.fetch and self._need == "text"
        elif isinstance(frame, VideoFrame) and frame.pts < self._until and self._need in ("text", "motion"):
            found = await self.ctx.pool().call(self._find, frame, self._need)
            if found is not None:
                self.ctx.emit("importance", **found)
            if self._fetch:
                self._fetch = False
                self.ctx.emit("fetch")  # where attention is now, or the whole picture

    def gap(self, port: str, gap: Gap, out: Outputs) -> None:
        """The next picture is as good."""

    def _find(self, frame: VideoFrame, what: Need) -> dict[str, Any] | None:
        """20 to 80 ms of a core. Returns the fields of an `importance` event."""
        gray = gray_of(frame)
        if what == "text":
            return self._detectors.text(gray, frame.pts)
        moved = self._detectors.motion(gray)
        if moved is None:
            return None
        return {"ttl_ms": TTL_MS, "source": "detector", "grid": grid_of(moved), "confidence": MOVING}
