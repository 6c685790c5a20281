"""Noise that belongs to a position of a stream: the same whoever asks, however the stream is cut.

Source: J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011 (Philox, a counter-based generator).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray


def noise_at(seed: int, position: int, width: int) -> NDArray[np.float64]:
    """(width,) standard normal values of one position."""
    return np.random.Generator(np.random.Philox(key=_key(seed), counter=position << 32)).standard_normal(
        width
    )


@cache
def _key(seed: int) -> int:
    return int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
