"""Ways to send a scene at a bit rate, and what the far end can still read. All use the product's own encoders.

B90 of a way: kb/s, of all bytes sent (keyframes, and a second stream where there is one), at which the accuracy is
0.9. Rates are tried upwards and the curve is made monotone before it is interpolated in log rate.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import cv2
import numpy as np
from bitrate_scene import H, Image, Shot, W, accuracy, full_range
from penstock.pipeline.clock import MS, SECOND
from penstock.transport.importance import DQP_MOST, GRID_H, GRID_W, ImportanceMap, Source, grid_of
from penstock.transport.roi_encoder import RoiEncoder

SETTLE_S = 1.0  # the first second is not judged: each way begins with its keyframe
EVAL_FPS = 2  # what the model samples
TARGET = 0.9
STEP = 1.3  # between the rates that are tried
LEAST_KBPS, MOST_KBPS = 8.0, 900.0
BASE_FPS = 10
PRESET = "medium"
DECODERS = {"H264": "h264", "VP8": "libvpx"}


@dataclass(frozen=True)
class Seen:
    """A decoded picture. gray: (H, W), full range."""

    frame: av.VideoFrame
    gray: Image

    @property
    def rgb(self) -> Image:
        """(H, W, 3)."""
        return self.frame.to_ndarray(format="rgb24")


Finder = Callable[[Sequence[Shot], int, Seen | None], ImportanceMap | None]
"""(shots, index of the present one, what was decoded last) → the map that is in force."""


@dataclass(frozen=True)
class Way:
    """finder: where the regions come from; None is uniform. crop: send the region apart, the whole small and seldom.
    held: the background is sent at 1/8 of its size and held for 2 s."""

    fps: int = BASE_FPS
    finder: Finder | None = None
    crop: bool = False
    held: bool = False


class Line:
    """An encoder and a decoder of one stream, and the bytes between them."""

    def __init__(
        self, codec: str, kbps: float, fps: float, current: Callable[[], ImportanceMap | None]
    ) -> None:
        self.encoder = RoiEncoder(codec, round(kbps * 1000), current, fps, preset=PRESET)
        self.decoder = av.CodecContext.create(DECODERS[codec], "r")
        self.decoder.thread_count = 1
        self.bytes = 0
        self.keyframes = 0
        self.seen: Seen | None = None  # the last that was decoded

    def __call__(self, rgb: Image, now: int) -> Image | None:
        """(H, W, 3) → the decoded luma (H, W), full range; None when the encoder skipped it."""
        picture = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(format="yuv420p")
        picture.pts, picture.time_base = now * 90 // MS, Fraction(1, 90_000)
        data, is_keyframe = self.encoder.encode(picture, now == 0, now)
        self.bytes += len(data)
        self.keyframes += is_keyframe
        out = None
        if data:
            for frame in self.decoder.decode(av.Packet(data)):
                out = full_range(frame.reformat(format="yuv420p").to_ndarray()[: frame.height])
                self.seen = Seen(frame, out)
        return out


def run(shots: Sequence[Shot], codec: str, kbps: float, way: Way) -> tuple[float, float]:
    """Returns (kb/s really sent, accuracy)."""
    step = BASE_FPS // way.fps
    found: ImportanceMap | None = None
    context_fps = max(1, way.fps // 5) if way.fps < BASE_FPS else 1
    share = 0.15 if way.crop else 0.0  # of the rate, for the whole picture
    line = Line(codec, kbps * (1 - share), way.fps, lambda: None if way.crop or way.held else found)
    context = Line(codec, max(8.0, kbps * share), context_fps, lambda: None)
    whole: Image | None = None
    decoded: Image | None = None
    scores: list[float] = []
    held: Image | None = None
    for index in range(0, len(shots), step):
        shot = shots[index]
        now = index * SECOND // BASE_FPS
        if way.finder is not None:
            found = way.finder(shots, index, None if way.crop else line.seen)
        if way.crop:
            if index % (BASE_FPS // context_fps) == 0:
                small = np.asarray(cv2.resize(shot.rgb, (160, 120), interpolation=cv2.INTER_AREA), np.uint8)
                whole = context(small, now)
            decoded = _cropped(line, shot, whole, now)
        else:
            source = shot.rgb
            if way.held:
                if held is None or index % (2 * BASE_FPS) == 0:
                    held = _coarse(shot.rgb)
                source = _hold(shot, held, found, now)
            decoded = line(source, now)
        at = index / BASE_FPS
        judged = index % (BASE_FPS // EVAL_FPS) == (2 if way.fps == BASE_FPS else 0)
        if decoded is not None and at >= SETTLE_S and judged:
            scores.append(accuracy(decoded, shot))
    seconds = len(shots) / BASE_FPS
    return (line.bytes + context.bytes * way.crop) * 8 / seconds / 1000, float(
        np.mean(scores)
    ) if scores else 0.0


def _cropped(line: Line, shot: Shot, whole: Image | None, now: int) -> Image | None:
    """The region and a margin of 8 pixels, laid over the enlarged small picture."""
    place = _around(shot)
    sent = line(np.ascontiguousarray(shot.rgb[place]), now)
    if sent is None:
        return None
    base = np.zeros((H, W), np.uint8) if whole is None else np.asarray(cv2.resize(whole, (W, H)), np.uint8)
    base[place] = sent
    return base


def _around(shot: Shot) -> tuple[slice, slice]:
    """Where in the picture what is asked about is, with a margin of 8 pixels."""
    w, h = shot.width + 16, shot.height + 16
    x, y = min(max(0, shot.x - 8), W - w), min(max(0, shot.y - 8), H - h)
    return slice(y, y + h), slice(x, x + w)


def _coarse(rgb: Image) -> Image:
    small = cv2.resize(rgb, (W // 8, H // 8), interpolation=cv2.INTER_AREA)
    return np.asarray(cv2.resize(small, (W, H), interpolation=cv2.INTER_LINEAR), np.uint8)


def _hold(shot: Shot, held: Image, found: ImportanceMap | None, now: int) -> Image:
    if found is None or not found.dqp(now):
        return shot.rgb
    mask = cv2.resize(found.grid, (W, H), interpolation=cv2.INTER_NEAREST).astype(np.float32) / 255
    mask = cv2.GaussianBlur(mask, (0, 0), 4)[..., None]
    return np.asarray(shot.rgb * mask + held * (1 - mask), np.uint8)


# ---------------------------------------------------------------- where regions come from


def oracle(confidence: float = 1.0, stale_s: float = 0.0, exact: bool = True) -> Finder:
    """The display's true place, so long ago; `exact` to the cell, else with the cells beside it at half."""

    def find(shots: Sequence[Shot], index: int, _: Seen | None) -> ImportanceMap:
        seen = shots[max(0, index - round(stale_s * BASE_FPS))]
        grid = grid_of([seen.box], soft=not exact)
        at = round(max(0.0, index / BASE_FPS - stale_s) * SECOND)
        return ImportanceMap(grid, confidence, at, source=Source.boxes)

    return find


def wrong(confidence: float) -> Finder:
    """A place where the display is not, half a picture away."""

    def find(shots: Sequence[Shot], index: int, _: Seen | None) -> ImportanceMap:
        x, y, w, h = shots[index].box
        moved = ((x + 0.5) % (1 - w), (y + 0.5) % (1 - h), w, h)
        return ImportanceMap(grid_of([moved]), confidence, index * SECOND // BASE_FPS, source=Source.boxes)

    return find


def tap(dqp_max: float = DQP_MOST) -> Finder:
    """The user draws a box around it once, at the start, and leaves a margin of one cell; it holds until he takes it
    away, and it does not follow what moves."""

    def find(shots: Sequence[Shot], index: int, _: Seen | None) -> ImportanceMap:
        x, y, w, h = shots[0].box
        left, top = max(0.0, x - 1 / GRID_W), max(0.0, y - 1 / GRID_H)
        box = (left, top, min(1 - left, w + 2 / GRID_W), min(1 - top, h + 2 / GRID_H))
        return ImportanceMap(
            grid_of([box]), 1.0, index * SECOND // BASE_FPS, dqp_max=dqp_max, source=Source.user
        )

    return find


# ---------------------------------------------------------------- the figure


def b90(points: Sequence[tuple[float, float]]) -> float | None:
    """kb/s at accuracy 0.9 of (kb/s, accuracy) points; None when it is not reached."""
    best, hull = 0.0, list[tuple[float, float]]()
    for kbps, score in sorted(points):
        best = max(best, score)
        hull.append((kbps, best))
    if hull and hull[0][1] >= TARGET:
        return hull[0][0]  # the least rate tried: an upper bound
    for (k0, a0), (k1, a1) in itertools.pairwise(hull):
        if a0 < TARGET <= a1:
            return math.exp(math.log(k0) + (TARGET - a0) / (a1 - a0) * (math.log(k1) - math.log(k0)))
    return None


def find_b90(
    shots: Sequence[Shot], codec: str, way: Way, guess: float
) -> tuple[float | None, list[tuple[float, float]]]:
    """Tries rates around the guess until both sides of 0.9 are seen, and one more on each."""
    tried: dict[int, tuple[float, float]] = {}
    k = 0

    def at(n: int) -> float:
        if n not in tried:
            tried[n] = run(shots, codec, guess * STEP**n, way)
        return tried[n][1]

    if at(0) >= TARGET:
        while at(k) >= TARGET and guess * STEP ** (k - 1) >= LEAST_KBPS:
            k -= 1
    else:
        while at(k) < TARGET and guess * STEP ** (k + 1) <= MOST_KBPS:
            k += 1
        at(k - 2) if guess * STEP ** (k - 2) >= LEAST_KBPS else None
    points = sorted(tried.values())
    return b90(points), points


def still_bytes_at_90(shots: Sequence[Shot]) -> tuple[int | None, float]:
    """The least mean size of a WebP still of the region with accuracy ≥ 0.9, and its accuracy: what a FETCH costs."""
    from penstock.transport.stills import encode_still

    for quality in (10, 20, 30, 40, 50, 60, 75):
        sizes: list[int] = []
        scores: list[float] = []
        for shot in shots[BASE_FPS :: BASE_FPS // EVAL_FPS]:
            place = _around(shot)
            data = encode_still(np.ascontiguousarray(shot.rgb[place]), quality)
            sizes.append(len(data))
            shown = np.zeros((H, W), np.uint8)
            shown[place] = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
            scores.append(accuracy(shown, shot))
        if np.mean(scores) >= TARGET:
            return round(float(np.mean(sizes))), float(np.mean(scores))
    return None, 0.0
