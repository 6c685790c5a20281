"""What are bits worth? The chance of a right answer against bits per picture, learned from answers. Policy only.

A sigmoid in log bits, as measured curves of legibility are (docs/bitrate.md). Neither its midpoint nor how sure a model ever
gets is known beforehand, so a posterior over both is kept on a grid and moved by the confidence of each answer: one that
says .6 whatever it is sent is not sent more and more.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

POINTS = 40  # of the posterior, over midpoints
LEAST_Q50, MOST_Q50 = 2.0, 400.0  # kb a picture
PRIOR_Q50, PRIOR_SPREAD = 25.0, 1.2  # kb; in log units
BLIND, BEST = 0.2, 0.97  # accuracy with no bits, and with any number
CEILINGS = np.array((0.4, 0.5, 0.6, 0.7, 0.8, BEST))  # of models that are never surer
MODEST = 0.1  # of the prior, that it is such a one
WIDTH = 0.35  # of the sigmoid, log units
NOISE = 0.2  # of a confidence around the accuracy
OUTLIERS = 0.3  # floor of its likelihood: it may be about something else, as a lost packet
FORGET = 0.02  # of the posterior is spread out again at each answer: topics drift
NEW_TOPIC = 0.7  # … and at a new question's topic

Floats = NDArray[np.float64]


def accuracy(
    kb: Floats | float, q50: Floats | float, scale: float = 1.0, best: Floats | float = BEST
) -> Floats:
    """kb: of one picture. scale: what regions save, 0.4 of the bits for the same. 0 where there are none."""
    kb, q50 = np.asarray(kb, np.float64), np.asarray(q50, np.float64) * scale
    curve = BLIND + (best - BLIND) / (1 + np.exp(-(np.log(np.maximum(kb, 1e-3)) - np.log(q50)) / WIDTH))
    return np.where(kb <= 0, 0.0, curve)


class Learner:
    """The posterior over one stream's q50, kb a picture at which half of what can be won is won, and over its ceiling.

    q50, spread: kb and log units, of what is believed before the first answer. Attributes: grid (POINTS, 1), posterior
    (POINTS, CEILINGS)."""

    def __init__(self, q50: float = PRIOR_Q50, spread: float = PRIOR_SPREAD) -> None:
        self.grid: Floats = np.exp(np.linspace(np.log(LEAST_Q50), np.log(MOST_Q50), POINTS))[:, None]
        prior = np.exp(-0.5 * ((np.log(self.grid) - np.log(q50)) / spread) ** 2)
        ceilings = np.full(len(CEILINGS), MODEST / (len(CEILINGS) - 1))
        ceilings[-1] = 1 - MODEST
        self._prior: Floats = prior / prior.sum() * ceilings
        self.posterior: Floats = self._prior.copy()
        self.answers = 0

    def answered(self, kb: float, confidence: float, weight: float = 1.0) -> None:
        """An answer from pictures of `kb` each, of which its model is so sure, in [0, 1]. weight: less than 1 for one that
        tells little that the one before did not."""
        sure = min(1.0, max(0.0, confidence))
        # a measurement of how right it was, not one right or wrong answer: that would tell much less
        off = (sure - accuracy(max(kb, 1e-3), self.grid, best=CEILINGS)) / NOISE
        moved = self.posterior * (np.exp(-0.5 * off * off) + OUTLIERS) ** weight
        total = float(moved.sum())
        if not np.isfinite(total) or total <= 0:
            return
        forget = FORGET * weight
        self.posterior = (1 - forget) * moved / total + forget * self._prior
        self.answers += 1

    def new_topic(self) -> None:
        """Another question: how much detail it needs is not known; how sure the model ever gets, is."""
        fresh = self._prior.sum(1, keepdims=True) * self.posterior.sum(0)
        self.posterior = (1 - NEW_TOPIC) * self.posterior + NEW_TOPIC * fresh

    @property
    def q50(self) -> float:
        """Its mean in log."""
        return float(np.exp((self.posterior * np.log(self.grid)).sum()))

    def curve(self, kb: Floats) -> Floats:
        """Expected accuracy at each of (N,) sizes."""
        every = accuracy(kb[:, None, None], self.grid, best=CEILINGS)
        return np.asarray((every * self.posterior).sum((1, 2)))
