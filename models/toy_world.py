"""The synthetic world of the toy VLM: coloured shapes on a noisy background that come, move and leave.

Everything a question can ask about is known exactly, so answers are checked against the truth and not against
another model. A tick is one picture of 48×48; at most one thing comes or leaves a tick.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

SIZE = 48  # pixels, both ways
MOST = 3  # things at one time
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "white")
DIRECTIONS = ("still", "left", "right", "up", "down")
_STEP = ((0, 0), (-1, 0), (1, 0), (0, -1), (0, 1))
_RGB = np.array(
    [(220, 40, 40), (40, 190, 60), (50, 80, 230), (235, 215, 50), (170, 60, 200), (245, 245, 245)], np.float32
)
_Y, _X = np.meshgrid(np.arange(SIZE), np.arange(SIZE), indexing="ij")


@dataclass(frozen=True, slots=True)
class Thing:
    """One shape. Indices into SHAPES, COLOURS, DIRECTIONS; pixels; pixels a tick."""

    shape: int
    colour: int
    x: float
    y: float
    radius: float
    direction: int  # of the last move
    speed: float
    tint: float  # how bright its colour is painted

    @property
    def name(self) -> str:
        return f"{COLOURS[self.colour]} {SHAPES[self.shape]}"


@dataclass(frozen=True, slots=True)
class Happening:
    """A thing came or left at a tick."""

    tick: int
    name: str
    what: Literal["came", "left"]


@dataclass(frozen=True, slots=True)
class Tick:
    """One moment: the picture and the whole truth about it."""

    image: Image  # (48, 48, 3)
    things: tuple[Thing, ...]
    happening: Happening | None


class World:
    """An endless seeded stream of ticks. `rate`: chance of something coming or leaving in a tick."""

    def __init__(self, seed: int | Sequence[int], rate: float = 0.3) -> None:
        self._rng = np.random.default_rng(seed)
        self._rate = rate
        self._tick = -1
        self._things: list[Thing] = []
        self._background = self._paint_background()
        self._flicker = self._rng.uniform(1, 14) if self._rng.random() < 0.35 else 0.0
        self._noise = self._rng.uniform(0, 6)
        for _ in range(int(self._rng.integers(0, MOST + 1))):
            self._spawn()

    def step(self) -> Tick:
        """The next tick. The first one never has a happening."""
        self._tick += 1
        happening: Happening | None = None
        if self._tick:
            self._things = [self._move(t) for t in self._things]
            if self._rng.random() < self._rate:
                happening = self._happen()
        return Tick(self._paint(), tuple(self._things), happening)

    def _happen(self) -> Happening | None:
        if self._things and (len(self._things) == MOST or self._rng.random() < 0.5):
            gone = self._things.pop(int(self._rng.integers(len(self._things))))
            return Happening(self._tick, gone.name, "left")
        new = self._spawn()
        return Happening(self._tick, new.name, "came") if new else None

    def _spawn(self) -> Thing | None:
        """A new thing of a free colour, clear of the others; None when there was no room."""
        rng = self._rng
        free = [c for c in range(len(COLOURS)) if all(t.colour != c for t in self._things)]
        for _ in range(12):
            radius = rng.uniform(5, 8.5)
            x, y = rng.uniform(radius, SIZE - radius, 2)
            if any(
                abs(t.x - x) < t.radius + radius and abs(t.y - y) < t.radius + radius for t in self._things
            ):
                continue
            thing = Thing(
                int(rng.integers(len(SHAPES))), int(rng.choice(free)), float(x), float(y), float(radius), 0,
                float(rng.uniform(1.2, 2.6)), float(rng.uniform(0.85, 1.05)),
            )  # fmt: skip
            self._things.append(replace(thing, direction=self._way(thing)))
            return self._things[-1]
        return None

    def _way(self, thing: Thing) -> int:
        """A direction in which there is room for some ticks."""
        room = (SIZE, thing.x, SIZE - thing.x, thing.y, SIZE - thing.y)
        ways = [d for d in range(len(DIRECTIONS)) if room[d] > thing.radius + 4 * thing.speed]
        return int(self._rng.choice(ways))

    def _move(self, thing: Thing) -> Thing:
        direction = thing.direction
        if direction == 0 and self._rng.random() < 0.05:
            direction = self._way(thing)
        dx, dy = _STEP[direction]
        x, y = thing.x + dx * thing.speed, thing.y + dy * thing.speed
        if not (thing.radius <= x <= SIZE - thing.radius and thing.radius <= y <= SIZE - thing.radius):
            direction = self._way(thing)
            dx, dy = _STEP[direction]
            x, y = thing.x + dx * thing.speed, thing.y + dy * thing.speed
        return replace(thing, x=x, y=y, direction=direction)

    def _paint_background(self) -> NDArray[np.float32]:
        """(48, 48, 3): plain, a slope, or soft clouds; gray or coloured."""
        rng = self._rng
        base = rng.uniform(0, 255, 3) if rng.random() < 0.6 else np.full(3, rng.uniform(0, 255))
        picture = np.broadcast_to(base, (SIZE, SIZE, 3)).astype(np.float32)
        kind = rng.integers(0, 3)
        if kind:
            n = 2 if kind == 1 else int(rng.integers(3, 9))
            grid = rng.normal(0, rng.uniform(5, 60), (n, n, 3 if rng.random() < 0.5 else 1))
            at = np.linspace(0, n - 1, SIZE)
            low = at.astype(int).clip(0, n - 2)
            part = at - low
            rows = grid[low] * (1 - part)[:, None, None] + grid[low + 1] * part[:, None, None]
            picture = picture + (
                rows[:, low] * (1 - part)[:, None] + rows[:, low + 1] * part[:, None]
            ).astype(np.float32)
        return picture

    def _paint(self) -> Image:
        rng = self._rng
        picture = self._background + np.float32(rng.normal(0, self._flicker) if self._flicker else 0)
        for t in self._things:
            picture[_inside(t)] = _RGB[t.colour] * t.tint
        picture += rng.standard_normal(picture.shape, np.float32) * np.float32(self._noise)
        return np.clip(picture, 0, 255).astype(np.uint8)


def _inside(t: Thing) -> NDArray[np.bool_]:
    """(48, 48) where the thing covers the picture."""
    x, y, r = _X - t.x, _Y - t.y, t.radius
    if t.shape == 0:
        return x * x + y * y < r * r
    x = np.abs(x)
    if t.shape == 1:
        return (x < r * 0.88) & (np.abs(y) < r * 0.88)
    if t.shape == 2:
        return (y < r * 0.8) & (y > 2 * x - r)
    y = np.abs(y)
    return ((x < r * 0.33) & (y < r)) | ((y < r * 0.33) & (x < r))


def brightness_name(image: Image) -> str:
    """dark, medium or bright, by mean luma (BT.601) of (H, W, 3)."""
    luma = float(image.reshape(-1, 3).mean(0) @ (0.299, 0.587, 0.114))
    return "dark" if luma < 80 else "bright" if luma > 165 else "medium"


def motion_name(before: Image | None, now: Image) -> str:
    """none, little or much, by the mean absolute difference of two pictures in levels."""
    if before is None:
        return "none"
    change = float(np.abs(now.astype(np.int16) - before).mean())
    return "none" if change < 5 else "little" if change < 10 else "much"


def main_colour(image: Image) -> str:
    """The hue that most of the picture has: gray, red, yellow, green, blue or purple. Every fourth pixel counts."""
    p = image[::2, ::2].reshape(-1, 3).astype(np.float32)
    top, spread = p.max(1), p.max(1) - p.min(1)
    gray = spread < 40
    if gray.mean() > 0.5:
        return "gray"
    (r, g, b), top, spread = p[~gray].T, top[~gray], spread[~gray]
    hue = 60 * np.where(
        top == r, ((g - b) / spread) % 6, np.where(top == g, (b - r) / spread + 2, (r - g) / spread + 4)
    )
    names = ("red", "yellow", "green", "blue", "purple", "red")
    counts = np.bincount(np.searchsorted((30, 75, 170, 260, 330), hue, side="right"), minlength=6)
    counts[0] += counts[5]
    return names[int(np.argmax(counts[:5]))]
