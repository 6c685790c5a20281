"""`video.look`: what a scene reporter can honestly say of a picture: how bright, which colour, what moves where.

It recognises no things and no people. It measures a thumbnail, so a frame costs well under a millisecond.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from ..pipeline.clock import SECOND
from ..pipeline.frame import EventFrame, Frame, Gap, VideoFrame
from ..pipeline.pixels import i420_planes
from ..pipeline.stage import In, Out, Outputs, Ports, Stage

Image = NDArray[np.uint8]

_WIDTH, _HEIGHT = 64, 48  # of the thumbnail
_NOISE = 12  # levels of gray that a sensor's noise changes a blurred thumbnail by, at most
_FROZEN = 2 * SECOND  # without any pixel's change: real cameras always have noise
_HUES = (  # upper bound of OpenCV's hue (0-179, 2° each), name
    (8, "red"),
    (20, "orange"),
    (34, "yellow"),
    (84, "green"),
    (98, "turquoise"),
    (130, "blue"),
    (148, "purple"),
    (168, "pink"),
    (180, "red"),
)


def thumbnail(frame: VideoFrame) -> Image:
    """(48, 64, 3) RGB: area averages, converted after shrinking, because that is a hundredth of the pixels."""
    size = (_WIDTH, _HEIGHT)
    if frame.format == "rgb24":
        return np.asarray(cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA), np.uint8)
    y, u, v = (cv2.resize(p, size, interpolation=cv2.INTER_AREA) for p in i420_planes(frame.image))
    # limited range BT.601 → RGB, as cv2 does for i420
    luma = 1.164 * (y.astype(np.float32) - 16)
    cb, cr = u.astype(np.float32) - 128, v.astype(np.float32) - 128
    rgb = np.stack([luma + 1.596 * cr, luma - 0.392 * cb - 0.813 * cr, luma + 2.017 * cb], axis=-1)
    return np.clip(np.rint(rgb), 0, 255).astype(np.uint8)


def colour_name(rgb: Image) -> str:
    """The common name of what most of a picture (H, W, 3) is."""
    votes = colour_votes(rgb)
    return max(votes, key=lambda name: votes[name])


def colour_votes(rgb: Image) -> dict[str, int]:
    """How many pixels of a picture (H, W, 3) go by each common name."""
    hsv = cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV).reshape(-1, 3).astype(np.int32)
    hue, saturation, value = hsv[:, 0], hsv[:, 1], hsv[:, 2]
    dark = value < 45
    pale = ~dark & (saturation < 45)
    names = np.searchsorted([bound for bound, _ in _HUES], hue, side="right").clip(0, len(_HUES) - 1)
    # a dim orange is what people call brown
    brown = ~dark & ~pale & (names == 1) & (value < 150)
    coloured = ~dark & ~pale & ~brown
    votes = {
        "black": int(dark.sum()),
        "gray": int((pale & (value < 190)).sum()),
        "white": int((pale & (value >= 190)).sum()),
        "brown": int(brown.sum()),
    }
    for index, (_, name) in enumerate(_HUES):
        votes[name] = votes.get(name, 0) + int((coloured & (names == index)).sum())
    return votes


def motion(before: Image, now: Image) -> tuple[float, str]:
    """Two gray thumbnails (48, 64) → share of the picture that changed, 0-1, and where: "" when nothing did."""
    change = cv2.absdiff(cv2.blur(before, (3, 3)), cv2.blur(now, (3, 3)))
    moved = (change > _NOISE).astype(np.float32)
    share = float(moved.mean())
    if share < 0.004:  # 12 pixels of the thumbnail
        return 0.0, ""
    rows, columns = np.nonzero(moved)
    x, y = float(columns.mean()) / (_WIDTH - 1) - 0.5, float(rows.mean()) / (_HEIGHT - 1) - 0.5
    spread = float(columns.std()) / _WIDTH
    if share > 0.5 or (abs(x) < 0.1 and abs(y) < 0.1 and spread > 0.27):
        return share, "everywhere"
    if max(abs(x), abs(y)) < 0.17:
        return share, "centre"
    if abs(x) >= abs(y):
        return share, "left" if x < 0 else "right"
    return share, "top" if y < 0 else "bottom"


def sentence(brightness: float, colour: str, share: float, region: str, frozen_s: float) -> str:
    """What is measured, as one would say it."""
    if brightness < 0.03:
        return "I see only black. The camera may be covered or off."
    if brightness > 0.97:
        return "I see only white. The picture is overexposed."
    light = (
        "dark"
        if brightness < 0.25
        else "dim"
        if brightness < 0.4
        else "bright"
        if brightness > 0.7
        else "well lit"
    )
    text = f"The picture is {light} and mostly {colour}."
    if frozen_s:
        return f"{text} It has not changed at all for {round(frozen_s)} seconds: it may be frozen."
    if not region:
        return f"{text} Nothing moves."
    much = "A lot" if share > 0.25 else "Something" if share > 0.03 else "Something small"
    where = {
        "everywhere": "everywhere",
        "centre": "in the middle",
        "left": "on the left",
        "right": "on the right",
        "top": "at the top",
        "bottom": "at the bottom",
    }[region]
    return f"{text} {much} moves {where}."


class Look(Stage):
    """Reports each picture it is given as `seen`: feed it a few a second (`cam.video|every(250ms)`)."""

    ports = Ports({"video": In(VideoFrame)}, {"seen": Out(EventFrame, "state")})

    _gray: Image | None = None  # (48, 64) the last thumbnail
    _sample: Image | None = None  # every 4th pixel of the last picture: equal only if the picture is
    _same_since: int = 0  # pts of the first of the equal pictures

    def process(self, port: str, frame: Frame, out: Outputs) -> None:
        assert isinstance(frame, VideoFrame)
        rgb = thumbnail(frame)
        gray = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8)
        share, region = motion(self._gray, gray) if self._gray is not None else (0.0, "")
        sample = frame.image[::4, ::4].copy()
        if self._sample is None or not np.array_equal(sample, self._sample):
            self._same_since = frame.pts
        frozen = frame.pts - self._same_since
        frozen_s = frozen / SECOND if frozen >= _FROZEN else 0.0
        self._gray, self._sample = gray, sample
        brightness, colour = float(gray.mean()) / 255, colour_name(rgb)
        fields = {
            "brightness": round(brightness, 3),
            "colour": colour,
            "motion": round(share, 3),
            "region": region,
            "black": brightness < 0.03,
            "frozen": frozen_s > 0,
            "sentence": sentence(brightness, colour, share, region, frozen_s),
        }
        out.post(
            "seen",
            EventFrame(pts=frame.pts, deadline=frame.deadline, epoch=out.epoch, name="seen", fields=fields),
        )

    def gap(self, port: str, gap: Gap, out: Outputs) -> None:
        """Lost frames say nothing of the scene: the next picture is still compared with the last one seen."""
