"""What `tiny-restyle` is shown in training: photographs and drawn scenes, moved by a camera and a sensor's noise.

Photographs are those that come with scikit-image; `HELD_OUT` are never trained on and serve all figures.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]  # (H, W, 3) in [0, 1]
Random = np.random.Generator

HELD_OUT = ("astronaut.png", "rocket.jpg")
TRAINED = (
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "camera.png",
    "brick.png",
    "grass.png",
    "gravel.png",
    "retina.jpg",
    "ihc.png",
    "coins.png",
    "color.png",
    "page.png",
    "moon.png",
)
MARGIN = 16  # px around a crop for the teachers' windows; a multiple of 8 keeps their grids


def photograph(name: str, short_side: int = 420) -> Picture:
    """One of scikit-image's pictures, made smaller when its short side is longer than `short_side`.

    Raises: ModuleNotFoundError without scikit-image; FileNotFoundError when its version lacks the picture.
    """
    import skimage

    path = Path(skimage.__file__).parent / "data" / name
    read = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if read is None:
        raise FileNotFoundError(f"scikit-image has no picture {name!r} at {path}")
    image: Any = cv2.cvtColor(read, cv2.COLOR_BGR2RGB)
    scale = short_side / min(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(image, np.float32) / np.float32(255)


@cache
def _photographs() -> tuple[Picture, ...]:
    return tuple(photograph(name) for name in TRAINED)


def _cloud(rng: Random, size: int, cells: int) -> Picture:
    low = rng.random((cells, cells, 3)).astype(np.float32)
    return np.clip(cv2.resize(low, (size, size), interpolation=cv2.INTER_CUBIC), 0, 1).astype(np.float32)


def _shape(rng: Random, size: int) -> NDArray[np.float32]:
    """A mask (size, size) of one ellipse, polygon, line or word."""
    mask = np.zeros((size, size), np.uint8)
    x, y = (int(v) for v in rng.integers(0, size, 2))
    kind = rng.integers(4)
    if kind == 0:
        axes = tuple(int(v) for v in rng.integers(4, size // 3, 2))
        cv2.ellipse(mask, (x, y), axes, float(rng.uniform(0, 180)), 0, 360, 255, -1, cv2.LINE_AA)
    elif kind == 1:
        corners = rng.integers(-10, size + 10, (int(rng.integers(3, 7)), 2)).astype(np.int32)
        cv2.fillPoly(mask, [corners], 255, cv2.LINE_AA)
    elif kind == 2:
        end = tuple(int(v) for v in rng.integers(0, size, 2))
        cv2.line(mask, (x, y), end, 255, int(rng.integers(1, 9)), cv2.LINE_AA)
    else:
        word = "".join(chr(int(v)) for v in rng.integers(48, 122, 4))
        font, scale = int(rng.integers(0, 7)), float(rng.uniform(0.4, 1.8))
        cv2.putText(mask, word, (x, y), font, scale, 255, int(rng.integers(1, 4)), cv2.LINE_AA)
    soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), float(rng.uniform(0.3, 2.0)))
    return np.asarray(soft / 255, np.float32)


def drawn(rng: Random, size: int) -> Picture:
    """A scene nobody photographed: gradients, textured shapes, letters. (size, size, 3)."""
    x = _cloud(rng, size, int(rng.integers(2, 5))) * np.float32(rng.uniform(0.4, 1))
    for _ in range(int(rng.integers(3, 10))):
        mask = _shape(rng, size)[..., None]
        fill = rng.random(3).astype(np.float32) * np.ones((size, size, 3), np.float32)
        if rng.random() < 0.4:
            yy, xx = np.mgrid[:size, :size].astype(np.float32)
            angle, pitch = rng.uniform(0, 3.14), rng.uniform(0.05, 1.2)
            wave = 0.25 * np.sin((xx * np.cos(angle) + yy * np.sin(angle)) * pitch)
            fill = fill + wave[..., None] * rng.uniform(-1, 1, 3)
        x = x * (1 - mask) + np.clip(fill * (0.6 + 0.8 * _cloud(rng, size, 3)), 0, 1) * mask
    return np.clip(x, 0, 1).astype(np.float32)


def still(rng: Random, size: int) -> Picture:
    """A random cut of a photograph or a drawn scene with random colours, (size, size, 3)."""
    if rng.random() < 0.75:
        photos = _photographs()
        photo = photos[int(rng.integers(len(photos)))]
        height, width = photo.shape[:2]
        side = int(min(height - 1, width - 1, size / rng.uniform(0.4, 1.4)))
        y, x = int(rng.integers(0, height - side)), int(rng.integers(0, width - side))
        how = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
        image: Any = cv2.resize(photo[y : y + side, x : x + side], (size, size), interpolation=how)
    else:
        image = drawn(rng, size)
    if rng.random() < 0.5:
        image = image[:, ::-1]
    if rng.random() < 0.3:
        image = image[..., rng.permutation(3)]
    image = np.clip(image, 0, 1) ** rng.uniform(0.6, 1.5) * rng.uniform(0.75, 1.1)
    gray = image.mean(-1, keepdims=True)
    return np.ascontiguousarray(np.clip(gray + (image - gray) * rng.uniform(0.6, 1.4), 0, 1), np.float32)


@dataclass(frozen=True, slots=True)
class Clip:
    """A camera's view of one still: frames (T, S + 2·MARGIN, S + 2·MARGIN, 3) without noise."""

    frames: NDArray[np.float32]
    pan: tuple[int, int] | None  # px (x, y) that the view moves a frame; None when it also turns or zooms


def clip(rng: Random, size: int, length: int) -> Clip:
    """A camera that stands (a quarter), pans by whole pixels (half), or turns and zooms (a quarter)."""
    full = size + 2 * MARGIN
    kind = rng.random()
    if kind < 0.75:
        limit = 0 if kind < 0.25 else 4
        pan = int(rng.integers(-limit, limit + 1)), int(rng.integers(-limit, limit + 1))
        reach = 4 * (length - 1)
        image = still(rng, full + reach)
        x0 = 0 if pan[0] >= 0 else reach
        y0 = 0 if pan[1] >= 0 else reach
        cuts: list[Picture] = []
        for t in range(length):
            x, y = x0 + t * pan[0], y0 + t * pan[1]
            cuts.append(image[y : y + full, x : x + full])
        return Clip(np.stack(cuts), pan)
    image = still(rng, full)
    turn, zoom, dx, dy = rng.normal(0, (0.8, 0.01, 2.0, 2.0))
    views: list[Any] = []
    for t in range(length):
        matrix = cv2.getRotationMatrix2D((full / 2, full / 2), t * turn, (1 + zoom) ** t)
        matrix[:, 2] += (t * dx, t * dy)
        views.append(
            cv2.warpAffine(image, matrix, (full, full), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
        )
    return Clip(np.stack(views).astype(np.float32), None)


def sensor(rng: Random, image: Picture, noise: float) -> Picture:
    """What a webcam makes of a picture: noise of standard deviation `noise`, now and then JPEG blocks."""
    if noise == 0:
        return image
    seen = np.clip(image + rng.normal(0, noise, image.shape), 0, 1).astype(np.float32)
    if rng.random() < 0.2:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 90))]
        _, data = cv2.imencode(".jpg", (seen * 255).astype(np.uint8), quality)
        seen = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.float32) / np.float32(255)
    return seen
