"""Twelve sessions share an uplink, simulated: ours, against an equal split, an SFU's layers, and an equal split at the
consumers' frame rates. What a session really needs (its q50) is hidden from all; ours learns it from answers.

Accuracy is that of the answers asked for; `budget ratio` is how much more capacity the best of the others needs for the
same, by interpolation over capacities in log.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from penstock.transport.allocator import AUDIO_KBPS, SHARE, Stream, allocate
from penstock.transport.utility import Learner, accuracy

SESSIONS, SECONDS = 12, 900
CAPACITIES = (800.0, 1200.0, 2000.0, 4000.0)
MORE = (2800.0, 5600.0, 8000.0)  # for the others, to see what they would need
SEEDS = range(6)
POLICIES = ("equal10", "layers", "equal_consumer", "learned", "oracle", "learned_roi")
OTHERS = ("equal10", "layers", "equal_consumer")
LAYERS = (0.0, 120.0, 400.0, 1200.0)  # kb/s: three of simulcast, at 15 pictures a second
PATH_KBPS = 2000.0


class Known(Learner):
    """An oracle's: it knows."""

    def know(self, q50: float) -> None:
        self.posterior = np.zeros_like(self.posterior)
        self.posterior[int(np.argmin(np.abs(np.log(self.grid) - math.log(q50)))), -1] = 1.0


def simulate(policy: str, seed: int, capacity: float, seconds: int = SECONDS) -> tuple[float, float, float]:
    """Returns (accuracy of the answers, share of the link used, least session's accuracy ÷ the mean: fairness)."""
    r = np.random.default_rng(seed)
    n = SESSIONS
    q50 = np.exp(r.normal(math.log(20), 0.9, n))
    fps = r.choice([1.0, 2.0, 2.0, 5.0], n)
    saves = r.uniform(0.35, 0.6, n) if policy == "learned_roi" else np.ones(n)
    active = r.random(n) < 0.5
    learners: list[Learner] = [Known() if policy == "oracle" else Learner() for _ in range(n)]
    now, hits, asked, used = capacity, np.zeros(n), np.zeros(n), 0.0
    for _ in range(seconds):
        now = float(np.clip(now * math.exp(r.normal(0, 0.06)), 0.35 * capacity, 1.4 * capacity))
        for i in range(n):
            if r.random() < 1 / 40:
                active[i] = not active[i]
            if r.random() < 1 / 60:
                q50[i] = math.exp(r.normal(math.log(20), 0.9))
                learners[i].new_topic()
        kbps, seen = _divide(policy, now, fps, active, learners, q50)
        got = accuracy(kbps / seen, q50 * saves)
        used += (kbps.sum() + n * AUDIO_KBPS) / now / seconds
        for i in range(n):
            draw, noise, probe = r.random(), r.normal(0, 1), r.random()
            if not active[i]:
                continue
            if draw < 1 / 8:
                asked[i] += 1
                hits[i] += got[i]
                learners[i].answered(kbps[i] / seen[i], float(got[i] + 0.12 * noise))
            elif probe < 0.3:  # the cheap check of legibility that runs beside questions
                learners[i].answered(kbps[i] / seen[i], float(got[i] + 0.25 * noise), 0.3)
    by_session = hits / np.maximum(asked, 1)
    return float(hits.sum() / asked.sum()), used, float(by_session.min() / by_session.mean())


def _divide(
    policy: str,
    capacity: float,
    fps: np.ndarray,
    active: np.ndarray,
    learners: Sequence[Learner],
    q50: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """(kb/s, pictures a second that are sent) of each session."""
    n = len(fps)
    budget = max(0.0, capacity * SHARE - n * AUDIO_KBPS)
    if policy == "equal10":
        return np.full(n, budget / n), np.full(n, 10.0)
    if policy == "equal_consumer":
        return np.full(n, budget / n), fps
    if policy == "layers":
        kbps = np.zeros(n)
        for below, layer in itertools.pairwise(LAYERS):
            for i in sorted(range(n), key=lambda i: -int(active[i])):  # who talks first, as SFUs do
                if kbps[i] == below and layer - below <= budget:
                    budget -= layer - below
                    kbps[i] = layer
        return kbps, np.full(n, 15.0)
    for learner, q in zip(learners, q50, strict=True):
        if isinstance(learner, Known):
            learner.know(float(q))
    streams = [
        Stream(str(i), learners[i], float(fps[i]), active=bool(active[i]), audio=True, path_kbps=PATH_KBPS)
        for i in range(n)
    ]
    grants = allocate(streams, capacity)
    return np.array([grants[str(i)].kbps for i in range(n)]), fps


def budget_ratio(ours: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> float | None:
    """Geometric mean over our (capacity, accuracy) of the capacity that the other needs ÷ ours; where it does not get
    there with any capacity tried, the largest counts: a lower bound."""
    xs = np.log([c for c, _ in other])
    ys = np.maximum.accumulate([a for _, a in other])
    ratios = [
        (math.exp(float(np.interp(a, ys, xs))) if a <= ys[-1] else math.exp(xs[-1])) / c
        for c, a in ours
        if a > ys[0]
    ]
    return math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None
