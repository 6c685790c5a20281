"""Pictures between rgb24 and i420: BT.601, limited range, as WebRTC's and most files' video is.

i420 halves chroma both ways, so its sizes are even. An odd picture is padded by repeating its last row or
column: nothing is lost, and no border shows.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from .frame import VideoFrame

Image = NDArray[np.uint8]


def pad_even(image: Image) -> Image:
    """(H, W, ...) → the same with H and W rounded up to even; the very same array when they are even."""
    bottom, right = image.shape[0] % 2, image.shape[1] % 2
    if not (bottom or right):
        return image
    pads = [(0, bottom), (0, right)] + [(0, 0)] * (image.ndim - 2)
    return np.pad(image, pads, mode="edge")


def rgb_from_i420(image: Image) -> Image:
    """(H·3/2, W) → (H, W, 3). Raises: ValueError when the shape is not that of an i420 picture."""
    if image.ndim != 2 or image.shape[0] % 3 or image.shape[1] % 2:
        raise ValueError(f"shape {image.shape} is not i420; it is (H*3/2, W) with H and W even")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_YUV2RGB_I420), np.uint8)


def i420_from_rgb(image: Image) -> Image:
    """(H, W, 3) → (H·3/2, W), padded to even sizes. Raises: ValueError when it is not (H, W, 3)."""
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"shape {image.shape} is not rgb24; it is (H, W, 3)")
    even = np.ascontiguousarray(pad_even(image))
    return np.asarray(cv2.cvtColor(even, cv2.COLOR_RGB2YUV_I420), np.uint8)


def to_rgb(frame: VideoFrame) -> Image:
    """The picture as uint8 (H, W, 3). It may be the frame's own array: never write to it."""
    return frame.image if frame.format == "rgb24" else rgb_from_i420(frame.image)


def to_i420(frame: VideoFrame) -> Image:
    """The picture as uint8 (H·3/2, W). It may be the frame's own array: never write to it."""
    return frame.image if frame.format == "i420" else i420_from_rgb(frame.image)


def i420_planes(image: Image) -> tuple[Image, Image, Image]:
    """Views on Y (H, W), U (H/2, W/2) and V (H/2, W/2) of one contiguous i420 picture (H·3/2, W)."""
    height, width = image.shape[0] * 2 // 3, image.shape[1]
    chroma = image.reshape(-1)[height * width :].reshape(2, height // 2, width // 2)
    return image[:height], chroma[0], chroma[1]


def with_rgb(frame: VideoFrame, image: Image) -> VideoFrame:
    """The frame with another rgb24 picture: same pts, deadline and epoch."""
    return replace(frame, image=image, format="rgb24")
