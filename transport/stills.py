"""Pictures of the last seconds, kept raw by the sender, and stills cut out of them.

A still of the region in question costs about 3 kB and is as sharp as the camera: cheaper than any video that would
show the same, and it reaches back in time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from ..pipeline.clock import MS, SECOND
from ..pipeline.frame import VideoFrame
from .importance import Box
from .rt_messages import Fetch, NoStill, Still

RING = 3 * SECOND
RING_APART = 100 * MS  # between kept pictures: ten a second are enough to look back
RING_BYTES = 64 * 1024 * 1024
QUALITIES = (80, 65, 50, 35, 20, 10)  # of WebP, tried in turn until it is small enough
SHRINK = 0.75  # then the still is made smaller
LEAST_SIDE = 32  # pixels


class PictureRing:
    """The last RING of pictures, by capture time, bounded in bytes."""

    def __init__(self, span: int = RING, most_bytes: int = RING_BYTES) -> None:
        self.span = span
        self.most_bytes = most_bytes
        self.bytes = 0
        self._pictures: deque[VideoFrame] = deque()

    def add(self, frame: VideoFrame) -> None:
        if self._pictures and frame.pts - self._pictures[-1].pts < RING_APART:
            return
        self._pictures.append(frame)
        self.bytes += frame.nbytes
        while len(self._pictures) > 1 and (
            self.bytes > self.most_bytes or frame.pts - self._pictures[0].pts > self.span
        ):
            self.bytes -= self._pictures.popleft().nbytes

    def at(self, pts: int | None) -> VideoFrame | None:
        """The picture nearest to that time, None for the newest: also where the time is outside of the ring, for
        clocks may disagree; the answer tells the picture's true time. None when there is none at all."""
        if not self._pictures:
            return None
        if pts is None:
            return self._pictures[-1]
        return min(self._pictures, key=lambda f: abs(f.pts - pts))

    def __len__(self) -> int:
        return len(self._pictures)


def encode_still(rgb: NDArray[np.uint8], quality: int) -> bytes:
    """rgb (H, W, 3) → WebP."""
    bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
    _, data = cv2.imencode(".webp", bgr, [cv2.IMWRITE_WEBP_QUALITY, quality])
    return data.tobytes()


def decode_still(still: Still) -> NDArray[np.uint8]:
    """(H, W, 3) RGB. Raises: ValueError when it is no picture, or of another size than it says."""
    header = _webp_size(still.data)
    if header != (still.width, still.height):
        raise ValueError(f"the still says {still.width}x{still.height}, its data {header}")
    bgr = cv2.imdecode(np.frombuffer(still.data, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None or bgr.shape[:2] != (still.height, still.width):
        raise ValueError("the still cannot be decoded")
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) by the header, before anything is decoded: a few bytes can claim gigabytes.

    Source: RFC 9649 sections 2.5 to 2.7.
    """
    if len(data) < 30 or data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    if data[12:16] == b"VP8 ":
        return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if data[12:16] == b"VP8X":
        return int.from_bytes(data[24:27], "little") + 1, int.from_bytes(data[27:30], "little") + 1
    return None


def crop_rgb(frame: VideoFrame, box: Box) -> tuple[NDArray[np.uint8], Box]:
    """The box cut out at full size, grown to even pixels: (H, W, 3) and the box it really is."""
    width, height = frame.width & ~1, frame.height & ~1
    x0, y0 = int(box[0] * width) & ~1, int(box[1] * height) & ~1
    x1 = min(width, max(x0 + 2, -(-round((box[0] + box[2]) * width) // 2) * 2))
    y1 = min(height, max(y0 + 2, -(-round((box[1] + box[3]) * height) // 2) * 2))
    x0, y0 = min(x0, x1 - 2), min(y0, y1 - 2)
    if frame.format == "i420":
        picture = av.VideoFrame.from_ndarray(frame.image, format="yuv420p")
        rgb = picture.reformat(format="rgb24").to_ndarray()
    else:
        rgb = frame.image
    cut = np.ascontiguousarray(rgb[y0:y1, x0:x1])
    return np.asarray(cut, np.uint8), (x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height)


def answer(fetch: Fetch, frame: VideoFrame | None, sender_ms: Callable[[int], int]) -> Still | NoStill:
    """Blocking, some ms. sender_ms: from a frame's pts to the sender's ms, as CAPS tells them."""
    if frame is None:
        return NoStill(fetch.id, "no picture was taken yet")
    rgb, box = crop_rgb(frame, fetch.box)
    while True:
        data = encode_still(
            rgb, QUALITIES[-1]
        )  # first: when even that is too large, the others need no trial
        if len(data) <= fetch.max_bytes:
            for quality in QUALITIES[:-1]:
                better = encode_still(rgb, quality)
                if len(better) <= fetch.max_bytes:
                    data = better
                    break
            height, width = rgb.shape[:2]
            return Still(fetch.id, sender_ms(frame.pts), box, width, height, data)
        if min(rgb.shape[:2]) * SHRINK < LEAST_SIDE:
            return NoStill(fetch.id, f"it needs {len(data)} bytes at least; {fetch.max_bytes} were allowed")
        size = round(rgb.shape[1] * SHRINK), round(rgb.shape[0] * SHRINK)
        rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
