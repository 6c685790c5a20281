"""Has anything moved? Decides which pictures of a still scene need no new drawing.

StreamDiffusion's filter takes one cosine over the whole picture and skips most frames of a face whose mouth moves; here the
worst block of a thumbnail decides. No chance is involved either: the same video is skipped the same way.

Source: Kodaira et al., "StreamDiffusion" (2023), §3.5 stochastic similarity filter; the threshold in its place is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

Thumbnail = NDArray[np.float32]  # (48, 64) gray, 0..255

_WIDTH, _HEIGHT, _BLOCK = 64, 48, 4
STILL = 3.0  # gray levels a block's mean may change: a webcam's noise, averaged over a block, stays below 1
MAX_SKIPS = 10  # in a row; then one is drawn, for slow drifts


def thumbnail(picture: NDArray[np.uint8]) -> Thumbnail:
    """(H, W, 3) RGB, or a luma plane (H, W), of any size → (48, 64) gray."""
    small = cv2.resize(picture, (_WIDTH, _HEIGHT), interpolation=cv2.INTER_AREA)
    return np.asarray(small if small.ndim == 2 else cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.float32)


def worst_change(a: Thumbnail, b: Thumbnail) -> float:
    """The largest mean absolute change of a 4×4 block, gray levels."""
    blocks = np.abs(a - b).reshape(_HEIGHT // _BLOCK, _BLOCK, _WIDTH // _BLOCK, _BLOCK)
    return float(blocks.mean((1, 3)).max())


@dataclass(slots=True)
class SimilarityFilter:
    """One stream's filter: compares with the last picture that was drawn, so that slow motion adds up."""

    still: float = STILL
    _drawn: Thumbnail | None = field(default=None, repr=False)
    _skipped: int = 0

    def skip(self, seen: Thumbnail) -> bool:
        """May this picture be shown as the last one was drawn?"""
        if (
            self._drawn is not None
            and self._skipped < MAX_SKIPS
            and worst_change(seen, self._drawn) < self.still
        ):
            self._skipped += 1
            return True
        self._drawn, self._skipped = seen, 0
        return False

    def reset(self) -> None:
        """Draw the next picture whatever it shows."""
        self._drawn = None
