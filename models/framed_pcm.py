"""Samples as frames of 10 ms, for networks that hear the waveform itself; with the loudness that a gate goes by."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from .log_mel import HOP, LogMel, LogMelState


@dataclass(slots=True)
class FramedPcmState:
    """What the next samples need of the ones before."""

    mel: LogMelState = field(default_factory=LogMelState)
    waiting: Tensor = field(default_factory=lambda: torch.zeros(0))  # samples whose loudness is not known yet


class FramedPcm:
    """Frame t is the samples [160·t, 160·t + 160), then their level: mean log10 power of the log-mel around them."""

    n_mels = HOP + 1

    def __init__(self) -> None:
        self._mel = LogMel()

    def init_state(self, before: FramedPcmState | None = None) -> FramedPcmState:
        """Of a stream that begins, or goes on after a hole."""
        return FramedPcmState(self._mel.init_state(None if before is None else before.mel))

    def level(self, mel: Tensor) -> Tensor:
        """(161, T) → mean log10 power of each frame."""
        return mel[HOP]

    def step(self, pcm: Tensor, state: FramedPcmState) -> Tensor:
        """(S,) float32 in −1…1 → (161, T). A frame comes 2.5 ms after its last sample."""
        level = self._mel.level(self._mel.step(pcm, state.mel))  # (T,)
        samples = torch.cat([state.waiting, pcm])
        count = len(level) * HOP
        state.waiting = samples[count:].clone()
        return torch.cat([samples[:count].reshape(-1, HOP).T, level[None]])


def samples(mel: Tensor) -> Tensor:
    """(161, T) → (160·T,): the waveform again."""
    return mel[:HOP].T.reshape(-1)
