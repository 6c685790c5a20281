"""Where each pixel of a picture was in the one before, and results of the one before moved along.

What a network draws anew for every picture flickers with the camera's noise and with each pixel that the camera moves.
Its result of the picture before, moved to where things are now, says how much of a change is real.

The flow is DIS at half size. In smooth areas it follows the noise: standing still, and then the motion of the whole
picture, are taken wherever they explain a pixel nearly as well. Where nothing explains it, trust is 0.

Source: Kroeger et al., "Fast Optical Flow using Dense Inverse Search" (2016); Karis, "High Quality Temporal
Supersampling" (SIGGRAPH 2014) for the blend and its clamp to what is drawn around.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .stream_model import shrunk

Look = NDArray[np.uint8]  # (H/2, W/2) gray

SMALLEST = 12  # px: a smaller look has no flow
SURE = 8.0  # gray levels that a pixel may differ from where it was: the noise of a webcam averages far below
EASIER = 1.0  # gray levels that a plain motion may explain a pixel worse than the flow
_WINDOW = (5, 5)  # px that a difference is averaged over


@dataclass(frozen=True, slots=True)
class Motion:
    """From one picture of the model's size (H, W) to the next."""

    places: Tensor  # (1, H, W, 2) float32, x and y: where each pixel was, the picture spanning -1..1
    trust: Tensor  # (1, H, W) float32 in [0, 1]


def look(picture: NDArray[np.uint8], size: tuple[int, int]) -> Look:
    """RGB (H, W, 3) or I420 (H·3/2, W), of any size → what motion is found in, for a model of `size` (H, W)."""
    plane = picture[: picture.shape[0] * 2 // 3] if picture.ndim == 2 else picture
    small = shrunk(plane, (size[0] // 2, size[1] // 2))
    gray = small if small.ndim == 2 else cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    return np.asarray(gray, np.uint8)


def motion(now: Look, before: Look) -> Motion:
    """How the picture before has moved to become this one; looks of one size."""
    height, width = now.shape
    off = _off(now, before)
    flow = np.zeros((height, width, 2), np.float32)
    if min(height, width) >= SMALLEST:
        # an object a call: it keeps buffers, and is made in 20 µs
        dis: Any = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        found: Any = dis.calc(now, before, None)
        border = cv2.BORDER_REPLICATE
        at = found + _pixels(height, width)
        remap: Any = cv2.remap  # its stub knows no None, and an empty array is read as if it were full
        moved = remap(before, at, None, cv2.INTER_LINEAR, borderMode=border)
        off_found = _off(now, moved)
        whole = np.median(found[::4, ::4].reshape(-1, 2), 0).astype(np.float32)
        matrix = np.array([[1, 0, whole[0]], [0, 1, whole[1]]], np.float32)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        moved = cv2.warpAffine(before, matrix, (width, height), flags=flags, borderMode=border)
        off_whole = _off(now, moved)
        least = np.minimum(off_found, off_whole)
        flow = found
        plain = np.empty_like(flow)
        plain[..., 0], plain[..., 1] = whole
        cv2.copyTo(plain, (off_whole <= off_found + EASIER).view(np.uint8), flow)
        still = off <= least + EASIER
        plain[:] = 0
        cv2.copyTo(plain, still.view(np.uint8), flow)
        off = np.where(still, off, least)
    # x and y of the pixels' middles, and their trust, at full size
    flow *= _scale(height, width)
    places = cv2.resize(flow, (2 * width, 2 * height), interpolation=cv2.INTER_LINEAR)
    places += _middles(2 * height, 2 * width)
    sure = cv2.resize(np.clip(2 - off / np.float32(SURE), 0, 1), (2 * width, 2 * height))
    return Motion(torch.from_numpy(places)[None], torch.from_numpy(np.asarray(sure, np.float32))[None])


@lru_cache(maxsize=16)
def _pixels(height: int, width: int) -> NDArray[np.float32]:
    """(h, w, 2): each pixel's own x and y."""
    return np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1).astype(np.float32)


@lru_cache(maxsize=16)
def _middles(height: int, width: int) -> NDArray[np.float32]:
    """The same where the picture spans -1..1."""
    return (2 * _pixels(height, width) + 1) / np.array((width, height), np.float32) - 1


@lru_cache(maxsize=16)
def _scale(height: int, width: int) -> NDArray[np.float32]:
    """(h, w, 2) from pixels to -1..1; whole, as numpy multiplies by two numbers a pixel ten times slower."""
    return np.broadcast_to(np.array((2 / width, 2 / height), np.float32), (height, width, 2)).copy()


def _off(now: Look, moved: Any) -> NDArray[np.float32]:
    """Mean difference around each pixel, gray levels."""
    return np.asarray(cv2.boxFilter(cv2.absdiff(now, moved), cv2.CV_32F, _WINDOW), np.float32)


def followed(image: Tensor, motion: Motion) -> Tensor:
    """(3, H, W) of the picture before → where its things are now, in the same dtype and on the same device."""
    places = motion.places.to(image.device)
    moved = F.grid_sample(image[None].float(), places, padding_mode="border", align_corners=False)
    return moved[0].to(image.dtype)


def steadied(image: Tensor, before: Tensor, motion: Motion, share: float) -> Tensor:
    """A result (3, H, W) mixed with the one before, `followed`, by `share` where the motion between them is sure.

    What was shown counts only as far as something like it is drawn within a pixel now: nothing trails behind.
    """
    high, low = _around(image, torch.maximum), _around(image, torch.minimum)
    trust = motion.trust.to(image.device)
    return torch.lerp(image, before.clamp(low, high), (share * trust).to(image.dtype))


def _around(image: Tensor, most: Callable[..., Tensor]) -> Tensor:
    """The most of each pixel and its eight neighbours. On a CPU a tenth of what max_pool2d takes."""
    for axis in (-1, -2):
        found, length = image.clone(), image.shape[axis] - 1
        for to, of in ((0, 1), (1, 0)):
            part = found.narrow(axis, to, length)
            most(part, image.narrow(axis, of, length), out=part)
        image = found
    return image
