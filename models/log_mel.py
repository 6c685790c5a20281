"""Whisper's log-mel spectrogram, computed as the samples come.

Frame t covers samples [160·t − 200, 160·t + 200): a frame is given as soon as its last sample is in. Whisper
clips the spectrogram 8 decades below the loudest value of the whole file, which no stream can know; here the
floor follows the loudest value *so far*, frame by frame, offline as well: so any chunking gives the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

RATE_HZ = 16_000
HOP = 160
N_FFT = 400
_START_MAX = 0.0  # log10 power of soft speech: a stream that begins in silence has a floor from the start
_NOTHING = -10.0  # log10 power of digital silence
_FLOOR = 8.0  # decades below the maximum (openai/whisper, audio.py)


def mel_filters(n_mels: int, n_fft: int = N_FFT) -> Tensor:
    """Slaney's triangular filters, area-normalised: (n_mels, n_fft // 2 + 1). Source: Auditory Toolbox, 1998."""

    def mel(hz: ArrayLike) -> NDArray[np.float64]:
        f = np.asarray(hz, np.float64)
        log = 15 + np.log(np.maximum(f, 1e-9) / 1000) / (math.log(6.4) / 27)
        return np.where(f >= 1000, log, f * 3 / 200)

    def hz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(mels >= 15, 1000 * np.exp(math.log(6.4) / 27 * (mels - 15)), mels * 200 / 3)

    bins = np.linspace(0, RATE_HZ / 2, n_fft // 2 + 1)
    edges = hz(np.linspace(mel(0.0), mel(RATE_HZ / 2), n_mels + 2))
    ramps = edges[:, None] - bins[None]
    width = np.diff(edges)
    down, up = -ramps[:-2] / width[:-1, None], ramps[2:] / width[1:, None]
    weights = np.maximum(0, np.minimum(down, up)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return torch.tensor(weights, dtype=torch.float32)


@dataclass(slots=True)
class LogMelState:
    """What the next samples need of the ones before."""

    tail: NDArray[np.float32] = field(
        default_factory=lambda: np.zeros(0, np.float32)
    )  # (S,) of frames to come
    loudest: float = _START_MAX  # log10 power, so far
    started: bool = False  # the left edge has been mirrored


class LogMel:
    """Samples at 16 kHz → frames of `n_mels` every 10 ms. Holds constants only; states are arguments."""

    def __init__(self, n_mels: int = 80) -> None:
        self.n_mels = n_mels
        self._filters = mel_filters(n_mels)
        self._weights = self._filters.numpy().T.copy()  # (201, M)
        self._taper = torch.hann_window(N_FFT).numpy()

    def init_state(self, before: LogMelState | None = None) -> LogMelState:
        """Of a stream that begins, or that goes on after a hole: what is known of its loudness stays."""
        return LogMelState() if before is None else LogMelState(loudest=before.loudest)

    def level(self, mel: Tensor) -> Tensor:
        """(n_mels, T) → mean log10 power of each frame; what lies below the floor of 8 decades has none."""
        level = mel.mean(0) * 4 - 4
        return level.masked_fill(mel.amax(0) - mel.amin(0) < 1e-6, _NOTHING)

    def step(self, pcm: Tensor, state: LogMelState, *, flush: bool = False) -> Tensor:
        """(S,) float32 in −1…1 → (n_mels, T). `flush` mirrors the right edge: the stream ends here."""
        # numpy: a step is two frames, and torch's cost a call is several times the arithmetic
        samples = np.concatenate([state.tail, pcm.numpy()])
        whole: int | None = None  # frames of a stream that is shorter than the mirrored edge
        if not state.started:
            if len(samples) <= N_FFT // 2 and flush:  # too short to mirror
                whole = len(samples) // HOP
                samples = np.concatenate([samples, np.zeros(N_FFT // 2 + 1 - len(samples), np.float32)])
            if len(samples) <= N_FFT // 2:
                state.tail = samples
                return torch.zeros(self.n_mels, 0)
            samples = np.concatenate([samples[N_FFT // 2 : 0 : -1], samples])
            state.started = True
        if flush:
            samples = np.concatenate([samples, samples[-2 : -N_FFT // 2 - 2 : -1]])
        count = max(0, (len(samples) - N_FFT) // HOP + 1)
        if flush and count:  # Whisper drops the frame that is centred on the end
            count = count - 1 if whole is None else whole
        state.tail = samples[count * HOP :].copy()
        if count == 0:
            return torch.zeros(self.n_mels, 0)
        frames = sliding_window_view(samples, N_FFT)[: count * HOP : HOP] * self._taper  # (T, 400)
        spectrum = np.fft.rfft(frames)  # (T, 201)
        power = spectrum.real**2 + spectrum.imag**2
        log = np.log10(np.maximum(power @ self._weights, np.float32(1e-10)))  # (T, M)
        loudest = np.maximum(np.maximum.accumulate(log.max(1)), np.float32(state.loudest))  # (T,)
        state.loudest = float(loudest[-1])
        mel = (np.maximum(log, loudest[:, None] - np.float32(_FLOOR)) + np.float32(4)) / np.float32(4)
        return torch.from_numpy(np.ascontiguousarray(mel.T, np.float32))

    def forward(self, pcm: Tensor) -> Tensor:
        """The whole at once: (S,) → (n_mels, S // 160)."""
        return self.step(pcm, LogMelState(), flush=True)
