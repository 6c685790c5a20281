"""Generated speech on its last 20 ms: what to play when it runs dry, is cut, and goes on. Policy only, no clock."""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 48_000
FADE = RATE_HZ * 5 // 1000  # samples: a cut without a ramp clicks
RECENT = 3  # steps kept: two periods of the deepest voice
MADE_UP = RATE_HZ * 30 // 1000  # samples of continued voice, to silence; longer sounds like a machine
LAGS = (RATE_HZ // 400, RATE_HZ // 50)  # periods of voices
LIKE = RATE_HZ * 10 // 1000  # samples compared to find the period
QUIET = 100  # RMS of 32,768 (-50 dB): speech that has ended needs no continuation
WORD = RATE_HZ * 3 // 2  # samples of an interrupted word that are played again at most


class SpeechGap:
    """Continues the last period of a voice that stops too early, fading, and leads back into it when it goes on.

    Source: ITU-T G.711 Appendix I (waveform substitution by pitch), with one period and a shorter fade.
    """

    def __init__(self) -> None:
        self._past: deque[NDArray[np.int16]] = deque(maxlen=RECENT)
        self._made_up = np.zeros((0, 1), np.float32)  # still to be played while nothing comes
        self._dry = True
        self._abrupt = False  # it broke off in the middle of sound, so it fades in when it goes on
        self.muted = False  # what ends now ends on purpose

    def step(self, taken: NDArray[np.int16], samples: int) -> NDArray[np.int16]:
        """taken (T, C), T ≤ samples → (samples, C)."""
        if len(taken) == samples and not self._dry:
            self._past.append(taken)
            return taken
        out = np.zeros((samples, taken.shape[1]), np.float32)
        if self._made_up.shape[1] != out.shape[1]:
            self._made_up = np.zeros((0, out.shape[1]), np.float32)
        came = len(taken)
        if came:
            out[:came] = taken
            if self._dry and self._abrupt:
                rise = min(came, FADE)
                ramp = np.linspace(0.0, 1.0, rise, dtype=np.float32)[:, None]
                out[:rise] *= ramp
                old = self._made_up[:rise]
                out[: len(old)] += old * (1 - ramp[: len(old)])
            self._past.append(taken)
            self._made_up = self._made_up[:0]
        if came < samples:
            if came or not self._dry:
                self._made_up = self._continued()
                self._abrupt = bool(len(self._made_up))
            more = self._made_up[: samples - came]
            out[came : came + len(more)] = more
            self._made_up = self._made_up[len(more) :]
        self._dry = came < samples
        return np.clip(out, -32768, 32767).astype(np.int16)

    def stop(self) -> None:
        """What was played ends here on purpose: nothing is made up for it."""
        self._past.clear()
        self._made_up = self._made_up[:0]
        self._dry, self._abrupt = True, False

    def _continued(self) -> NDArray[np.float32]:
        """(MADE_UP, C), fading to silence; empty where the voice had ended."""
        channels = self._past[-1].shape[1] if self._past else 1
        nothing = np.zeros((0, channels), np.float32)
        same = [p for p in self._past if p.shape[1] == channels]
        past = np.concatenate(same).astype(np.float32) if same else nothing
        mono = past.mean(axis=1)
        if self.muted or len(mono) < LAGS[1] + LIKE or np.sqrt(np.mean(np.square(mono[-FADE:]))) < QUIET:
            return nothing
        template = mono[-LIKE:]
        window = mono[-LIKE - LAGS[1] : -LAGS[0]]
        likeness = np.correlate(window, template, mode="valid")
        energy = np.convolve(np.square(window), np.ones(LIKE, np.float32), mode="valid")
        lag = LAGS[1] - int(np.argmax(likeness / np.sqrt(energy + 1)))
        period = past[-lag:]
        tiled = np.tile(period, (-(-MADE_UP // lag), 1))[:MADE_UP]
        return tiled * np.linspace(1.0, 0.0, MADE_UP, dtype=np.float32)[:, None]


class CutWord:
    """The word that is being played, so that after a false interruption it can be said again from its beginning."""

    def __init__(self) -> None:
        self._parts: list[NDArray[np.int16]] = []
        self._samples = 0

    def played(self, pcm: NDArray[np.int16]) -> None:
        self._parts.append(pcm)
        self._samples += len(pcm)
        while self._samples - len(self._parts[0]) >= WORD:
            self._samples -= len(self._parts.pop(0))

    def ended(self) -> None:
        self._parts.clear()
        self._samples = 0

    def take(self) -> list[NDArray[np.int16]]:
        """Its parts so far, faded in."""
        parts, self._parts, self._samples = self._parts, [], 0
        if parts:
            first = parts[0].astype(np.float32)
            rise = min(len(first), FADE)
            first[:rise] *= np.linspace(0.0, 1.0, rise, dtype=np.float32)[:, None]
            parts[0] = first.astype(np.int16)
        return parts
