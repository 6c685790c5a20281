"""Divides bits among streams by what they are worth. Policy only.

Sound first. Then the sum of weight × accuracy(bits a picture) is made as large as the budget allows: each stream's curve is
taken on a ladder of rates, its upper concave hull is cut into steps, and steps are bought by slope. Nothing is bought
that is worth less than EPSILON: bits that no longer help are given back.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .utility import Learner

LADDER: NDArray[np.float64] = np.array([0.0, *(12 * 1.3**k for k in range(21))])  # kb/s, to 2.3 M
AUDIO_KBPS = 32.0  # Opus and its headers
SHARE = 0.8  # of the capacity that is given out: headers, repeats, reports, and bursts of several at once (.9 lost a fifth more)
EPSILON = 2e-4  # accuracy for one more kb/s, 2 points for 100; less is not bought
IDLE = 0.05  # weight of a stream about which nobody asks now
PEAK = 3.0  # the largest picture against the mean: a keyframe, or a new scene


@dataclass(frozen=True, slots=True)
class Stream:
    """key: names it in the result. fps: what its consumer samples. path_kbps: what its own path carries. scale: what
    regions save. deadline_s: within which its largest picture must have come. least, most: kb/s, by its owner. session:
    tracks of one share its path and its sound; "": it is alone."""

    key: str
    learner: Learner
    fps: float
    weight: float = 1.0
    active: bool = True
    audio: bool = False
    path_kbps: float = math.inf
    scale: float = 1.0
    deadline_s: float = 1.0
    least_kbps: float = 0.0
    most_kbps: float = math.inf
    session: str = ""

    @property
    def group(self) -> str:
        return self.session or self.key


@dataclass(frozen=True, slots=True)
class Grant:
    """why: "enough" (more would not help), "budget", "path", "deadline", "limit" (its owner's), "least"."""

    kbps: float
    accuracy: float  # expected
    slope: float  # accuracy that one more kb/s would bring
    why: str


def allocate(
    streams: Sequence[Stream], capacity_kbps: float, *, epsilon: float = EPSILON
) -> dict[str, Grant]:
    """capacity_kbps: shared by all; inf where only each path limits."""
    sounds = {s.group for s in streams if s.audio}
    budget = max(0.0, capacity_kbps * SHARE - AUDIO_KBPS * len(sounds))
    # what each session's path has left for all its tracks together
    paths: dict[str, float] = {}
    for s in streams:
        path = max(0.0, s.path_kbps * SHARE - (AUDIO_KBPS if s.group in sounds else 0.0))
        paths[s.group] = min(path, paths.get(s.group, math.inf))
    rates: dict[str, float] = {}
    tops: dict[str, tuple[float, str]] = {}
    curves: dict[str, NDArray[np.float64]] = {}
    groups = {s.key: s.group for s in streams}
    steps: list[tuple[float, str, float, float]] = []  # (slope, key, from, to)
    for s in streams:
        tops[s.key] = _most(s, paths[s.group])
        top = tops[s.key][0]
        rates[s.key] = min(s.least_kbps, top, budget, paths[s.group])
        budget -= rates[s.key]
        paths[s.group] -= rates[s.key]
        curve = curves[s.key] = _worth(s)
        usable = int(np.searchsorted(LADDER, top + 1e-9))
        for a, b in _hull(LADDER[:usable], curve[:usable]):
            steps.append(
                (float((curve[b] - curve[a]) / (LADDER[b] - LADDER[a])), s.key, LADDER[a], LADDER[b])
            )
    short: dict[str, str] = {}  # why the steps above must not be bought: without the one before they are none
    for slope, key, low, high in sorted(steps, key=lambda step: -step[0]):
        if slope < epsilon:
            break
        have = rates[key]
        if key in short or high <= have:
            continue
        more = high - max(have, low)
        if have < low - 1e-9 or more > budget + 1e-9:
            short[key] = "budget"
        elif more > paths[groups[key]] + 1e-9:
            short[key] = "path"
        else:
            rates[key] = float(high)
            budget -= more
            paths[groups[key]] -= more
    return {
        s.key: _explain(s, rates[s.key], tops[s.key], curves[s.key], short.get(s.key, ""), epsilon)
        for s in streams
    }


def _most(s: Stream, path_kbps: float) -> tuple[float, str]:
    """The most that it may have, and what limits it. path_kbps: what is left of its path beside sound."""
    bounds = [(path_kbps, "path"), (s.most_kbps, "limit")]
    if math.isfinite(s.path_kbps):
        # the largest picture, PEAK × rate ÷ fps, over the path within the deadline
        bounds.append((s.deadline_s * s.path_kbps * s.fps / PEAK, "deadline"))
    return min(bounds, key=lambda bound: bound[0])


def _worth(s: Stream) -> NDArray[np.float64]:
    """Weighted accuracy at each rate of the ladder."""
    curve = s.learner.curve(LADDER / max(s.fps, 0.01) / s.scale)
    curve[0] = 0.0
    return curve * s.weight * (1.0 if s.active else IDLE)


def _hull(x: NDArray[np.float64], y: NDArray[np.float64]) -> list[tuple[int, int]]:
    """The upper concave hull of a rising curve, as pairs of neighbouring indices."""
    corners = [0]
    for i in range(1, len(x)):
        if y[i] <= y[corners[-1]] + 1e-9:
            continue
        while len(corners) > 1:
            a, b = corners[-2], corners[-1]
            if (y[i] - y[b]) * (x[b] - x[a]) < (y[b] - y[a]) * (x[i] - x[b]):
                break
            corners.pop()
        corners.append(i)
    return list(itertools.pairwise(corners))


def _explain(
    s: Stream,
    kbps: float,
    top: tuple[float, str],
    curve: NDArray[np.float64],
    short: str,
    epsilon: float,
) -> Grant:
    at = int(np.searchsorted(LADDER, kbps + 1e-9)) - 1
    gains = (curve[at + 1 :] - curve[at]) / (LADDER[at + 1 :] - LADDER[at])
    slope = float(gains.max()) if len(gains) else 0.0
    if slope < epsilon:
        why = "least" if 0 < kbps <= s.least_kbps else "enough"
    elif not short and LADDER[at + 1 + int(gains.argmax())] > top[0]:
        why = top[1]
    else:
        why = short or "budget"
    expected = (
        float(s.learner.curve(np.array([max(kbps, 1e-3) / max(s.fps, 0.01) / s.scale]))[0]) if kbps else 0.0
    )
    return Grant(round(kbps, 1), expected, slope, why)
