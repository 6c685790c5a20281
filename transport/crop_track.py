"""A crop and its context: two tracks that stand for one whole picture (docs/protocol.md, "Crop and context").

A browser cannot tell its encoder of regions, but it can send the region that matters as a track of its own, and the
whole picture small and seldom as another. Each of their pictures carries a stamp that says what it is and where it
belongs: 32 black and white blocks in 16 rows below the picture. So a picture and its place cannot come apart, whatever is lost
on the way; header extensions, which would do it too, browsers do not let a page write.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from ..pipeline.clock import MS
from ..pipeline.frame import PixelFormat, VideoFrame
from ..pipeline.pixels import i420_planes, rgb_from_i420
from ..pipeline.units import VideoFormat
from .fit import VideoFit, media_time
from .importance import GRID_H, GRID_W, Box

Image = NDArray[np.uint8]
Cells = tuple[int, int, int, int]
"""(left, top, width, height) in cells of the importance grid."""

BLACK, WHITE = 16, 235  # luma
STRIP, BLOCK = 16, 8  # rows below the picture; side of a block, px
COLUMNS, BITS = 16, 32
CROP, CONTEXT = 0xB6, 0x49  # the first byte: they differ in every bit
SCALES = (1.0, 0.75, 2 / 3, 0.5)  # by which a sender short of bits or CPU makes its pictures smaller
CERTAIN = 40  # levels that a block's mean is away from gray
FRESH = 1500 * MS  # a crop that is older stands still: the context is shown alone


@dataclass(frozen=True, slots=True)
class Stamp:
    """cells: where a crop belongs, None for the context. rows: of the picture above the strip."""

    cells: Cells | None
    rows: int


@dataclass(frozen=True, slots=True)
class Part:
    """What a track gives: a picture without its stamp. at: media time, ns. stamp None: a whole picture."""

    at: int
    image: Image
    stamp: Stamp | None


def _crc(data: bytes) -> int:
    """CRC-8, polynomial x^8 + x^2 + x + 1 (ITU-T I.432.1)."""
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1) ^ 0x07 if crc & 0x80 else crc << 1
    return crc & 0xFF


def stamp_bits(cells: Cells | None) -> int:
    """32 bits, the first block's the highest: kind, left and top, width - 1 and height - 1 (4 bits each), CRC-8."""
    x, y, w, h = cells or (0, 0, 1, 1)
    head = bytes((CROP if cells else CONTEXT, x << 4 | y, (w - 1) << 4 | (h - 1)))
    return int.from_bytes(head + bytes((_crc(head),)))


def read_stamp(luma: Image) -> Stamp | None:
    """luma (H, W): the whole picture as it was decoded. None when it has no stamp that can be read."""
    for scale in SCALES:
        strip, block = STRIP * scale, BLOCK * scale
        rows = round(luma.shape[0] - strip)
        if rows < strip or luma.shape[1] < COLUMNS * block:
            continue
        found = _read(luma, rows, block)
        if found is not None:
            return found
    return None


def _read(luma: Image, rows: int, block: float) -> Stamp | None:
    bits = 0
    inner = max(1, round(block / 4))
    for n in range(BITS):
        top = rows + (n // COLUMNS) * block
        left = (n % COLUMNS) * block
        middle = luma[
            int(top) + inner : int(top + block) - inner, int(left) + inner : int(left + block) - inner
        ]
        level = float(middle.mean()) if middle.size else 126.0
        if abs(level - 126) < CERTAIN:
            return None
        bits = bits << 1 | (level > 126)
    head, crc = (bits >> 8).to_bytes(3), bits & 0xFF
    if _crc(head) != crc or head[0] not in (CROP, CONTEXT):
        return None
    if head[0] == CONTEXT:
        return Stamp(None, rows)
    x, y, w, h = head[1] >> 4, head[1] & 15, (head[2] >> 4) + 1, (head[2] & 15) + 1
    if x + w > GRID_W or y + h > GRID_H:
        return None
    return Stamp((x, y, w, h), rows)


def pixels_of(cells: Cells, width: int, height: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the cells in a picture of that size: the even pixels around them."""
    x, y, w, h = cells
    return (
        x * width // GRID_W & ~1,
        y * height // GRID_H & ~1,
        min(width, (-(-(x + w) * width // GRID_W) + 1) & ~1),
        min(height, (-(-(y + h) * height // GRID_H) + 1) & ~1),
    )


def strip_of(width: int, cells: Cells | None) -> NDArray[np.bool_]:
    """(STRIP, width): where the stamp is white. width ≥ 128."""
    bits = np.array([stamp_bits(cells) >> (BITS - 1 - n) & 1 for n in range(BITS)], bool)
    blocks = np.kron(bits.reshape(-1, COLUMNS), np.ones((BLOCK, BLOCK), bool))
    return np.pad(blocks, ((0, 0), (0, width - COLUMNS * BLOCK)))


def stamped(image: Image, cells: Cells | None) -> Image:
    """(H, W, 3) rgb24 with its stamp below. W ≥ 128."""
    strip = np.where(strip_of(image.shape[1], cells), 255, 0).astype(np.uint8)
    return np.concatenate([image, np.repeat(strip[..., None], 3, axis=2)])


def stamped_i420(planes: Sequence[Image], cells: Cells | None) -> Image:
    """Y (H, W), U and V (H/2, W/2), H and W even → i420 ((H + STRIP)·3/2, W) with its stamp below. W ≥ 128."""
    luma, *chroma = planes
    height, width = luma.shape
    strip = np.where(strip_of(width, cells), WHITE, BLACK).astype(np.uint8)
    gray = np.full((STRIP // 2, width // 2), 128, np.uint8)
    parts = [luma, strip, *(part for plane in chroma for part in (plane, gray))]
    flat = np.concatenate([part.reshape(-1) for part in parts])
    return flat.reshape((height + STRIP) * 3 // 2, width)


class PartFit:
    """Of a track that may carry stamped pictures: takes the stamp off, and brings whole pictures and contexts to the form
    that the graph asks for, as `VideoFit` does; crops stay as large as they were sent.

    counts: of the track; pictures that are of no use here, as their stamp cannot be read or is another track's, are
    "misplaced" there. only_crops: on the crop's own track, where a picture that says nothing of its place is one of those.
    """

    def __init__(
        self, form: VideoFormat | None, pixels: PixelFormat, counts: Counter[str], *, only_crops: bool = False
    ) -> None:
        # crops keep their own time, and a context is never too often
        self._fit = VideoFit(form, pixels)
        self._own = VideoFit(replace(form, fps=0) if form is not None else None, pixels)
        self._only_crops = only_crops
        self._pixels = pixels
        self._counts = counts

    def __call__(self, frame: av.VideoFrame) -> Part | None:
        stamp = read_stamp(_luma(frame))
        if stamp is None:
            if self._only_crops:
                self._counts["misplaced"] += 1
                return None
            whole = self._fit(frame)
            return None if whole is None else Part(*whole, None)
        if self._only_crops == (stamp.cells is None):
            self._counts["misplaced"] += 1
            return None
        cut = _above(frame, stamp.rows)
        if stamp.cells is not None:
            return Part(media_time(frame), cut if self._pixels == "i420" else rgb_from_i420(cut), stamp)
        small = av.VideoFrame.from_ndarray(cut, format="yuv420p")
        small.pts, small.time_base = frame.pts, frame.time_base
        fitted = self._own(small)
        return None if fitted is None else Part(*fitted, stamp)


def _luma(frame: av.VideoFrame) -> Image:
    """(H, W), not copied. Decoders give planar YUV; rows may be padded."""
    plane = frame.planes[0]
    rows = np.frombuffer(cast("Any", plane), np.uint8).reshape(plane.height, plane.line_size)
    return rows[:, : frame.width]


def _above(frame: av.VideoFrame, rows: int) -> Image:
    """i420 of the first rows, made even."""
    whole = i420_planes(np.asarray(frame.to_ndarray(format="yuv420p"), np.uint8))
    rows &= ~1
    cut = [plane[: rows // (2 if k else 1)].reshape(-1) for k, plane in enumerate(whole)]
    return np.concatenate(cut).reshape(rows * 3 // 2, frame.width)


class Composer:
    """Puts crops onto the newest context: each result is a whole picture that is sharp in one box.

    Times never run back: what comes later than it should, behind what was given already, is left out.
    """

    def __init__(self, format: PixelFormat, stale: int) -> None:
        """stale: ns after which a picture dies at the next edge."""
        self.format: PixelFormat = format
        self.stale = stale
        self._base: Image | None = None
        self._last = -1  # pts
        self._cropped = -(1 << 62)  # pts of the last crop

    def __call__(self, part: Part, pts: int) -> VideoFrame | None:
        """None while there is nothing to show for it."""
        stamp = part.stamp
        if stamp is None or stamp.cells is None:
            self._base = part.image
            if stamp is not None and pts - self._cropped < FRESH:
                return None  # the next crop brings it along
            if stamp is None:
                self._cropped = -(1 << 62)
            return self._give(pts, part.image, None)
        if self._base is None:
            return None
        self._cropped = max(self._cropped, pts)
        x, y, w, h = stamp.cells
        box = (x / GRID_W, y / GRID_H, w / GRID_W, h / GRID_H)
        return self._give(pts, pasted(self._base, part.image, stamp.cells, self.format), box)

    def _give(self, pts: int, image: Image, sharp: Box | None) -> VideoFrame | None:
        if pts <= self._last:
            return None
        self._last = pts
        return VideoFrame(pts=pts, deadline=pts + self.stale, image=image, format=self.format, sharp=sharp)


def pasted(base: Image, crop: Image, cells: Cells, format: PixelFormat) -> Image:
    """A copy of base with the crop in its place; both rgb24 (H, W, 3) or i420 (H·3/2, W)."""
    out = base.copy()
    if format == "rgb24":
        _put(out, crop, pixels_of(cells, base.shape[1], base.shape[0]))
        return out
    left, top, right, bottom = pixels_of(cells, base.shape[1], base.shape[0] * 2 // 3)
    for k, (to, of) in enumerate(zip(i420_planes(out), i420_planes(crop), strict=True)):
        half = 2 if k else 1
        _put(to, of, (left // half, top // half, right // half, bottom // half))
    return out


def _put(to: Image, of: Image, place: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = place
    size = (right - left, bottom - top)
    if (of.shape[1], of.shape[0]) != size:
        of = np.asarray(cv2.resize(of, size, interpolation=cv2.INTER_LINEAR), np.uint8)
    to[top:bottom, left:right] = of
