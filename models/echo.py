"""Takes out of a microphone what a loudspeaker plays into it, so that an agent does not hear itself.

    far (played) ─▶ aligned by the measured delay ─▶ partitioned Kalman filter ─▶ ŷ
    mic ───────────────────────────────────────────────────────────────────── − ŷ ─▶ residual ─▶ gate ─▶ out

The filter adapts by itself in double talk (its gain is a Kalman gain: little where the near end is loud). The gate
closes where no more is left than an echo leaves; before a delay is known it is closed for `learn` seconds of
played sound at most, so a far end that cancels its own echo costs one deaf moment: half as long where the microphone
stays as quiet as it was before, while all that could echo in it was loud.

Source: F. Kuech et al., "State-space architecture of the partitioned-block-based acoustic echo controller", ICASSP 2014;
delay by generalised cross-correlation with phase transform, C. Knapp and G. Carter 1976.
"""

from __future__ import annotations

from collections import deque

import numpy as np
from numpy.typing import NDArray

RATE_HZ = 16_000
BLOCK = 256  # samples, 16 ms
PARTITIONS = 12  # blocks of echo path after the delay: 192 ms of room
MARGIN = 2 * BLOCK  # the filter begins so much before the measured delay
LONGEST_DELAY = (
    RATE_HZ * 7 // 10
)  # samples between playing and hearing: network, jitter buffer, devices, room
MEASURE = 2 * RATE_HZ  # samples compared to measure the delay
EVERY = RATE_HZ // 2  # samples between two measurements
SURE = 9.0  # peak of the correlation over its RMS
REPLAYED = 60  # blocks of the past that a new filter learns from at once: 1 s, some 15 ms of work
FAR_QUIET = 1e-3  # RMS of ±1 (-60 dB): nothing is played
FORGET = 0.9995  # of the filter, a block: rooms change slowly
SMOOTH = 0.9  # of the near end's spectrum
UNKNOWN = np.log(100.0)  # a filter that knows nothing yet takes nothing out
OPENS = 6  # blocks in a row open the gate: 96 ms; with 3 a voice heard itself in 5 of 18 rooms
NEAR = np.log(9.0)  # so much more is left than an echo leaves: somebody speaks
HUSH = 32  # blocks, 0.5 s: so long the microphone is as quiet as before, then nothing echoes in it
HUSH_RISE = 1.6  # in power, 2 dB: an echo that adds less is below the noise
FAR_LOUD = 1e-4  # power (-40 dB) of what would echo
CLOSED = 0.0  # gain: a VAD hears speech at -50 dB as well


_TAPER = np.hanning(MEASURE)
_EDGES = np.minimum(1, np.hanning(MEASURE + LONGEST_DELAY) * 50)


class EchoGuard:
    """Push the microphone's blocks with the sound played up to the same moment; all float32, mono, ±1."""

    def __init__(self, learn_s: float = 2.2) -> None:
        self._far = np.zeros(LONGEST_DELAY + MEASURE + (PARTITIONS + 4) * BLOCK, np.float32)
        self._mic = np.zeros(MEASURE, np.float32)
        self._since = 0
        self._learn = round(learn_s * RATE_HZ)
        self._played = 0  # samples of sound played so far
        self._tail = 0  # samples for which an echo may still come
        self._filter = _KalmanFilter()
        self._candidate = -1
        self._rest = self._echo = 0.0  # smoothed powers of what is left and of what was taken out
        self._near = 0  # blocks in a row in which somebody speaks
        self._leak = float(UNKNOWN)  # log of the first over the second while nobody speaks
        self._hush = _Hush()
        self.delay: int | None = None  # samples, once measured
        self.closed = False  # the gate, in the last block

    def block(self, mic: NDArray[np.float32], far: NDArray[np.float32]) -> NDArray[np.float32]:
        """(BLOCK,) each → (BLOCK,)."""
        self._far = np.concatenate([self._far[BLOCK:], far])
        self._mic = np.concatenate([self._mic[BLOCK:], mic])
        sounds = float(np.sqrt(np.mean(np.square(far)))) > FAR_QUIET
        if sounds:
            self._played += BLOCK
            self._tail = LONGEST_DELAY if self.delay is None else self.delay + PARTITIONS * BLOCK
        elif self._tail > 0:
            self._tail -= BLOCK
        if self.delay is None and self._played < self._learn and self._hush.block(mic, far, self._tail > 0):
            self._learn = 0
        if self._tail <= 0:
            self.closed = False
            return mic
        self._since += BLOCK
        if self._since >= EVERY and self._played >= EVERY:
            self._since = 0
            self._measure()
        if self.delay is None:
            self.closed = self._played < self._learn
            return mic * CLOSED if self.closed else mic
        return self._cancel(mic, self.delay)

    def _cancel(self, mic: NDArray[np.float32], delay: int) -> NDArray[np.float32]:
        rest, echo = self._filter.step(self._reference(delay), mic)
        self._rest += 0.4 * (float(np.mean(np.square(rest))) - self._rest)
        self._echo += 0.4 * (float(np.mean(np.square(echo))) - self._echo)
        share = np.log((self._rest + 1e-9) / (self._echo + 1e-9))
        alone = share < self._leak + NEAR
        # what the filter leaves of an echo follows slowly; somebody who speaks hardly moves it
        self._leak += (0.05 if alone else 0.001) * (share - self._leak)
        self._near = 0 if alone else self._near + 1
        self.closed = self._near < OPENS
        return (rest * CLOSED if self.closed else rest).astype(np.float32)

    def _measure(self) -> None:
        """The delay at which the microphone resembles what was played, if there is one and it is sure twice."""
        far = self._far[-(MEASURE + LONGEST_DELAY) :]
        size = 1 << (len(far) + MEASURE - 1).bit_length()
        # sound that is cut off at the same moment in both would look like an echo without delay
        cross = np.fft.rfft(self._mic * _TAPER, size) * np.conj(np.fft.rfft(far * _EDGES, size))
        cross /= np.power(np.abs(cross), 0.8) + 1e-6
        cross[: size * 100 // RATE_HZ] = 0  # hum is everywhere the same
        correlation = np.fft.irfft(cross, size)
        # mic[n] = far[n + LONGEST_DELAY − delay]: a shift of the far array of −(LONGEST_DELAY − delay)
        lags = correlation[(np.arange(LONGEST_DELAY) - LONGEST_DELAY) % size]
        best = int(np.argmax(lags))
        if lags[best] < SURE * float(np.sqrt(np.mean(np.square(lags)))):
            return
        sure = abs(best - self._candidate) < BLOCK // 4
        if sure and (self.delay is None or abs(best - self.delay) > MARGIN // 2):
            self.delay = best
            self._filter, self._leak = _KalmanFilter(), float(UNKNOWN)
            for back in range(REPLAYED, 0, -1):  # it begins with what has just been heard
                at = len(self._mic) - back * BLOCK
                self._filter.step(self._reference(best, (back - 1) * BLOCK), self._mic[at : at + BLOCK])
        self._candidate = best

    def _reference(self, delay: int, ago: int = 0) -> NDArray[np.float32]:
        """(2·BLOCK,): what the echo of the block that ended `ago` samples ago is made of."""
        start = len(self._far) - 2 * BLOCK - max(0, delay - MARGIN) - ago
        return self._far[start : start + 2 * BLOCK]


class _Hush:
    """Tells that nothing echoes, from a microphone that stays quiet."""

    def __init__(self) -> None:
        self._before = deque[float](
            maxlen=20 * 16
        )  # powers of the microphone's blocks while nothing played: 5 s
        self._mic = deque[float](maxlen=HUSH)  # and since something does
        self._far = deque[float](maxlen=HUSH + LONGEST_DELAY // BLOCK)
        self._floor = 0.0

    def block(self, mic: NDArray[np.float32], far: NDArray[np.float32], playing: bool) -> bool:
        """Is it sure now?"""
        power = float(np.mean(np.square(mic)))
        if not playing:
            self._before.append(power)
            self._mic.clear()
            self._far.clear()
            return False
        if not self._far:  # the quietest quarter second: somebody may have spoken just before
            quarters = [float(np.mean(q)) for q in zip(*[iter(self._before)] * 16, strict=False)]
            self._floor = max(min(quarters, default=0.0), 1e-10)
        self._mic.append(power)
        self._far.append(float(np.mean(np.square(far))))
        if len(self._far) < (self._far.maxlen or 0) or not self._before:
            return False
        if float(np.mean(self._mic)) > HUSH_RISE * self._floor:
            return False
        # whatever the delay, what would be heard in this half second was loud
        heard = np.convolve(self._far, np.full(HUSH, 1 / HUSH), "valid")
        return bool(heard.min() > FAR_LOUD)


class _KalmanFilter:
    """One far signal, one microphone; overlap-save with blocks of BLOCK."""

    def __init__(self) -> None:
        bins = BLOCK + 1
        self._x = np.zeros((PARTITIONS, bins), np.complex128)  # spectra of the far end, newest first
        self._w = np.zeros((PARTITIONS, bins), np.complex128)
        self._p = np.full((PARTITIONS, bins), 1.0)  # uncertainty of w
        self._near = np.full(bins, 1e-2)  # power of the near end

    def step(
        self, far: NDArray[np.float32], mic: NDArray[np.float32]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """far (2·BLOCK,): the last block and the one before it; mic (BLOCK,) → what is no echo, what is."""
        self._x = np.roll(self._x, 1, 0)
        self._x[0] = np.fft.rfft(far)
        echo = np.fft.irfft(np.sum(self._w * self._x, 0))[BLOCK:]
        rest = mic - echo
        error = np.fft.rfft(np.concatenate([np.zeros(BLOCK), rest]))
        power = np.square(np.abs(self._x))
        self._near = SMOOTH * self._near + (1 - SMOOTH) * np.square(np.abs(error))
        doubt = np.sum(self._p * power, 0) / 2 + self._near + 1e-8
        gain = self._p * np.conj(self._x) / doubt
        response = np.fft.irfft(gain * error, axis=1)
        response[:, BLOCK:] = 0  # a filter of one block has no more
        np.add(self._w, np.fft.rfft(response, axis=1), out=self._w)
        kept = 1 - np.clip((gain * self._x).real / 2, 0, 1)
        self._p = FORGET**2 * kept * self._p + (1 - FORGET**2) * np.square(np.abs(self._w))
        self._w *= FORGET
        return rest, echo
