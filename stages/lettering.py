"""Two lines of caption as a strip with opacity, and that strip laid on a picture.

Letters come from DejaVu Sans where it is installed, from any of a few wide-coverage fonts for scripts that it
lacks, and from Pillow's own font where there is none.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pictures
from PIL import ImageDraw, ImageFont

from ..pipeline.frame import PixelFormat

Image = NDArray[np.uint8]

_LINES = 2
_WHITE, _GRAY, _BOX = (255, 255, 255), (178, 184, 192), (12, 14, 18)
_BOX_OPACITY = 0.68
_FONTS = (
    "DejaVuSans.ttf",
    "/usr/share/fonts/truetype/noto/NotoSans-Regular.ttf",
    "/usr/share/fonts/opentype/noto/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/noto-cjk/NotoSansCJK-Regular.ttc",
    "/usr/share/fonts/truetype/wqy/wqy-zenhei.ttc",
    "/System/Library/Fonts/Helvetica.ttc",
    "/System/Library/Fonts/PingFang.ttc",
    "C:/Windows/Fonts/segoeui.ttf",
    "C:/Windows/Fonts/msyh.ttc",
)


@dataclass(frozen=True, slots=True)
class Strip:
    """A caption with its box. `y` etc. are that of i420: even sizes, so that both formats take it alike."""

    rgb: Image  # (h, w, 3)
    alpha: Image  # (h, w)
    yuv: Image  # (h * 3/2, w) i420
    margin: int  # px between the box and the picture's edge


@lru_cache(maxsize=16)
def _fonts(px: int) -> tuple[Any, ...]:
    """The fonts that are there, in order of preference; never empty."""
    found: list[Any] = []
    for name in _FONTS:
        if name.startswith(("/", "C:")) and not Path(name).exists():
            continue
        try:
            found.append(ImageFont.truetype(name, px))
        except OSError:
            continue  # not installed
    return (*found, ImageFont.load_default(px))


@lru_cache(maxsize=4096)
def _has(font_index: int, px: int, char: str) -> bool:
    """Whether a font has its own glyph for a character: not the box that stands for all it lacks."""
    font = _fonts(px)[font_index]
    return bytes(font.getmask(char)) != bytes(font.getmask("\U0010fffe"))


def _font_for(text: str, px: int) -> Any:
    """The first font that has all of the text's letters, else the one that lacks fewest."""
    letters = {c for c in text if not c.isspace()}
    fonts = _fonts(px)
    lacking = [sum(not _has(i, px, c) for c in letters) for i in range(len(fonts))]
    return fonts[lacking.index(min(lacking))]


def _clean(text: str) -> str:
    """Without control and private characters, which fonts draw as boxes or not at all."""
    return "".join(" " if unicodedata.category(c) in ("Cc", "Cs", "Co", "Cn") else c for c in text)


def wrap(words: list[tuple[str, bool]], font: Any, width: float) -> list[list[tuple[str, bool]]]:
    """(word, committed) pairs into lines of at most `width` px; a word wider than a line is broken."""
    space = font.getlength(" ")
    lines: list[list[tuple[str, bool]]] = []
    used = width + 1.0
    for word, done in words:
        rest = word
        while rest:
            length = font.getlength(rest)
            if used + length <= width:
                lines[-1].append((rest, done))
                used += length + space
                break
            if length <= width:
                lines.append([(rest, done)])
                used = length + space
                break
            fit = max(1, next((n for n in range(len(rest), 0, -1) if font.getlength(rest[:n]) <= width), 1))
            lines.append([(rest[:fit], done)])
            rest, used = rest[fit:], width + 1.0
    return lines


def render(committed: str, partial: str, width: int, height: int, size: float) -> Strip | None:
    """The last two lines of a caption for a picture of width × height px. None when there is no room or text.

    `size` is the letters' height as a share of the picture's.
    """
    committed, partial = _clean(committed), _clean(partial)
    px = max(8, round(height * size))
    pad_x, pad_y = max(2, round(px * 0.6)), max(2, round(px * 0.35))
    room = width * 0.92 - 2 * pad_x
    words = [(w, True) for w in committed.split()] + [(w, False) for w in partial.split()]
    if not words or room < px or height < 3 * px:
        return None
    font = _font_for(committed + partial, px)
    lines = wrap(words, font, room)[-_LINES:]
    ascent, descent = font.getmetrics()
    step = round((ascent + descent) * 1.12)
    space = font.getlength(" ")
    lengths = [sum(font.getlength(w) for w, _ in line) + space * (len(line) - 1) for line in lines]
    w = min(width, round(max(lengths)) + 2 * pad_x) // 2 * 2
    h = min(height, step * len(lines) + 2 * pad_y) // 2 * 2

    box = Pictures.new("L", (w, h), 0)
    ImageDraw.Draw(box).rounded_rectangle(
        (0, 0, w - 1, h - 1), round(px * 0.3), fill=round(255 * _BOX_OPACITY)
    )
    letters = Pictures.new("L", (w, h), 0)
    colour = Pictures.new("RGB", (w, h), _WHITE)
    pen, brush = ImageDraw.Draw(letters), ImageDraw.Draw(colour)
    for row, (line, length) in enumerate(zip(lines, lengths, strict=True)):
        x, y = (w - length) / 2, pad_y + row * step
        for word, done in line:
            pen.text((x, y), word, font=font, fill=255)
            if not done:
                brush.rectangle(
                    (x - space / 2, y, x + font.getlength(word) + space / 2, y + step), fill=_GRAY
                )
            x += font.getlength(word) + space
    mask = np.asarray(letters, np.float32)[..., None] / 255
    rgb = np.asarray(colour, np.float32) * mask + np.array(_BOX, np.float32) * (1 - mask)
    rgb8 = np.ascontiguousarray(np.rint(rgb).astype(np.uint8))
    alpha = np.maximum(np.asarray(box), np.asarray(letters)).astype(np.uint8)
    yuv = np.asarray(cv2.cvtColor(rgb8, cv2.COLOR_RGB2YUV_I420), np.uint8)
    return Strip(rgb8, alpha, yuv, max(2, round(height * 0.04)) // 2 * 2)


def _mix(under: Image, over: Image, alpha: NDArray[np.float32]) -> Image:
    return np.asarray(cv2.blendLinear(over, np.ascontiguousarray(under), alpha, 1 - alpha), np.uint8)


def lay_on(image: Image, format: PixelFormat, strip: Strip, position: str, opacity: float) -> Image:
    """A copy of the picture with the strip on it; the picture itself when nothing of it would show."""
    if opacity <= 0:
        return image
    h, w = strip.alpha.shape
    height = image.shape[0] if format == "rgb24" else image.shape[0] * 2 // 3
    width = image.shape[1]
    if h > height or w > width:
        return image
    x = (width - w) // 4 * 2
    y = min(strip.margin, height - h) if position == "top" else max(0, height - h - strip.margin)
    alpha = strip.alpha.astype(np.float32) * np.float32(opacity / 255)
    result = np.ascontiguousarray(image).copy()
    if format == "rgb24":
        result[y : y + h, x : x + w] = _mix(result[y : y + h, x : x + w], strip.rgb, alpha)
        return result
    y = y // 2 * 2
    result[y : y + h, x : x + w] = _mix(result[y : y + h, x : x + w], strip.yuv[:h], alpha)
    half = np.asarray(cv2.resize(alpha, (w // 2, h // 2), interpolation=cv2.INTER_AREA), np.float32)
    mine = strip.yuv.reshape(-1)[h * w :].reshape(2, h // 2, w // 2)
    planes = result.reshape(-1)[height * width :].reshape(2, height // 2, width // 2)
    for plane, chroma in zip(planes, mine, strict=True):
        part = plane[y // 2 : (y + h) // 2, x // 2 : (x + w) // 2]
        part[:] = _mix(part, np.ascontiguousarray(chroma), half)
    return result
