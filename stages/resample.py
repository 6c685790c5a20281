"""AudioFrames of any rate and channel count → mono float32 at one rate, keeping track of time."""

from __future__ import annotations

import numpy as np
import soxr
from numpy.typing import NDArray

from ..pipeline.clock import MS, SECOND
from ..pipeline.frame import AudioFrame

_DRIFT = 5 * MS  # capture and sample clocks part slowly: follow the pts from here on
_HOLE = 60 * MS  # a step of the pts that is no jitter: samples before and after do not belong together


class MonoStream:
    """Streaming mixdown and resampling: push any chunking, get the same samples.

    Samples given out are counted from construction; `pts_of` and `index_of` translate between that
    count and capture time, so that whoever cuts windows of its own can say when things happened.
    """

    def __init__(self, rate_hz: int) -> None:
        self.rate_hz = rate_hz
        self.given = 0  # samples given out
        self._input_hz = 0
        self._stream: soxr.ResampleStream | None = None
        self._begin_index = 0  # output index of the first sample since the last hole
        self._taken = 0  # input samples since then
        self._anchor = (0, 0)  # (output index, its pts in ns)

    def push(self, frame: AudioFrame) -> NDArray[np.float32]:
        """One frame, (T, C) int16 → (T',) in −1…1; the filter may hold the last few ms back."""
        if frame.rate_hz != self._input_hz:
            self._begin(frame)
        index = self._begin_index + self._taken * self.rate_hz // frame.rate_hz
        drift = abs(self.pts_of(index) - frame.pts)
        if drift > _HOLE:
            self._begin(frame)
        elif drift > _DRIFT:
            self._anchor = (index, frame.pts)
        self._taken += len(frame.pcm)
        mono = frame.pcm.astype(np.float32).mean(axis=1) / np.float32(32768)
        if self._stream is not None:
            mono = np.asarray(self._stream.resample_chunk(mono), np.float32)
        self.given += len(mono)
        return mono

    def pts_of(self, index: int) -> int:
        """Capture time in ns of output sample `index`."""
        return self._anchor[1] + (index - self._anchor[0]) * SECOND // self.rate_hz

    def index_of(self, pts: int) -> int:
        """The output sample captured at `pts`."""
        return self._anchor[0] + (pts - self._anchor[1]) * self.rate_hz // SECOND

    def _begin(self, frame: AudioFrame) -> None:
        self._begin_index, self._taken = self.given, 0
        self._anchor = (self.given, frame.pts)
        self._input_hz = frame.rate_hz
        self._stream = (
            None
            if frame.rate_hz == self.rate_hz
            else soxr.ResampleStream(frame.rate_hz, self.rate_hz, 1, dtype="float32", quality="MQ")
        )
