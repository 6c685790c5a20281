"""Speech from spectral parameters, frame by frame, by signal processing: pulses and noise through a minimum-phase filter.

    mel-cepstrum ─▶ H(ω) = exp Σ c_m e^{−j m ω̃}          one response per pulse, one per frame of noise
    log F0, voicing ─▶ phase ─▶ pulses ─┐
                      noise of a position ─┴─▶ × H ─▶ overlap-add

All state (phase, overlap, position of the noise) is carried: any chunking gives the same samples.

Source: H. Morise, "WORLD" 2016 (a response per pulse, overlap-added); T. Fukada et al. 1992 and K. Tokuda et al. 1994
(mel-cepstrum, H(z) = exp Σ c_m z̃^{−m}); mixed excitation by bands: A. McCree and T. Barnwell 1995.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .flow_noise import noise_at

RATE_HZ = 16_000
HOP = 160  # samples, 10 ms
MCEP = 25  # c0 … c24
BANDS = 5  # of voicing strength
DIMS = MCEP + 2 + BANDS  # mel-cepstrum, log F0, voicing (−1…1), strengths (0…1)
LF0, VOICED, STRENGTH = MCEP, MCEP + 1, MCEP + 2  # where they begin
ALPHA = 0.42  # of the frequency warp: Mel at 16 kHz
FFT = 512
BAND_EDGES_HZ = (1000.0, 2000.0, 4000.0, 6000.0)
F0_HZ = (50.0, 400.0)


@dataclass(slots=True)
class VocoderState:
    """Of one stream."""

    frame: int = 0  # frames synthesised: also the position of the noise
    phase: float = 0.0  # of the next pulse, 0…1
    last_lf0: float = float("nan")  # at the end of the frame before; nan when unvoiced
    overlap: NDArray[np.float32] = field(default_factory=lambda: np.zeros(FFT + HOP, np.float32))


class Vocoder:
    """(T, DIMS) parameters at 100 frames a second → (T · 160,) samples at 16 kHz, −1…1."""

    def init_state(self) -> VocoderState:
        return VocoderState()

    def step(self, frames: NDArray[np.float32], state: VocoderState) -> NDArray[np.float32]:
        """The next frames. `state` is advanced in place."""
        if not len(frames):
            return np.zeros(0, np.float32)
        transfer = _transfer(frames[:, :MCEP])
        strengths = _strengths(frames)
        out = np.empty(len(frames) * HOP, np.float32)
        noise = np.stack([self._noise(state.frame + i) for i in range(len(frames))])
        spectra = np.fft.rfft(noise * _WINDOW, FFT) * transfer * _noise_gain(frames, strengths)
        rough = np.fft.irfft(spectra, FFT).astype(np.float32)
        for i in range(len(frames)):
            overlap = state.overlap
            overlap[:FFT] += rough[i]
            places, gains = self._pulses(frames[i], state)
            if len(places):
                shift = np.exp(-1j * _OMEGA * (places - np.floor(places))[:, None])
                pulses = np.fft.irfft(transfer[i] * strengths[i] * shift * gains[:, None], FFT)
                for place, pulse in zip(places.astype(int), pulses, strict=True):
                    overlap[place : place + FFT] += pulse.astype(np.float32)
            out[i * HOP : (i + 1) * HOP] = overlap[:HOP]
            overlap[:-HOP] = overlap[HOP:]
            overlap[-HOP:] = 0
            state.frame += 1
        return out

    def _pulses(
        self, frame: NDArray[np.float32], state: VocoderState
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where pulses begin in this frame (samples, with fractions), and how strong they are."""
        if frame[VOICED] <= 0:
            state.last_lf0, state.phase = float("nan"), 0.0
            return _NONE, _NONE
        lf0 = float(np.clip(frame[LF0], np.log(F0_HZ[0]), np.log(F0_HZ[1])))
        before = lf0 if np.isnan(state.last_lf0) else state.last_lf0
        f0 = np.exp(np.linspace(before, lf0, HOP, endpoint=False))
        phase = state.phase + np.cumsum(f0 / RATE_HZ)
        wraps = np.floor(phase)
        at = np.flatnonzero(np.diff(wraps, prepend=np.floor(state.phase)) > 0)
        state.phase = float(phase[-1] - wraps[-1])
        state.last_lf0 = lf0
        late = (phase[at] - wraps[at]) / (f0[at] / RATE_HZ)  # samples since it was due
        return at + 1.0 - late, np.sqrt(RATE_HZ / f0[at])

    def _noise(self, frame: int) -> NDArray[np.float64]:
        """(2·HOP,): the hop before and this one, the same for a position whoever asks."""
        return np.concatenate([noise_at(0, frame, HOP), noise_at(0, frame + 1, HOP)])


_NONE = np.zeros(0)
_OMEGA = np.pi * np.arange(FFT // 2 + 1) / (FFT // 2)
# overlapped by half, its square adds up to one: noise keeps its power
_WINDOW = np.sin(np.pi * (np.arange(2 * HOP) + 0.5) / (2 * HOP))


def _roll_off() -> NDArray[np.float64]:
    """(FFT/2+1): the teacher's sound ends at 7.5 kHz, and no loudspeaker wants what a row of pulses has at 0 Hz."""
    gain = 1 / (1 + np.power(_OMEGA / np.pi * RATE_HZ / 2 / 7500, 40))
    gain[:2] = 0.0, 0.5
    return gain


_ROLL_OFF = _roll_off()


def _warp() -> NDArray[np.complex128]:
    """(MCEP, FFT/2+1): e^{−j m ω̃}."""
    warped = _OMEGA + 2 * np.arctan2(ALPHA * np.sin(_OMEGA), 1 - ALPHA * np.cos(_OMEGA))
    return np.exp(-1j * np.arange(MCEP)[:, None] * warped)


_WARP = _warp()


def _transfer(mcep: NDArray[np.float32]) -> NDArray[np.complex128]:
    """(T, MCEP) → (T, FFT/2+1)."""
    gain = np.exp(np.clip(mcep @ _WARP.real, -20, 12)) * _ROLL_OFF / 32768
    return np.asarray(gain * np.exp(1j * (mcep @ _WARP.imag)), np.complex128)


def _noise_gain(frames: NDArray[np.float32], strengths: NDArray[np.float64]) -> NDArray[np.float64]:
    """(T, FFT/2+1): of the noise. Half without voice: measured against the teacher, which shapes it otherwise."""
    return (1 - strengths) * np.where(frames[:, VOICED] > 0, 1.0, 0.5)[:, None]


def _band_weights() -> NDArray[np.float64]:
    """(BANDS, FFT/2+1): which band a frequency belongs to, with slopes of 250 Hz."""
    hz = _OMEGA * RATE_HZ / (2 * np.pi)
    above = [np.clip((hz - edge) / 250 + 0.5, 0, 1) for edge in BAND_EDGES_HZ]
    edges = [np.ones_like(hz), *above, np.zeros_like(hz)]
    return np.stack([edges[b] - edges[b + 1] for b in range(BANDS)])


_BANDS = _band_weights()


def _strengths(frames: NDArray[np.float32]) -> NDArray[np.float64]:
    """(T, DIMS) → (T, FFT/2+1): how much of a frequency is pulses, in amplitude; the rest is noise."""
    bands = np.clip(frames[:, STRENGTH:].astype(np.float64), 0, 1)
    return np.clip(bands @ _BANDS, 0, 1)
