"""Scenes that the embedded toy VLM can watch: three coloured things, each with its own small print, one of which is asked about.

The toy reads no print; it knows which thing is the red one. That is the part of a context source: it looks at the decoded
picture, is asked about a colour, and where its attention falls becomes the importance map. How well the print there can then be
read off the picture is the accuracy, as in `bitrate_scene`. What the toy is shown (48×48) is of the kind it was taught: soft
clouds, circles and squares. What costs bits is what it cannot see: the fine detail of a photograph that pans over all of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from bitrate_scene import (
    BLACK,
    CHANGE_S,
    NOISE,
    SCENES,
    SOFT,
    WHITE,
    H,
    Item,
    Shot,
    W,
    pan,
    photograph,
    printed,
)
from numpy.typing import NDArray
from penstock.models.toy_world import COLOURS, SIZE

Floats = NDArray[np.float32]

LABEL_W, LABEL_H = 152, 80
NUMBERS = ((10, 8, 88, 6), (10, 8, 88, 26), (8, 10, 84, 46))  # size, digits, x, y
CODE = (3, 4, 2)  # pixels a module, x, y
CONTRAST = 70.0  # levels of luma between print and thing
RADII = (7.6, 8.4)  # of a thing, in the toy's pixels: as large as it was taught, for the print
FINE_SIGMA = 8.0  # pixels: coarser detail of the photograph is left out, the toy would see it
PAINT: dict[str, tuple[float, float, float]] = {  # as the toy's world paints its colours, yellow and white a little dark: their paper is lighter
    "red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 80, 230), "yellow": (215, 197, 46),
    "purple": (170, 60, 200), "white": (215, 215, 215),
}  # fmt: skip
LUMA = np.array((0.299, 0.587, 0.114), np.float32)


@dataclass(frozen=True)
class Sign:
    """A thing of a colour at a place (pixels of the picture), with radii in both directions."""

    colour: str
    round: bool
    x: float
    y: float
    rx: float
    ry: float


def _rng(scene: str, seed: int) -> np.random.Generator:
    return np.random.default_rng((seed, *map(ord, scene)))


def _signs(scene: str, seed: int) -> list[Sign]:
    """Three, clear of each other; the first is the one that is asked about."""
    rng = _rng(scene, seed)
    colours = [str(c) for c in rng.permutation(COLOURS)[:3]]
    while True:
        found: list[Sign] = []
        for colour in colours:
            r = float(rng.uniform(*RADII))
            x, y = rng.uniform(r + 2, SIZE - r - 2, 2)
            across, down = W / SIZE, H / SIZE
            found.append(Sign(colour, bool(rng.random() < 0.5), x * across, y * down, r * across, r * down))
        if all(
            abs(a.x - b.x) > a.rx + b.rx + 20 or abs(a.y - b.y) > a.ry + b.ry + 20
            for i, a in enumerate(found)
            for b in found[:i]
        ):
            return found


def _label(rng: np.random.Generator) -> tuple[Floats, tuple[Item, ...]]:
    """(LABEL_H, LABEL_W) of mean 0, from paper to ink one apart, and what is printed."""
    face, items = printed(rng, LABEL_W, LABEL_H, (CODE,), NUMBERS)
    ink = cv2.GaussianBlur(face.astype(np.float32), (0, 0), SOFT) / (WHITE - BLACK)
    return np.asarray(ink - ink.mean(), np.float32), items


def _clouds(rng: np.random.Generator) -> Floats:
    """(H, W, 3): a background of the toy's world, enlarged."""
    base = rng.uniform(60, 190, 3)
    n = int(rng.integers(3, 7))
    soft = cv2.resize(rng.normal(0, 25, (n, n, 3)).astype(np.float32), (W, H), interpolation=cv2.INTER_CUBIC)
    return np.asarray(soft + base.astype(np.float32), np.float32)


def _fine(name: str) -> Floats:
    """(700, 900, 3): the photograph's fine detail, of mean 0."""
    photo = cv2.resize(photograph(name), (900, 700), interpolation=cv2.INTER_AREA).astype(np.float32)
    return np.asarray(photo - cv2.GaussianBlur(photo, (0, 0), FINE_SIGMA), np.float32)


def _cover(sign: Sign, x: float, y: float) -> Floats:
    """(H, W, 1): 1 where the thing is."""
    mask = np.zeros((H, W), np.float32)
    at = (round(x), round(y))
    if sign.round:
        cv2.ellipse(mask, at, (round(sign.rx), round(sign.ry)), 0, 0, 360, 1.0, -1)
    else:
        half = round(sign.rx * 0.88), round(sign.ry * 0.88)
        cv2.rectangle(mask, (at[0] - half[0], at[1] - half[1]), (at[0] + half[0], at[1] + half[1]), 1.0, -1)
    return mask[..., None]


def render(scene: str, seed: int, fps: int = 10, seconds: float = 8.0) -> list[Shot]:
    """Shots of the label that is asked about; scene: whose photograph lends its detail (`bitrate_scene.SCENES`)."""
    rng = np.random.default_rng((seed, 1, *map(ord, scene)))
    signs, clouds, fine = _signs(scene, seed), _clouds(rng), _fine(SCENES[scene][0])
    phases = rng.uniform(0, 6.3, len(signs))
    labels: list[tuple[Floats, tuple[Item, ...]]] = []
    second = -1
    shots: list[Shot] = []
    for n in range(round(fps * seconds)):
        t = n / fps
        if int(t / CHANGE_S) != second:
            second = int(t / CHANGE_S)
            labels = [_label(rng) for _ in signs]
        view = clouds + pan(fine, t)
        place = (0, 0)
        for k, (sign, phase, (ink, _)) in enumerate(zip(signs, phases, labels, strict=True)):
            x = sign.x + 12 * np.sin(t * 0.7 + phase) + 2 * np.sin(t * 7)
            y = sign.y + 8 * np.sin(t * 0.5 + phase) + 1.6 * np.sin(t * 9)
            paint = np.array(PAINT[sign.colour], np.float32)
            painted = np.broadcast_to(paint, (H, W, 3)).copy()
            left, top = round(x - LABEL_W / 2), round(y - LABEL_H / 2)
            shade = 1 + ink * (CONTRAST / float(paint @ LUMA))
            painted[top : top + LABEL_H, left : left + LABEL_W] *= shade[..., None]
            cover = _cover(sign, x, y)
            view = view * (1 - cover) + painted * cover
            place = (left, top) if k == 0 else place
        view += rng.normal(0, NOISE, view.shape)
        rgb = np.clip(view, 0, 255).astype(np.uint8)
        asked = f"What do the numbers on the {signs[0].colour} one say?"
        shots.append(Shot(rgb, *place, labels[0][1], LABEL_W, LABEL_H, asked))
    return shots


def _check() -> None:
    from bitrate_scene import accuracy, luma

    for scene in SCENES:
        shot = render(scene, 0, seconds=0.2)[0]
        print(scene, shot.question, shot.x, shot.y, accuracy(luma(shot.rgb), shot))


if __name__ == "__main__":
    _check()
