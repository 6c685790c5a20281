"""`focus.detect`: after a question, finds the part of the picture that it is about, with no model at all.

The weakest of the sources of importance (docs/bitrate.md): it knows the kind of the question by its words, and looks for
codes, small print or motion. What it finds is a hint, told with little confidence; a code that it could locate, more.
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
from .question_rules import Need, need

Gray = NDArray[np.uint8]
LOCATED, PRINTED, MOVING = 0.6, 0.45, 0.45  # confidence
SMALL = (320, 240)
LETTER_SIDES = (4, 30, 40)  # pixels of the small picture: least height, most height, most width
LETTERS = 3  # in a cell and around it, before it counts as print
MOVED = 14  # levels that camera noise does not reach on a shrunk picture


def gray_of(frame: VideoFrame) -> Gray:
    """(H, W)."""
    if frame.format == "i420":
        return np.asarray(frame.image[: frame.height], np.uint8)
    return np.asarray(cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY), np.uint8)


class Detectors:
    """Stateless but for the last picture, which motion is measured against."""

    def __init__(self) -> None:
        self._codes: Any = cv2.QRCodeDetector()
        self._letters: Any = cv2.MSER_create(5, 12, 400)  # type: ignore[attr-defined]
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

    def print_(self, gray: Gray) -> NDArray[np.float32] | None:
        """(ROWS, COLUMNS): how many letter-like blobs there are; None when it looks like no print at all.

        Letters are maximally stable regions of like height, several together (Matas et al. 2002).
        """
        small = cv2.resize(gray, SMALL, interpolation=cv2.INTER_AREA)
        least, most, widest = LETTER_SIDES
        counts = np.zeros((ROWS, COLUMNS), np.float32)
        for x, y, w, h in self._letters.detectRegions(small)[1]:
            if least < h < most and w < widest:
                counts[int((y + h / 2) * ROWS / SMALL[1]), int((x + w / 2) * COLUMNS / SMALL[0])] += 1
        together = np.asarray(
            cv2.blur(counts, (3, 3), borderType=cv2.BORDER_CONSTANT), np.float32
        ) * np.float32(9)
        together[together < LETTERS] = 0
        return together if together.any() else None

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
        """Some 10 ms. Returns the fields of an `importance` event."""
        gray = gray_of(frame)
        fields: dict[str, Any] = {"ttl_ms": TTL_MS, "source": "detector"}
        if what == "motion":
            moved = self._detectors.motion(gray)
            return None if moved is None else fields | {"grid": grid_of(moved), "confidence": MOVING}
        if (codes := self._detectors.codes(gray)) is not None:
            return fields | {"grid": grid_of(codes), "confidence": LOCATED, "found": True}
        cells = self._detectors.print_(gray)
        return None if cells is None else fields | {"grid": grid_of(cells), "confidence": PRINTED}
