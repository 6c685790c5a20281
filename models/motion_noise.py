"""How much noise the first step may add: less while things move fast, so that motion is kept instead of redrawn.

d = √(‖v_t − v_(t−1)‖² / CHW) over a window, d̂ = clip(max d / σ, 0, 1), s ← λ (s_max − (s_max − s_min) d̂) + (1 − λ) s.

Source: Feng et al., "StreamDiffusionV2" (2025), motion-aware noise controller; σ = 0.2, λ = 0.9 as there.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

SIGMA = 0.2
LAMBDA = 0.9
WINDOW = 4  # pictures


@dataclass(slots=True)
class MotionNoise:
    """One stream's controller. `lowest` and `highest` are noise levels in the model's own measure."""

    lowest: float = 0.0
    highest: float = 0.5
    level: float = field(init=False)
    _before: NDArray[np.float32] | None = field(default=None, repr=False)
    _changes: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW), repr=False)

    def __post_init__(self) -> None:
        self.level = self.highest

    def update(self, picture: NDArray[np.float32]) -> float:
        """The level for this picture: any shape that stays the same, 0..255."""
        if self._before is not None and self._before.shape == picture.shape:
            change = float(np.sqrt(np.mean(((picture - self._before) / 127.5) ** 2)))
            self._changes.append(change)
            moving = min(1.0, max(self._changes) / SIGMA)
            wanted = self.highest - (self.highest - self.lowest) * moving
            self.level = LAMBDA * wanted + (1 - LAMBDA) * self.level
        self._before = picture
        return self.level

    def reset(self) -> None:
        """A cut: what comes next is no motion."""
        self._before = None
        self._changes.clear()
        self.level = self.highest
