"""Makes live sound shorter where delay has built up, so that nobody hears it. Policy only, no clock."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 48_000
STANDING_FRAMES = 10  # 200 ms: what was left over after each of them is delay, not jitter
TOLERATED = RATE_HZ * 2 // 1000  # samples
FADE = RATE_HZ * 5 // 1000  # samples, over which two places of the sound are joined
LONGEST_CUT = RATE_HZ * 10 // 1000  # samples a frame: the period of a 100 Hz voice; more is heard as haste
SHORTEST_CUT = RATE_HZ * 2 // 1000
QUIET = 33  # of 32,768 (-60 dB): of that, all may go at once


class StandingDelay:
    """How much of what waits is never needed: the least that was left over lately."""

    def __init__(self) -> None:
        self._left: deque[int] = deque(maxlen=STANDING_FRAMES)

    def left(self, samples: int) -> None:
        """After each frame taken: what still waits."""
        self._left.append(samples)

    def cut(self, samples: int) -> None:
        """So much of it was taken away."""
        self._left = deque((n - samples for n in self._left), maxlen=STANDING_FRAMES)

    @property
    def excess(self) -> int:
        """Samples that can go; 0 until it is sure."""
        if len(self._left) < STANDING_FRAMES:
            return 0
        least = min(self._left)
        return least if least > TOLERATED else 0


def cut_at_pitch(pcm: NDArray[np.int16], most: int) -> NDArray[np.int16]:
    """pcm (T, C) → (T − n, C) with 0 ≤ n ≤ `most`: one stretch taken out where the sound repeats itself.

    Source: waveform-similarity overlap-add, Verhelst and Roelands 1993, with one splice.
    """
    most = min(most, len(pcm) - FADE)
    if np.abs(pcm).max(initial=0) <= QUIET and most > 0:
        return pcm[most:]
    most = min(most, LONGEST_CUT)
    if most < SHORTEST_CUT:
        return pcm
    mono = pcm.mean(axis=1, dtype=np.float32)
    head = mono[:FADE]
    window = mono[SHORTEST_CUT : most + FADE]
    likeness = np.correlate(window, head, mode="valid")
    energy = np.convolve(np.square(window), np.ones(FADE, np.float32), mode="valid")
    lag = SHORTEST_CUT + int(np.argmax(likeness / np.sqrt(energy + 1)))
    ramp = np.linspace(0.0, 1.0, FADE, dtype=np.float32)[:, None]
    joined = pcm[:FADE] * (1 - ramp) + pcm[lag : lag + FADE] * ramp
    return np.concatenate([joined.astype(np.int16), pcm[lag + FADE :]])
