"""The log-mel of NVIDIA's FastConformer models, computed as the samples come.

Pre-emphasis, 25 ms windows in a transform of 512, natural logarithm, no normalisation. Frame t covers samples
[160·t − 200, 160·t + 200); outside the stream they are zero.

Source: NeMo's AudioToMelSpectrogramPreprocessor, as `NemotronAsrStreamingFeatureExtractor` of transformers states it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .log_mel import HOP, mel_filters

_FFT, _WINDOW = 512, 400
_GUARD = 2**-24
_EDGE = _WINDOW // 2


@dataclass(slots=True)
class NemoMelState:
    """What the next samples need of the ones before."""

    tail: Tensor = field(default_factory=lambda: torch.zeros(_EDGE))  # (S,) pre-emphasised, of frames to come
    last: float | None = None  # the last sample


class NemoMel:
    """Samples at 16 kHz → frames of `n_mels` every 10 ms. Holds constants only; states are arguments."""

    def __init__(self, n_mels: int = 80, emphasis: float = 0.97) -> None:
        self.n_mels = n_mels
        self._emphasis = emphasis
        self._filters = mel_filters(n_mels, _FFT)
        self._window = torch.hann_window(_WINDOW, periodic=False)

    def init_state(self, before: NemoMelState | None = None) -> NemoMelState:
        """Of a stream that begins, or goes on after a hole."""
        return NemoMelState()

    def level(self, mel: Tensor) -> Tensor:
        """(n_mels, T) → mean log10 power of each frame."""
        return mel.mean(0) / math.log(10)

    def step(self, pcm: Tensor, state: NemoMelState, *, flush: bool = False) -> Tensor:
        """(S,) float32 in −1…1 → (n_mels, T). `flush`: the stream ends here."""
        if pcm.numel():
            before = torch.cat([torch.tensor([state.last or 0.0]), pcm[:-1]])
            state.last = float(pcm[-1])
            samples = torch.cat([state.tail, pcm - self._emphasis * before])
        else:
            samples = state.tail
        count = max(0, (samples.numel() - _WINDOW) // HOP + 1)
        if flush:  # as many frames as there are hops; the last ones look beyond the end
            count = max(0, (samples.numel() - _EDGE) // HOP)
            samples = torch.cat([samples, torch.zeros(_EDGE)])
        state.tail = samples[count * HOP :].clone()
        if count == 0:
            return torch.zeros(self.n_mels, 0)
        frames = samples.unfold(0, _WINDOW, HOP)[:count] * self._window  # (T, 400)
        power = torch.fft.rfft(frames, _FFT).abs().square()  # (T, 257)
        return (self._filters @ power.T + _GUARD).log()

    def forward(self, pcm: Tensor) -> Tensor:
        """The whole at once: (S,) → (n_mels, S // 160)."""
        return self.step(pcm, NemoMelState(), flush=True)
