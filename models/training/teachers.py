"""The pictures that `tiny-restyle` learns to draw: classical filters, smooth enough to be learned.

All take float32 RGB (H, W, 3) in [0, 1] and are deterministic. Unlike `models/styles.py`, which draws for people,
none depends on the picture's size or on where in it a crop lies, but for the 8 px grid of `pixel`; thresholds
are soft, and there is no paper grain: a network cannot guess noise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.float32]  # (H, W, 3) in [0, 1]
Plane = NDArray[np.float32]  # (H, W)

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_INKS: dict[str, tuple[float, float, float]] = {
    "cyan": (0.1, 0.9, 1.0),
    "magenta": (1.0, 0.15, 0.9),
    "green": (0.2, 0.95, 0.3),
    "orange": (1.0, 0.55, 0.1),
    "blue": (0.2, 0.4, 1.0),
    "red": (1.0, 0.15, 0.2),
}
_INFERNO = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[None], cv2.COLORMAP_INFERNO)
_HEAT = np.asarray(_INFERNO, np.float32)[0, :, ::-1] / 255  # (256, 3)


def _f32(array: Any) -> NDArray[np.float32]:
    return np.asarray(array, np.float32)


def luma(x: Picture) -> Plane:
    """(H, W) Rec. 601."""
    return _f32(x @ _LUMA)


def saturate(x: Picture, gain: float) -> Picture:
    """Move each pixel away from its gray by `gain`."""
    gray = luma(x)[..., None]
    return _f32(np.clip(gray + (x - gray) * gain, 0, 1))


def _blur(x: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
    return _f32(cv2.GaussianBlur(x, (0, 0), sigma))


def _ramp(x: Plane, low: float, high: float) -> Plane:
    """0 below `low`, 1 above `high`, smooth between."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return _f32(t * t * (3 - 2 * t))


def _halved(x: Picture) -> Picture:
    return _f32(cv2.resize(x, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA))


def _doubled(x: Picture, like: Picture) -> Picture:
    size = (like.shape[1], like.shape[0])
    return _f32(np.clip(cv2.resize(x, size, interpolation=cv2.INTER_CUBIC), 0, 1))


def _flat(x: Picture, colour: float) -> Picture:
    """Surfaces without their texture, at half resolution."""
    small = (_halved(x) * 255).astype(np.uint8)
    for _ in range(2):
        small = cv2.bilateralFilter(small, 5, colour, 4)
    return _doubled(_f32(small / 255), x)


def _lines(x: Picture, width: float = 1.0) -> Plane:
    """1 on the dark side of contours, 0 elsewhere. Source: XDoG (Winnemöller et al. 2012) with a smooth ramp."""
    gray = luma(x)
    return _ramp(_f32(_blur(gray, 2.4 * width) - _blur(gray, 0.9 * width)), 0.008, 0.05)


def _soft_steps(x: NDArray[np.float32], levels: int, hardness: float) -> NDArray[np.float32]:
    """A staircase whose risers are sigmoids: a hard one would flicker with the sensor's noise."""
    t = x * levels
    base = np.floor(t)
    return _f32(np.clip((base + 1 / (1 + np.exp(-hardness * (t - base - 0.5)))) / levels, 0, 1))


def _edges(x: Picture) -> Plane:
    gray = _blur(luma(x), 1.0)
    dx = _f32(cv2.Sobel(gray, cv2.CV_32F, 1, 0)) / 4
    dy = _f32(cv2.Sobel(gray, cv2.CV_32F, 0, 1)) / 4
    return _f32(np.sqrt(dx * dx + dy * dy + 1e-6))


def _tinted(plane: Plane, paper: Sequence[float], ink: Sequence[float]) -> Picture:
    """plane 1 → paper, 0 → ink."""
    p, i = np.array(paper, np.float32), np.array(ink, np.float32)
    return _f32(i + (p - i) * plane[..., None])


def pencil(x: Picture, ink: str | None) -> Picture:
    gray = luma(x)
    wide = _blur(gray, 4.0)
    dodge = _ramp(_f32((gray + 0.04) / (wide + 0.06)), 0.55, 1.0)
    shade = np.clip(0.55 + 0.75 * _blur(gray, 1.5), 0, 1)
    return _tinted(_f32(dodge * shade), (0.98, 0.97, 0.94), _INKS[ink] if ink else (0.05, 0.05, 0.06))


def crayon(x: Picture, ink: str | None) -> Picture:
    gray = luma(x)
    dodge = _ramp(_f32((gray + 0.04) / (_blur(gray, 4.0) + 0.06)), 0.5, 1.0)[..., None]
    colour = saturate(_f32(0.3 + 0.7 * _blur(x, 1.0)), 1.9)
    return _f32(np.clip(colour * (0.45 + 0.55 * dodge), 0, 1))


def charcoal(x: Picture, ink: str | None) -> Picture:
    gray = _blur(luma(x), 1.2)
    tone = _ramp(gray, 0.05, 0.75)
    smudge = np.clip(1 - 5 * _edges(x), 0.1, 1)
    return _tinted(_f32(tone * smudge), (0.93, 0.92, 0.9), _INKS[ink] if ink else (0.07, 0.07, 0.07))


def neon(x: Picture, ink: str | None) -> Picture:
    edge = np.clip(_edges(x) * 7, 0, 1)[..., None]
    if ink:
        colour = np.broadcast_to(_f32(_INKS[ink]), x.shape)
    else:
        # the scene's own hues at full strength, electric blue where it has none
        soft = _blur(x, 4.0)
        top, low = soft.max(-1, keepdims=True), soft.min(-1, keepdims=True)
        chroma = np.clip((top - low) / (top + 0.02) * 2.5, 0, 1)
        vivid = (soft - low) / (top - low + 0.02)
        colour = vivid * chroma + _f32((0.15, 0.55, 1.0)) * (1 - chroma)
    light = _f32(edge * colour)
    night = x * _f32((0.06, 0.06, 0.12))
    return _f32(np.clip(night + light + 0.8 * _blur(light, 3.0) + 0.3 * edge**3, 0, 1))


def cartoon(x: Picture, ink: str | None) -> Picture:
    flat = saturate(_flat(x, 45), 1.6)
    return _f32(_soft_steps(flat, 5, 9) * (1 - 0.9 * _lines(x)[..., None]))


def watercolor(x: Picture, ink: str | None) -> Picture:
    wash = _flat(x, 55)
    light = saturate(_f32(1 - (1 - wash) * 0.78), 1.4)
    return _f32(np.clip(light - np.clip(_edges(wash) * 1.6, 0, 0.35)[..., None], 0, 1))


def oil(x: Picture, ink: str | None) -> Picture:
    """Kuwahara (1976) with soft weights at half resolution: crisp patches, no argmin that jumps."""
    small = _halved(x)
    size, reach = 3, 1
    mean, square = cv2.blur(small, (size, size)), cv2.blur(small * small, (size, size))
    spread = np.clip((square - mean * mean).sum(-1), 0, None)
    pads = (reach,) * 4
    wide = _f32(cv2.copyMakeBorder(mean, *pads, borderType=cv2.BORDER_REFLECT))
    spreads = _f32(cv2.copyMakeBorder(spread, *pads, borderType=cv2.BORDER_REFLECT))
    height, width = small.shape[:2]
    total, weights = np.zeros_like(small), np.zeros((height, width, 1), np.float32)
    for dy in (0, 2 * reach):
        for dx in (0, 2 * reach):
            window = slice(dy, dy + height), slice(dx, dx + width)
            weight = 1 / (spreads[window] + 2e-4)[..., None] ** 3
            total += wide[window] * weight
            weights += weight
    paint = _doubled(_f32(total / weights), x)
    relief = luma(paint)
    thick = (relief - _blur(relief, 2.0))[..., None]  # strokes stand out from the canvas
    return _f32(np.clip((saturate(paint, 1.5) - 0.5) * 1.12 + 0.5 + 0.9 * thick, 0, 1))


def thermal(x: Picture, ink: str | None) -> Picture:
    heat = np.clip(_blur(luma(x), 1.6), 0, 1)
    return _f32(_HEAT[(heat * 255).astype(np.uint8)])


def noir(x: Picture, ink: str | None) -> Picture:
    gray = x @ _f32((0.45, 0.47, 0.08))  # an orange filter on the lens: bright skin, dark skies
    tone = 1 / (1 + np.exp(-9 * (gray - 0.42)))
    return _f32(np.repeat(tone[..., None], 3, 2))


def sepia(x: Picture, ink: str | None) -> Picture:
    gray = np.clip(0.12 + 0.85 * luma(x), 0, 1)[..., None]
    return _f32(np.clip(gray * _f32((1.07, 0.9, 0.68)), 0, 1))


def pixel(x: Picture, ink: str | None) -> Picture:
    """Cells of 8 px from the top left corner, few levels."""
    height, width = x.shape[:2]
    small = cv2.resize(x, (width // 8, height // 8), interpolation=cv2.INTER_AREA)
    few = _soft_steps(saturate(_f32(small), 1.4), 5, 7)
    return _f32(cv2.resize(few, (width, height), interpolation=cv2.INTER_NEAREST))


def blueprint(x: Picture, ink: str | None) -> Picture:
    alpha = np.clip(0.25 * luma(x) + _lines(x, 0.9) + 1.0 * np.clip(_edges(x) - 0.03, 0, 1), 0, 1)
    return _tinted(_f32(alpha), (0.93, 0.96, 1.0), (0.05, 0.18, 0.45))


def popart(x: Picture, ink: str | None) -> Picture:
    """Four flat tones from indigo to yellow."""
    tone = _soft_steps(np.clip(_blur(luma(x), 1.5) * 1.1, 0, 1), 3, 8)
    ramp = _f32([(0.16, 0.05, 0.42), (0.9, 0.1, 0.5), (1.0, 0.55, 0.2), (1.0, 0.95, 0.55)])
    at = [np.interp(tone, (0, 1 / 3, 2 / 3, 1), ramp[:, c]) for c in range(3)]
    return _f32(np.stack(at, -1) * (1 - 0.6 * _lines(x)[..., None]))


def night(x: Picture, ink: str | None) -> Picture:
    gray = np.clip(luma(x), 0, 1) ** 0.75
    return _f32(gray[..., None] * _f32((0.25, 1.0, 0.35)))


Teacher = Callable[[Picture, "str | None"], Picture]
TEACHERS: dict[str, Teacher] = {
    "identity": lambda x, ink: x,
    "pencil": pencil,
    "crayon": crayon,
    "charcoal": charcoal,
    "neon": neon,
    "cartoon": cartoon,
    "watercolor": watercolor,
    "oil": oil,
    "thermal": thermal,
    "noir": noir,
    "sepia": sepia,
    "pixel": pixel,
    "blueprint": blueprint,
    "popart": popart,
    "night": night,
}
INKED = ("neon", "pencil", "charcoal")
"""Styles whose line takes a colour."""


def apply(x: Picture, style: str, ink: str | None = None, modifiers: Sequence[str] = ()) -> Picture:
    """The teacher's picture of x. Raises: KeyError for a style or modifier that it does not have."""
    y = TEACHERS[style](x, ink)
    for modifier in modifiers:
        y = _MODIFY[modifier](y)
    return _f32(np.clip(y, 0, 1))


_MODIFY: dict[str, Callable[[Picture], Picture]] = {
    "warm": lambda y: _f32(y * _f32((1.12, 1.0, 0.82))),
    "cool": lambda y: _f32(y * _f32((0.84, 1.0, 1.16))),
    "vivid": lambda y: saturate(y, 1.6),
    "muted": lambda y: saturate(y, 0.5),
    "dark": lambda y: _f32(y**1.6),
    "bright": lambda y: _f32(y**0.65),
}
