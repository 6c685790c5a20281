"""How loud is it?"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


def level_dbov(pcm: NDArray[np.int16]) -> int:
    """The level of sound in dB of full scale, -127 to 0 (RFC 6465 appendix A). pcm: any shape."""
    samples = pcm.astype(np.float32).ravel()
    power = float(np.dot(samples, samples)) / (len(samples) * 32767**2)
    return max(-127, min(0, round(10 * math.log10(power)))) if power > 0 else -127
