"""Video of real photographs with known truth: a camera that stands, pans or is covered, a thing that is carried through.

The photographs come with scikit-image. A sensor's noise is added, and H.264 at a call's bit rate in between, so that the
measuring sees what it sees behind WebRTC: blocks, and keyframes that pulse. It is no footage of a real event: none may be
fetched here.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
WIDTH, HEIGHT = 320, 240
BACKGROUNDS = ("astronaut.png", "coffee.png", "motorcycle_left.png", "chelsea.png", "rocket.jpg")
THINGS = ("coffee.png", "chelsea.png", "astronaut.png")
KINDS = ("still", "object", "pan", "relit", "black", "frozen", "gone")


@dataclass(frozen=True, slots=True)
class Shot:
    """Pictures at 4 a second. luma: of the last, 0-1; side: where the thing is; faint: it hardly differs from what it
    covers."""

    pictures: list[Picture]
    kind: str
    side: str
    luma: float
    faint: bool = False

    @property
    def moving(self) -> bool:
        return self.kind in ("object", "pan")


@cache
def photograph(name: str) -> NDArray[np.float32]:
    data: Any = pytest.importorskip("skimage.data", reason="the package scikit-image is not installed")
    image = cv2.imread(str(Path(data.__file__).parent / name), cv2.IMREAD_COLOR)
    assert image is not None, name
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB).astype(np.float32)


def view(name: str, x: float, y: float, zoom: float) -> NDArray[np.float32]:
    """The camera's window onto a photograph: its centre in shares of the photograph, 1 = as much as fits."""
    image = photograph(name)
    height, width = image.shape[:2]
    w = min(width, height * WIDTH / HEIGHT) / zoom
    h = w * HEIGHT / WIDTH
    left, top = x * (width - w), y * (height - h)
    matrix = np.array([[WIDTH / w, 0, -left * WIDTH / w], [0, HEIGHT / h, -top * HEIGHT / h]], np.float32)
    return cv2.warpAffine(image, matrix, (WIDTH, HEIGHT), flags=cv2.INTER_AREA).astype(np.float32)


def shot(rng: np.random.Generator, kind: str) -> Shot:
    name = str(rng.choice(BACKGROUNDS))
    zoom, x, y = float(rng.uniform(1.2, 2.0)), float(rng.uniform(0.2, 0.8)), float(rng.uniform(0.2, 0.8))
    thing = view(str(rng.choice(THINGS)), 0.5, 0.4, 3)[:60, :60]
    side = str(rng.choice(["left", "right", "middle"]))
    x0, y0 = {"left": 10, "right": 190, "middle": 110}[side], int(rng.integers(20, 160))
    clean: list[NDArray[np.float32]] = []
    faint = False
    for step in range(12):
        image = view(name, x + (0.015 * step if kind == "pan" else 0), y, zoom)
        if kind == "object":
            at = x0 + (4 * step if step >= 4 else 0)
            under = image[y0 : y0 + 60, at : at + 60]
            faint = bool(np.abs(under - thing).max(-1).mean() < 40)
            image[y0 : y0 + 60, at : at + 60] = thing
        if kind == "relit":
            image = image * (0.5 + 0.06 * step)
        clean.append(image)
    sigma = float(rng.uniform(1, 4))
    noisy = [np.clip(c + rng.normal(0, sigma, c.shape), 0, 255).astype(np.uint8) for c in clean]
    pictures = coded(noisy, int(rng.choice([200_000, 400_000, 800_000])))
    if kind == "black":
        pictures += [np.zeros_like(pictures[0])] * 4
    if kind == "frozen":
        pictures += [pictures[-1]] * 10
    luma = float(noisy[-1].reshape(-1, 3).astype(float).mean(0) @ (0.299, 0.587, 0.114)) / 255
    return Shot(pictures, kind, side, luma, faint)


def coded(pictures: list[Picture], bit_rate: int) -> list[Picture]:
    """Through H.264 and back, as a call would: no look-ahead, a keyframe each 8 pictures."""
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    encoder.bit_rate, encoder.time_base, encoder.framerate = bit_rate, Fraction(1, 4), Fraction(4)
    encoder.gop_size, encoder.options = 8, {"tune": "zerolatency", "preset": "veryfast"}
    decoder: Any = av.CodecContext.create("h264", "r")
    out: list[Picture] = []
    for i, picture in enumerate([*pictures, None]):
        if picture is None:
            packets = encoder.encode(None)
        else:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = i
            packets = encoder.encode(frame)
        for packet in packets:
            out += [f.to_ndarray(format="rgb24") for f in decoder.decode(packet)]
    out += [f.to_ndarray(format="rgb24") for f in decoder.decode(None)]
    assert len(out) == len(pictures)
    return out
