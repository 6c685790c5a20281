"""Where in the picture is something printed? Lines of ink on plain paper, found without a model, and remembered.

What tells print from texture, also after a hard compression that leaves of the letters no more than bars: it lies on a
surface that is plain once the ink is taken away (a closing by a square larger than a stroke), it is quiet above and
below, and there is another line beside it on the same surface. The idea is that of the morphological text detectors (Wu et
al., "Morphology-based text line extraction", 2008); the closing of a picture and of its negative take dark ink and light.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ..pipeline.clock import SECOND

Gray = NDArray[np.uint8]
Pixels = tuple[int, int, int, int]
"""(left, top, right, bottom), the last two not included."""
Box = tuple[float, float, float, float]
"""(x, y, width, height), shares of the picture."""

WIDE = 640  # pixels of the longer side, that pictures are brought to; and half of it, for large letters
STROKE = 17  # pixels: no stroke of ink is as wide
INK = 10  # levels darker than the paper
FAINT = 0.3  # of the strongest ink around: no ink, but what a compression smears between lines
LINE_HEIGHTS = (5, 40)
QUIET, BESIDE = 0.6, 0.6  # of the ink: at most that much of it above and below, and at both ends
PLAIN = 0.16  # of the ink: the deviation of the paper
SAME = 12  # levels between papers that are one
PAPER = 10  # levels around the paper's that are still it
STILL = 0.4  # of an edge: paper beyond it; codes and pictures are on it too
LINES = 2  # together, to be print
MOST_LINES = 200  # of a look, the strongest: each is compared with each
HALF_LIFE = 3 * SECOND  # of evidence
MOST_PER_LOOK = 3
MOST_LOOKS = 3  # that count: what has gone is forgotten in ten seconds
TRUST = ((2.0, 0.6), (1.0, 0.45))  # evidence from which on it is trusted so far
FORGOTTEN = 0.5
SHRINKS = 0.34  # share by which a box that is seen smaller gives way; larger it is at once
EVERYWHERE = 0.5  # of the picture: nowhere
MOST_SURFACES = 8


@dataclass(frozen=True, slots=True)
class Print:
    """box: of the surface it is on. lines: of ink that were seen on it."""

    box: Box
    lines: int


@dataclass(slots=True)
class _Seen:
    box: Box
    evidence: float
    gained: float  # the most in one look
    at: int


class PrintMemory:
    """What is print stays print: evidence for each surface, gathered over looks; it halves every HALF_LIFE."""

    def __init__(self) -> None:
        self._seen: list[_Seen] = []

    def look(self, found: Sequence[Print], now: int) -> tuple[list[Box], float] | None:
        """found: of the picture of `now`, ns. Returns the surfaces that are trusted, and how far the best is; or None."""
        for seen in self._seen:
            seen.evidence *= 0.5 ** (max(0, now - seen.at) / HALF_LIFE)
            seen.at = now
        for one in found:
            gained = float(min(MOST_PER_LOOK, one.lines - LINES + 1))
            known = max(self._seen, key=lambda s: common(s.box, one.box), default=None)
            if known is not None and common(known.box, one.box) > 0.3:
                known.box = _follow(known.box, one.box)
                known.gained = max(known.gained, gained)
                known.evidence = min(known.evidence + gained, known.gained * MOST_LOOKS)
            else:
                self._seen.append(_Seen(one.box, gained, gained, now))
        self._seen = sorted((s for s in self._seen if s.evidence >= FORGOTTEN), key=lambda s: -s.evidence)[
            :MOST_SURFACES
        ]
        if not self._seen:
            return None
        confidence = _trust(self._seen[0].evidence)
        # weaker ones too: what is left out is starved, and then it is never seen well enough to be let in
        boxes = [s.box for s in self._seen if _trust(s.evidence)]
        if not confidence or sum(w * h for _, _, w, h in boxes) > EVERYWHERE:
            return None
        return boxes, confidence


def _trust(evidence: float) -> float:
    return next((trusted for least, trusted in TRUST if evidence >= least), 0.0)


def _follow(old: Box, new: Box) -> Box:
    """Outward at once, for not all of a surface is seen each time; inward slowly."""
    edges: list[float] = []
    for k in range(2):
        low, high, now_low, now_high = old[k], old[k] + old[k + 2], new[k], new[k] + new[k + 2]
        low = min(now_low, low + SHRINKS * (now_low - low))
        high = max(now_high, high + SHRINKS * (now_high - high))
        edges += [low, high - low]
    return edges[0], edges[2], edges[1], edges[3]


@dataclass(frozen=True, slots=True)
class _Inked:
    """lines (n, 5): left, top, width, height, level of the paper. paper (H, W): the picture without its ink."""

    lines: NDArray[np.float64]
    paper: Gray


def find_print(gray: Gray) -> list[Print]:
    """gray (H, W). The surfaces that carry at least LINES lines, most lines first."""
    height, width = gray.shape
    found: list[tuple[int, Pixels, float]] = []  # lines, box, scale
    scale = min(1.0, WIDE / max(width, height))
    for share in (scale, scale / 2):
        size = max(1, round(width * share)), max(1, round(height * share))
        small = gray if share == 1 else cv2.resize(gray, size, interpolation=cv2.INTER_AREA)
        for negative in (False, True):
            seen = _lines(np.asarray(255 - small if negative else small, np.uint8))
            for members in sorted(_groups(seen.lines), key=len, reverse=True)[:MOST_SURFACES]:
                box = _surface(seen, seen.lines[members])
                found.append((len(members), box, share))
    result: list[Print] = []
    for lines, (left, top, right, bottom), share in sorted(found, key=lambda f: -f[0]):
        box = (
            left / share / width,
            top / share / height,
            (right - left) / share / width,
            (bottom - top) / share / height,
        )
        if not any(common(box, other.box) > 0.3 for other in result):
            result.append(Print(box, lines))
    return result


def common(a: Box, b: Box) -> float:
    """Area in common ÷ area of the smaller."""
    w = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    h = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(0.0, w) * max(0.0, h) / max(1e-9, min(a[2] * a[3], b[2] * b[3]))


def _lines(gray: Gray) -> _Inked:
    """Bars of dark ink on plain paper."""
    height, width = gray.shape
    soft = cv2.GaussianBlur(gray, (0, 0), 0.7)
    paper = cv2.morphologyEx(soft, cv2.MORPH_CLOSE, np.ones((STROKE, STROKE), np.uint8))
    ink = cv2.subtract(paper, soft)
    strongest = cv2.dilate(ink, np.ones((STROKE, STROKE), np.uint8))
    mask = (ink > np.maximum(INK, FAINT * strongest)).astype(np.uint8)
    joined = cv2.morphologyEx(mask, cv2.MORPH_CLOSE, np.ones((1, 9), np.uint8))
    joined = cv2.morphologyEx(joined, cv2.MORPH_OPEN, np.ones((3, 5), np.uint8))
    stats = cv2.connectedComponentsWithStats(joined, connectivity=4)[2][1:]
    x, y, w, h, area = stats.T.astype(np.int64)
    least, most = LINE_HEIGHTS
    band = np.clip(h // 3, 2, 5)
    keep = (
        (least <= h) & (h <= most) & (w >= 1.8 * h) & (w >= 16) & (w <= 0.9 * width) & (area >= 0.5 * w * h)
    )
    keep &= (y >= band + 1) & (y + h + 1 + band <= height)
    x, y, w, h, band = (v[keep] for v in (x, y, w, h, band))
    inks = np.asarray(cv2.integral(ink), np.float64)
    sums, squares = (np.asarray(v, np.float64) for v in cv2.integral2(paper.astype(np.float32)))

    def mean(
        of: NDArray[np.float64],
        x0: NDArray[np.int64],
        y0: NDArray[np.int64],
        x1: NDArray[np.int64],
        y1: NDArray[np.int64],
    ) -> NDArray[np.float64]:
        return (of[y1, x1] - of[y0, x1] - of[y1, x0] + of[y0, x0]) / np.maximum(1, (x1 - x0) * (y1 - y0))

    inside = mean(inks, x, y, x + w, y + h)
    above = mean(inks, x, y - 1 - band, x + w, y - 1)
    below = mean(inks, x, y + h + 1, x + w, y + h + 1 + band)
    left, right = np.maximum(0, x - 6), np.minimum(width, x + w + 6)
    before = mean(inks, left, y, np.maximum(left, x - 2), y + h)
    after = mean(inks, np.minimum(right, x + w + 2), y, right, y + h)
    around = left, y - 1 - band, right, y + h + 1 + band
    level = mean(sums, *around)
    deviation = np.sqrt(np.maximum(0, mean(squares, *around) - level**2))
    good = (np.maximum(above, below) < QUIET * inside) & (deviation < PLAIN * inside)
    good &= np.maximum(before, after) < BESIDE * inside
    lines = np.stack([x, y, w, h, level], 1)[good].astype(np.float64)
    if len(lines) > MOST_LINES:
        lines = lines[np.argsort(-inside[good], kind="stable")[:MOST_LINES]]
    return _Inked(lines, np.asarray(paper, np.uint8))


def _groups(lines: NDArray[np.float64]) -> list[list[int]]:
    """Indices of lines of like height on like paper, one below or beside the other."""
    n = len(lines)
    x, y, w, h, level = lines.T if n else np.zeros((5, 0))
    to_x = np.minimum.outer(x + w, x + w) - np.maximum.outer(x, x)  # in common, or minus the gap
    to_y = np.minimum.outer(y + h, y + h) - np.maximum.outer(y, y)
    tall = np.maximum.outer(h, h)
    like = (np.abs(np.subtract.outer(level, level)) < SAME) & (tall <= 2 * np.minimum.outer(h, h))
    aligned = (
        np.minimum.reduce([np.abs(np.subtract.outer(e, e)) for e in (x, x + w, x + w / 2)]) <= 0.5 * tall
    )
    stacked = aligned & (to_y < 0.3 * tall) & (to_y >= -2.5 * tall)
    beside = (to_y >= 0.7 * np.minimum.outer(h, h)) & (to_x < 0) & (to_x >= -5 * tall)
    near = like & (stacked | beside)
    left = set(range(n))
    groups: list[list[int]] = []
    while left:
        todo, group = [left.pop()], list[int]()
        while todo:
            one = todo.pop()
            group.append(one)
            new = {k for k in left if near[one, k]}
            left -= new
            todo += new
        if len(group) >= LINES:
            groups.append(group)
    return groups


def _surface(seen: _Inked, lines: NDArray[np.float64]) -> Pixels:
    """The box around the lines, let out on each side as long as it finds their paper; at most by its own size."""
    height, width = seen.paper.shape
    level = float(np.median(lines[:, 4]))
    paper = np.abs(seen.paper.astype(np.int16) - level) <= PAPER
    left, top = (int(v) for v in lines[:, :2].min(0))
    right, bottom = int((lines[:, 0] + lines[:, 2]).max()), int((lines[:, 1] + lines[:, 3]).max())
    reach = max(right - left, bottom - top)
    least_x, least_y = max(0, left - reach), max(0, top - reach)
    most_x, most_y = min(width, right + reach), min(height, bottom + reach)
    grows = True
    while grows:
        grows = False
        if left > least_x and paper[top:bottom, left - 1].mean() > STILL:
            left, grows = left - 1, True
        if right < most_x and paper[top:bottom, right].mean() > STILL:
            right, grows = right + 1, True
        if top > least_y and paper[top - 1, left:right].mean() > STILL:
            top, grows = top - 1, True
        if bottom < most_y and paper[bottom, left:right].mean() > STILL:
            bottom, grows = bottom + 1, True
    return left, top, right, bottom
