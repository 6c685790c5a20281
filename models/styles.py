"""Picture styles by classical filters: each takes a picture and gives one, and remembers nothing.

Every style is a pure function `(image, detail) -> image` on uint8 (H, W, 3) RGB, any size from 1×1. `detail`
in [0, 1] goes from broad strokes to fine ones. Smoothing runs at half resolution, where it costs a quarter:
all styles stay within a few ms at 640×480 on one core. Thresholds are soft and grain is fixed to the picture, so
that a still scene stays still.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Style = Callable[[Image, float], Image]


def _u8(array: Any) -> Image:
    return np.asarray(array, np.uint8)


def _gray(image: Image) -> Image:
    return _u8(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))


def _rgb(gray: Image) -> Image:
    return _u8(cv2.cvtColor(gray, cv2.COLOR_GRAY2RGB))


def _size(image: Image) -> tuple[int, int]:
    return image.shape[1], image.shape[0]


def _shrink(image: Image, by: int) -> Image:
    width, height = _size(image)
    size = (max(1, width // by), max(1, height // by))
    return _u8(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def _grow(image: Image, like: Image) -> Image:
    return _u8(cv2.resize(image, _size(like), interpolation=cv2.INTER_LINEAR))


def _curve(points: list[tuple[int, int]]) -> Image:
    """A tone curve through (in, out) points as a table of 256."""
    xs, ys = zip(*points, strict=True)
    return np.interp(np.arange(256), xs, ys).astype(np.uint8)


def _saturate(image: Image, gain: float) -> Image:
    """Move each pixel away from its own gray by `gain`."""
    return _u8(cv2.addWeighted(image, gain, _rgb(_gray(image)), 1 - gain, 0))


@lru_cache(maxsize=8)
def _paper(height: int, width: int) -> Image:
    """The grain of paper, (H, W) around 255: multiplied in. Seeded, so that it never moves."""
    rng = np.random.default_rng(7)
    grain = rng.normal(0, 1, (height, width)).astype(np.float32)
    # fibres are longer than they are wide
    grain = cv2.GaussianBlur(grain, (0, 0), sigmaX=1.6, sigmaY=0.7)
    grain /= grain.std() + 1e-6
    return np.clip(246 + 7 * grain, 205, 255).astype(np.uint8)


@lru_cache(maxsize=8)
def _vignette(height: int, width: int) -> Image:
    """(H, W): 255 in the middle, darker towards the corners."""
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]  # type: ignore[misc]
    fall = 1 - 0.55 * np.clip((x * x + y * y) / 2, 0, 1) ** 1.3
    return (255 * fall).astype(np.uint8)


def _ink(gray: Image, detail: float, gain: float) -> Image:
    """Dark lines on white, (H, W): an extended difference of Gaussians with a soft threshold.

    Source: Winnemöller, Kyprianidis, Olsen, "XDoG" (2012), eq. 5 with a linear ramp in place of tanh.
    """
    narrow = cv2.GaussianBlur(gray, (5, 5), 1.7 - 1.1 * detail)
    side = 3 if detail > 0.6 else 5
    wide = cv2.blur(
        cv2.blur(gray, (side, side)), (side, side)
    )  # twice a box: nearly a Gaussian, a third of the time
    dark = _u8(cv2.subtract(wide, narrow))  # only the dark side of an edge is drawn
    ramp = np.clip(255 - gain * np.clip(np.arange(256) - 2, 0, None), 0, 255).astype(np.uint8)
    return _u8(cv2.LUT(dark, ramp))


def pencil(image: Image, detail: float) -> Image:
    """Graphite on paper: dodge by a wide blur leaves contours, hatching darkens the shadows."""
    gray = _gray(image)
    by = 2 if detail > 0.6 else 4
    blurred = _grow(_u8(cv2.blur(cv2.blur(_shrink(gray, by), (9, 9)), (5, 5))), gray)
    # lifted blacks: 0 / 0 would fill every dark surface with solid black
    lift = _curve([(0, 45), (255, 255)])
    dodge = _u8(cv2.divide(cv2.LUT(gray, lift), cv2.LUT(blurred, lift), scale=250))
    lines = _u8(cv2.LUT(dodge, _curve([(0, 0), (150, 55), (215, 165), (245, 250), (255, 255)])))
    shade = _u8(cv2.LUT(blurred, _curve([(0, 128), (60, 196), (130, 243), (255, 255)])))
    sketch = cv2.multiply(lines, shade, scale=1 / 255)
    sketch = cv2.multiply(sketch, _ink(gray, detail, 14), scale=1 / 255)
    return _rgb(_u8(cv2.multiply(sketch, _paper(*gray.shape), scale=1 / 255)))


def neon(image: Image, detail: float) -> Image:
    """Glowing contours in the scene's own colours, on night."""
    gray = cv2.GaussianBlur(_gray(image), (5, 5), 1.6 - detail)
    dx = cv2.convertScaleAbs(cv2.Scharr(gray, cv2.CV_16S, 1, 0), alpha=0.09)
    dy = cv2.convertScaleAbs(cv2.Scharr(gray, cv2.CV_16S, 0, 1), alpha=0.09)
    edges = _u8(cv2.LUT(cv2.add(dx, dy), _curve([(0, 0), (14, 0), (60, 150), (140, 255), (255, 255)])))
    hue, saturation, _ = cv2.split(cv2.cvtColor(_shrink(image, 4), cv2.COLOR_RGB2HSV))
    # full colour wherever there is any, electric blue where there is none
    hue = np.where(saturation < 28, 105, hue).astype(np.uint8)
    vivid = cv2.merge([hue, np.maximum(saturation, 205), np.full_like(hue, 255)])
    light = _grow(_u8(cv2.blur(cv2.cvtColor(vivid, cv2.COLOR_HSV2RGB), (5, 5))), image)
    halo = _grow(_u8(cv2.GaussianBlur(_shrink(edges, 4), (0, 0), 3.0)), edges)
    lit = cv2.multiply(light, _rgb(_u8(cv2.addWeighted(edges, 1.0, halo, 1.2, 0))), scale=1 / 255)
    core = _rgb(_u8(cv2.LUT(edges, _curve([(0, 0), (170, 0), (255, 120)]))))  # tubes are white inside
    return _u8(cv2.add(cv2.addWeighted(lit, 1.0, image, 0.07, 0), core))


def _smooth(image: Image, passes: int, colour: float) -> Image:
    """Flatten surfaces and keep edges, at half resolution: (H/2, W/2, 3)."""
    small = _shrink(image, 2)
    for _ in range(passes):
        small = cv2.bilateralFilter(small, 5, colour, 4)
    return _u8(small)


@lru_cache(maxsize=8)
def _steps(levels: int, softness: float) -> Image:
    """A staircase of `levels` with ramps between: hard steps would flicker with the sensor's noise."""
    x = np.arange(256) / 255 * levels
    base = np.floor(x)
    ramp = np.clip((x - base - 0.5) / softness + 0.5, 0, 1)
    return np.clip((base + ramp) / levels * 255, 0, 255).astype(np.uint8)


def cartoon(image: Image, detail: float) -> Image:
    """Flat bright areas inside inked lines."""
    flat = _smooth(image, 2, 38)
    hsv = list(cv2.split(cv2.cvtColor(flat, cv2.COLOR_RGB2HSV)))
    hsv[1] = cv2.LUT(hsv[1], _curve([(0, 0), (40, 60), (120, 175), (255, 255)]))
    hsv[2] = cv2.LUT(
        cv2.LUT(hsv[2], _curve([(0, 22), (128, 150), (255, 255)])), _steps(5 + round(4 * detail), 0.45)
    )
    colour = _u8(cv2.cvtColor(cv2.merge(hsv), cv2.COLOR_HSV2RGB))
    ink = _ink(_gray(image), detail * 0.8, 16)
    return _u8(cv2.multiply(_grow(colour, image), _rgb(ink), scale=1 / 255))


def watercolor(image: Image, detail: float) -> Image:
    """Washes of light colour on paper, darker where the pigment gathers at their rims."""
    wash = _smooth(image, 2 if detail < 0.7 else 1, 52)
    wash = _u8(cv2.medianBlur(wash, 3 if detail > 0.5 else 5))
    gray = _gray(wash)
    rim = cv2.morphologyEx(gray, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
    rim = _u8(cv2.LUT(rim, _curve([(0, 255), (12, 255), (60, 185), (255, 150)])))
    light = _u8(cv2.LUT(_saturate(wash, 1.45), _curve([(0, 46), (90, 132), (190, 226), (255, 255)])))
    light = _u8(cv2.multiply(light, _rgb(rim), scale=1 / 255))
    # lightness of the picture itself comes back a little: a wash does not hide the drawing
    full = cv2.addWeighted(_grow(light, image), 0.88, image, 0.12, 0)
    return _u8(cv2.multiply(full, _rgb(_paper(*image.shape[:2])), scale=1 / 255))


def oil(image: Image, detail: float) -> Image:
    """Thick strokes: each pixel takes the mean of the calmest of four windows around it.

    Source: Kuwahara et al. (1976); windows by box filters, so that the cost does not grow with their size.
    """
    small = _shrink(image, 2)
    height, width = small.shape[:2]
    radius = 4 - round(2 * detail)
    wide = _u8(cv2.copyMakeBorder(small, *[radius] * 4, borderType=cv2.BORDER_REPLICATE))
    gray, window = _gray(wide), (radius + 1, radius + 1)
    mean = cv2.blur(gray.astype(np.float32), window)
    spreads = cv2.sqrBoxFilter(gray, cv2.CV_32F, window) - mean * mean
    means = cv2.blur(wide, window)
    best = np.full((height, width), np.inf, np.float32)
    out = np.zeros_like(small)
    # one filtering serves all four: the window whose corner is a pixel is centred (radius + 1) // 2 away from it
    near, far = (radius + 1) // 2, (radius + 1) // 2 + radius
    for y in (near, far):
        for x in (near, far):
            spread = spreads[y : y + height, x : x + width]
            calmer = cv2.compare(spread, best, cv2.CMP_LT)
            cv2.min(spread, best, best)
            cv2.copyTo(np.ascontiguousarray(means[y : y + height, x : x + width]), calmer, out)
    painted = _grow(_saturate(out, 1.35), image)
    relief = _u8(cv2.Laplacian(_gray(painted), cv2.CV_8U, ksize=1))
    return _u8(cv2.add(painted, _rgb(relief)))


def thermal(image: Image, detail: float) -> Image:
    """A heat camera's colours: brightness stands for warmth."""
    gray = cv2.GaussianBlur(_gray(image), (0, 0), 2.6 - 2 * detail)
    heat = cv2.applyColorMap(gray, cv2.COLORMAP_INFERNO)
    return _u8(cv2.cvtColor(heat, cv2.COLOR_BGR2RGB))


def noir(image: Image, detail: float) -> Image:
    """High-contrast black and white with a dark rim, as old crime films."""
    red, green, blue = cv2.split(image)
    # an orange filter on the lens: bright skin, dark skies
    gray = cv2.addWeighted(cv2.addWeighted(red, 0.6, green, 0.4, 0), 0.92, blue, 0.08, 0)
    soft = cv2.blur(gray, (5, 5))
    crisp = cv2.addWeighted(gray, 1 + 0.8 * detail, soft, -0.8 * detail, 0)
    toned = cv2.LUT(crisp, _curve([(0, 0), (50, 14), (105, 78), (160, 190), (215, 245), (255, 255)]))
    toned = cv2.multiply(toned, _vignette(*image.shape[:2]), scale=1 / 255)
    return _rgb(_u8(cv2.multiply(toned, _paper(*image.shape[:2]), scale=1 / 248)))


def pixel(image: Image, detail: float) -> Image:
    """Big square pixels of few colours, as an early console."""
    width, height = _size(image)
    across = 40 + round(88 * detail)
    by = max(1, width // across)
    size = (max(1, width // by), max(1, height // by))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    few = cv2.LUT(_saturate(_u8(small), 1.5), _steps(6, 0.25))
    return _u8(cv2.resize(few, (width, height), interpolation=cv2.INTER_NEAREST))


_BLUEPRINT = np.linspace((16, 54, 112), (234, 243, 255), 256).astype(np.uint8)[
    :, None, :
]  # (256, 1, 3) blue to white


def blueprint(image: Image, detail: float) -> Image:
    """White construction lines on blue."""
    gray = _gray(image)
    lines = cv2.bitwise_not(_ink(gray, detail, 17))
    tone = cv2.LUT(_grow(_shrink(gray, 2), gray), _curve([(0, 0), (255, 60)]))
    alpha = cv2.subtract(cv2.add(lines, tone), cv2.bitwise_not(_paper(*gray.shape)))
    return _u8(cv2.LUT(_rgb(_u8(alpha)), _BLUEPRINT))


STYLES: dict[str, Style] = {
    "pencil": pencil,
    "neon": neon,
    "cartoon": cartoon,
    "watercolor": watercolor,
    "oil": oil,
    "thermal": thermal,
    "noir": noir,
    "pixel": pixel,
    "blueprint": blueprint,
}


def apply(style: str, image: Image, strength: float = 1.0, detail: float = 0.5) -> Image:
    """`image` (H, W, 3) in a style, mixed with itself by `strength`. The same array when that is identity.

    Raises: ValueError for a style that is not in STYLES and not "none".
    """
    if style == "none" or strength <= 0:
        return image
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; there are: none, {', '.join(STYLES)}")
    styled = STYLES[style](np.ascontiguousarray(image), min(1.0, max(0.0, detail)))
    if strength >= 1:
        return styled
    return _u8(cv2.addWeighted(styled, strength, image, 1 - strength, 0))


_STILL = 5  # levels of gray: a webcam's noise indoors
_MOVED = 22  # surely something else than noise


@lru_cache(maxsize=4)
def _weights(amount: float) -> NDArray[np.float32]:
    """Change of gray → how much of the new picture to take."""
    rise = np.clip((np.arange(256) - _STILL) / (_MOVED - _STILL), 0, 1)
    return (1 - amount * (1 - rise)).astype(np.float32)


def steady(previous: Image | None, image: Image, amount: float) -> Image:
    """Average away the sensor's noise where nothing moves, so that styles do not shimmer.

    `previous` is this function's last result (or None), `amount` in [0, 1) how much of it to keep in still
    places. A motion-adaptive first-order recursive filter; moving pixels are taken as they come.
    """
    if previous is None or previous.shape != image.shape or amount <= 0:
        return image
    change = cv2.absdiff(_shrink(_gray(image), 2), _shrink(_gray(previous), 2))
    change = cv2.blur(cv2.dilate(change, np.ones((3, 3), np.uint8)), (3, 3))
    new = cv2.LUT(_grow(_u8(change), image), _weights(round(amount, 2)))
    # rounding would leave a ghost one or two levels off for ever; accept it: it is below what eyes see
    return _u8(cv2.blendLinear(image, previous, new, 1 - new))
