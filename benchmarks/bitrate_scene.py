"""Scenes with a task: photographs that pan, a window and an object that move, and a small display that is to be read.

640×480. The display, 208×128 and of low contrast, shows two QR codes and five numbers that change every second; the
answer is right as far as they can be read off the decoded picture. So accuracy is legibility of the region asked about,
as in DeViBench, whose questions are mostly on text. Everything is drawn from the scene's name and a seed.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import skimage.data
import zxingcpp
from numpy.typing import NDArray

Image = NDArray[np.uint8]
W, H = 640, 480
CARD_W, CARD_H = 208, 128
SCENES = {  # background, texture in the window, object
    "desk": ("coffee.png", "grass.png", "astronaut.png"),
    "street": ("motorcycle_left.png", "gravel.png", "rocket.jpg"),
    "lab": ("ihc.png", "brick.png", "chelsea.png"),
}
CHANGE_S = 1.0
CONTRAST, SOFT, NOISE = 70.0, 0.6, 3.0  # levels; sigma of the blur in pixels; sigma in levels
WHITE, BLACK = 235, 25
NUMBERS = (
    (13, 8, 4, 82),
    (10, 8, 4, 104),
    (8, 10, 100, 62),
    (8, 10, 100, 80),
    (10, 8, 104, 98),
)  # size, digits, x, y
CODES = ((3, 4, 4), (2, 84, 4))  # pixels a module, x, y
QUESTION = "What do the numbers on the display say?"


@dataclass(frozen=True)
class Item:
    """A code (pixels a module) or a number (height in pixels) at a place of the display."""

    kind: str
    size: int
    text: str
    x: int
    y: int
    width: int
    height: int


@dataclass(frozen=True)
class Shot:
    """One picture: rgb (H, W, 3); where the display is; what it shows; its size; what is asked about it."""

    rgb: Image
    x: int
    y: int
    items: tuple[Item, ...]
    width: int = CARD_W
    height: int = CARD_H
    question: str = QUESTION

    @property
    def box(self) -> tuple[float, float, float, float]:
        return self.x / W, self.y / H, self.width / W, self.height / H


@cache
def photograph(name: str) -> Image:
    path = Path(skimage.data.__file__).parent / name
    found = cv2.imread(str(path))
    if found is None:
        raise SystemExit(f"scikit-image has no {path}; install the extra [test]")
    return np.asarray(cv2.cvtColor(found, cv2.COLOR_BGR2RGB), np.uint8)


def code(text: str, module: int) -> Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        drawn = zxingcpp.create_barcode(text, zxingcpp.BarcodeFormat.QRCode, ec_level="L", version=1)
        bits = np.asarray(zxingcpp.write_barcode_to_image(drawn, scale=1, add_quiet_zones=False))
    rows, columns = np.nonzero(bits < 128)
    bits = bits[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    bits = np.pad(bits, 2, constant_values=255)
    return np.where(np.kron(bits, np.ones((module, module))) < 128, 0, 255).astype(np.uint8)


def print_digits(text: str, size: int) -> tuple[Image, int]:
    """Small print: drawn eight times too large and averaged down. Returns it and the pitch in pixels."""
    big, pitch = 8, round(size * 0.72)
    canvas = np.full(((size + 6) * big, (pitch * len(text) + 6) * big), WHITE, np.uint8)
    for k, digit in enumerate(text):
        place = ((3 + k * pitch) * big, (size + 3) * big)
        thick = max(1, size * big // 9)
        cv2.putText(
            canvas, digit, place, cv2.FONT_HERSHEY_SIMPLEX, size * big / 22, BLACK, thick, cv2.LINE_AA
        )
    small = cv2.resize(canvas, None, fx=1 / big, fy=1 / big, interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.uint8), pitch


def display(rng: np.random.Generator) -> tuple[Image, tuple[Item, ...]]:
    return printed(rng, CARD_W, CARD_H, CODES, NUMBERS)


def printed(
    rng: np.random.Generator,
    width: int,
    height: int,
    codes: Sequence[tuple[int, int, int]],
    numbers: Sequence[tuple[int, int, int, int]],
) -> tuple[Image, tuple[Item, ...]]:
    """(height, width), white paper with other codes and numbers each time; and what they say. As CODES and NUMBERS."""
    face = np.full((height, width), WHITE, np.uint8)
    items: list[Item] = []
    for module, x, y in codes:
        text = f"{rng.integers(0, 10**12):012d}"
        drawn = code(text, module)
        h, w = drawn.shape
        face[y : y + h, x : x + w] = np.minimum(drawn, WHITE)
        items.append(Item("code", module, text, x, y, w, h))
    for size, digits, x, y in numbers:
        text = "".join(rng.choice(list("0123456789"), digits))
        drawn, _ = print_digits(text, size)
        h, w = min(drawn.shape[0], height - y), min(drawn.shape[1], width - x)
        face[y : y + h, x : x + w] = drawn[:h, :w]
        items.append(Item("number", size, text, x, y, w, h))
    return face, tuple(items)


def window(image: NDArray[Any], x: float, y: float, zoom: float, width: int, height: int) -> NDArray[Any]:
    """A view of the image around (x, y), to the fraction of a pixel, mirrored at its borders."""
    matrix = np.array([[1 / zoom, 0, x - width / 2 / zoom], [0, 1 / zoom, y - height / 2 / zoom]], np.float32)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(
        cv2.warpAffine(image, matrix, (width, height), flags=flags, borderMode=cv2.BORDER_REFLECT_101),
        image.dtype,
    )


def pan(image: NDArray[Any], t: float) -> NDArray[Any]:
    """(H, W, …): what a hand-held camera sees of an image of 900×700, t seconds on."""
    return window(
        image, 450 + 90 * np.sin(t * 0.6) + 3 * np.sin(t * 6), 350 + 50 * np.cos(t * 0.5) + 3 * np.sin(t * 8),
        1.05 + 0.05 * np.sin(t * 0.4), W, H,
    )  # fmt: skip


def render(scene: str, seed: int, fps: int = 10, seconds: float = 8.0) -> list[Shot]:
    back, texture, thing = (photograph(name) for name in SCENES[scene])
    back = np.asarray(cv2.resize(back, (900, 700), interpolation=cv2.INTER_AREA), np.uint8)
    texture = np.asarray(cv2.resize(texture, (512, 512)), np.uint8)
    thing = np.asarray(cv2.resize(thing, (320, 320), interpolation=cv2.INTER_AREA), np.uint8)
    rng = np.random.default_rng(seed * 17 + sum(map(ord, scene)))
    left, top = int(rng.integers(60, 340)), int(rng.integers(60, 300))
    shown, items, second = np.zeros((0, 0), np.float32), (), -1
    shots: list[Shot] = []
    for n in range(round(fps * seconds)):
        t = n / fps
        view = pan(back, t)
        view[20:220, 400:620] = window(texture, 256 + 40 * t, 256 + 25 * t, 1.2, 220, 200)
        ox, oy = int(180 + 150 * np.sin(t * 0.9)), int(250 + 40 * np.sin(t * 1.3))
        moving = window(thing, 160, 160, 0.75, 240, 200)
        x0, x1, y0, y1 = max(0, ox), min(W, ox + 240), max(0, oy), min(H, oy + 200)
        view[y0:y1, x0:x1] = moving[y0 - oy : y1 - oy, x0 - ox : x1 - ox]
        if int(t / CHANGE_S) != second:
            second = int(t / CHANGE_S)
            face, items = display(rng)
            dim = 70 + (face.astype(np.float32) - BLACK) * CONTRAST / (WHITE - BLACK)
            shown = np.asarray(cv2.GaussianBlur(dim, (0, 0), SOFT), np.float32)
        xf = left + 24 * np.sin(t * 0.7) + 2 * np.sin(t * 7)
        yf = top + 16 * np.sin(t * 0.5) + 1.6 * np.sin(t * 9)
        place = np.array([[1, 0, xf], [0, 1, yf]], np.float32)
        layer = cv2.warpAffine(shown, place, (W, H), flags=cv2.INTER_LINEAR)[..., None]
        mask = cv2.warpAffine(np.ones((CARD_H, CARD_W), np.float32), place, (W, H))[..., None]
        mixed = view * (1 - mask) + layer * mask + rng.normal(0, NOISE, view.shape)
        shots.append(Shot(np.clip(mixed, 0, 255).astype(np.uint8), round(xf), round(yf), items))
    return shots


@cache
def _templates(size: int) -> tuple[NDArray[np.float32], int]:
    """(10, size + 3, pitch + 1): the digits, zero-mean and of length 1; and their pitch."""
    drawn = [print_digits(d, size) for d in "0123456789"]
    pitch = drawn[0][1]
    cut = np.stack([d[0][2 : size + 5, 2 : 3 + pitch] for d in drawn]).astype(np.float32)
    cut -= cut.mean((1, 2), keepdims=True)
    return cut / np.linalg.norm(cut, axis=(1, 2), keepdims=True), pitch


def _read_number(gray: Image, item: Item, x: int, y: int) -> float:
    """Share of the digits that the best-correlating template gets right, ±1 pixel."""
    templates, pitch = _templates(item.size)
    right = 0
    for k, digit in enumerate(item.text):
        top, left = y + item.y + 2, x + item.x + 2 + k * pitch
        around = gray[top - 1 : top + item.size + 4, left - 1 : left + pitch + 2].astype(np.float32)
        patches = np.lib.stride_tricks.sliding_window_view(around, templates.shape[1:]).reshape(
            -1, templates[0].size
        )
        patches = patches - patches.mean(1, keepdims=True)
        patches /= np.linalg.norm(patches, axis=1, keepdims=True) + 1e-6
        match = patches @ templates.reshape(10, -1).T  # (9, 10)
        right += str(int(match.max(0).argmax())) == digit
    return right / len(item.text)


def _read_code(gray: Image, item: Item, x: int, y: int) -> float:
    around = gray[
        max(0, y + item.y - 2) : y + item.y + item.height + 2,
        max(0, x + item.x - 2) : x + item.x + item.width + 2,
    ]
    large = cv2.resize(around, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    found = zxingcpp.read_barcodes(np.ascontiguousarray(large), formats=zxingcpp.BarcodeFormat.QRCode)
    return float(any(f.text == item.text for f in found))


def accuracy(gray: Image, shot: Shot) -> float:
    """gray (H, W): the decoded picture. Mean over the five kinds of item, in [0, 1]."""
    kinds: dict[tuple[str, int], list[float]] = {}
    for item in shot.items:
        read = _read_code if item.kind == "code" else _read_number
        kinds.setdefault((item.kind, item.size), []).append(read(gray, item, shot.x, shot.y))
    return float(np.mean([np.mean(v) for v in kinds.values()]))


def luma(rgb: Image) -> Image:
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8)


def full_range(y: Image) -> Image:
    """Video levels (16 to 235) → 0 to 255."""
    return np.clip((y.astype(np.float32) - 16) * (255 / 219), 0, 255).astype(np.uint8)


def _check() -> None:
    for scene in SCENES:
        shot: Any = render(scene, 0, seconds=0.2)[0]
        print(scene, shot.x, shot.y, accuracy(luma(shot.rgb), shot))


if __name__ == "__main__":
    _check()
