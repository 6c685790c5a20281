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
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

RATE_HZ = 16_000
HOP = 160
N_FFT = 400
_START_MAX = 0.0  # log10 power of soft speech: a stream that begins in silence has a floor from the start
_FLOOR = 8.0  # decades below the maximum (openai/whisper, audio.py)


def mel_filters(n_mels: int) -> Tensor:
    """Slaney's triangular filters, area-normalised: (n_mels, 201). Source: Auditory Toolbox, 1998."""

    def mel(hz: ArrayLike) -> NDArray[np.float64]:
        f = np.asarray(hz, np.float64)
        log = 15 + np.log(np.maximum(f, 1e-9) / 1000) / (math.log(6.4) / 27)
        return np.where(f >= 1000, log, f * 3 / 200)

    def hz(mels: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(mels >= 15, 1000 * np.exp(math.log(6.4) / 27 * (mels - 15)), mels * 200 / 3)

    bins = np.linspace(0, RATE_HZ / 2, N_FFT // 2 + 1)
    edges = hz(np.linspace(mel(0.0), mel(RATE_HZ / 2), n_mels + 2))
    ramps = edges[:, None] - bins[None]
    width = np.diff(edges)
    down, up = -ramps[:-2] / width[:-1, None], ramps[2:] / width[1:, None]
    weights = np.maximum(0, np.minimum(down, up)) * (2 / (edges[2:] - edges[:-2]))[:, None]
    return torch.tensor(weights, dtype=torch.float32)


@dataclass(slots=True)
class LogMelState:
    """What the next samples need of the ones before."""

    tail: Tensor = field(default_factory=lambda: torch.zeros(0))  # (S,) samples of frames not yet given
    loudest: float = _START_MAX  # log10 power, so far
    started: bool = False  # the left edge has been mirrored


class LogMel:
    """Samples at 16 kHz → frames of `n_mels` every 10 ms. Holds constants only; states are arguments."""

    def __init__(self, n_mels: int = 80) -> None:
        self.n_mels = n_mels
        self._filters = mel_filters(n_mels)
        self._window = torch.hann_window(N_FFT)

    def step(self, pcm: Tensor, state: LogMelState, *, flush: bool = False) -> Tensor:
        """(S,) float32 in −1…1 → (n_mels, T). `flush` mirrors the right edge: the stream ends here."""
        samples = torch.cat([state.tail, pcm])
        whole: int | None = None  # frames of a stream that is shorter than the mirrored edge
        if not state.started:
            if samples.numel() <= N_FFT // 2 and flush:  # too short to mirror
                whole = samples.numel() // HOP
                samples = torch.cat([samples, torch.zeros(N_FFT // 2 + 1 - samples.numel())])
            if samples.numel() <= N_FFT // 2:
                state.tail = samples
                return torch.zeros(self.n_mels, 0)
            samples = torch.cat([samples[1 : N_FFT // 2 + 1].flip(0), samples])
            state.started = True
        if flush:
            samples = torch.cat([samples, samples[-N_FFT // 2 - 1 : -1].flip(0)])
        count = max(0, (samples.numel() - N_FFT) // HOP + 1)
        if flush and count:  # Whisper drops the frame that is centred on the end
            count = count - 1 if whole is None else whole
        state.tail = samples[count * HOP :].clone()
        if count == 0:
            return torch.zeros(self.n_mels, 0)
        frames = samples.unfold(0, N_FFT, HOP)[:count] * self._window  # (T, 400)
        power = torch.fft.rfft(frames).abs().square()  # (T, 201)
        log = (self._filters @ power.T).clamp(min=1e-10).log10()  # (M, T)
        loudest = log.amax(0).cummax(0).values.clamp(min=state.loudest)  # (T,)
        state.loudest = float(loudest[-1])
        return (torch.maximum(log, loudest - _FLOOR) + 4) / 4

    def forward(self, pcm: Tensor) -> Tensor:
        """The whole at once: (S,) → (n_mels, S // 160)."""
        return self.step(pcm, LogMelState(), flush=True)
