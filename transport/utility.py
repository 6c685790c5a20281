"""What are bits worth? The chance of a right answer against bits per picture, learned from answers. Policy only.

A sigmoid in log bits, as measured curves of legibility are (docs/bitrate.md); its midpoint is not known beforehand, so
a posterior over it is kept on a grid and moved by the confidence of each answer.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

POINTS = 40  # of the posterior
LEAST_Q50, MOST_Q50 = 2.0, 400.0  # kb a picture
PRIOR_Q50, PRIOR_SPREAD = 25.0, 1.2  # kb; in log units
BLIND, BEST = 0.2, 0.97  # accuracy with no bits, and with any number
WIDTH = 0.35  # of the sigmoid, log units
FORGET = 0.02  # of the posterior is spread out again at each answer: topics drift
NEW_TOPIC = 0.7  # … and at a new question's topic

Floats = NDArray[np.float64]


def accuracy(kb: Floats | float, q50: Floats | float, scale: float = 1.0) -> Floats:
    """kb: of one picture. scale: what regions save, 0.4 of the bits for the same. 0 where there are none."""
    kb, q50 = np.asarray(kb, np.float64), np.asarray(q50, np.float64) * scale
    curve = BLIND + (BEST - BLIND) / (1 + np.exp(-(np.log(np.maximum(kb, 1e-3)) - np.log(q50)) / WIDTH))
    return np.where(kb <= 0, 0.0, curve)


class Learner:
    """The posterior over one stream's q50: kb a picture at which half of what can be won is won.

    q50, spread: kb and log units, of what is believed before the first answer."""

    def __init__(self, q50: float = PRIOR_Q50, spread: float = PRIOR_SPREAD) -> None:
        self.grid: Floats = np.exp(np.linspace(np.log(LEAST_Q50), np.log(MOST_Q50), POINTS))
        prior = np.exp(-0.5 * ((np.log(self.grid) - np.log(q50)) / spread) ** 2)
        self._prior: Floats = prior / prior.sum()
        self.posterior: Floats = self._prior.copy()
        self.answers = 0

    def answered(self, kb: float, confidence: float, weight: float = 1.0) -> None:
        """An answer from pictures of `kb` each, of which its model is so sure, in [0, 1]."""
        sure = min(1.0, max(0.0, confidence))
        right = accuracy(max(kb, 1e-3), self.grid)
        moved = self.posterior * (sure * right + (1 - sure) * (1 - right)) ** weight
        total = float(moved.sum())
        if not np.isfinite(total) or total <= 0:
            return
        self.posterior = (1 - FORGET) * moved / total + FORGET * self._prior
        self.answers += 1

    def new_topic(self) -> None:
        """Another question: how much detail it needs is not known."""
        self.posterior = (1 - NEW_TOPIC) * self.posterior + NEW_TOPIC * self._prior

    @property
    def q50(self) -> float:
        """Its mean in log."""
        return float(np.exp((self.posterior * np.log(self.grid)).sum()))

    def curve(self, kb: Floats) -> Floats:
        """Expected accuracy at each of (N,) sizes."""
        return np.asarray(accuracy(kb[:, None], self.grid[None]) @ self.posterior)
