"""`vad.silero`: when somebody starts and stops speaking."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..models import silero_vad
from ..models.silero_vad import RATE_HZ, WINDOW
from ..pipeline.clock import SECOND
from ..pipeline.frame import AudioFrame, EventFrame, Frame, Gap
from ..pipeline.stage import In, Out, Outputs, Ports, Stage, StageError
from .resample import MonoStream

_WINDOW_MS = WINDOW * 1000 / RATE_HZ  # 32


class SileroVad(Stage):
    """Silero VAD with hysteresis.

    Puts `speech_start` and `speech_end` events; their pts is when the voice began or ended (it began some
    windows before it was sure), `fields.late_ms` how much audio later that was known. `probability` has
    `speech_probability` for each window, from `pts` to `fields.until`. Speech needs
    `min_speech_ms` above `threshold` to start and `min_silence_ms` below `threshold − 0.15` to end; in
    between nothing changes. Cannot tell one speaker from another, or the agent's own echo from a person:
    the browser's echo canceller has to.
    """

    ports = Ports(
        inputs={"audio": In(AudioFrame)},
        outputs={
            "speech": Out(EventFrame, origin="token"),
            "probability": Out(EventFrame, origin="state"),  # many a second: read, not announced
        },
    )

    class Params(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        threshold: float = Field(default=0.5, ge=0.2, le=0.95, description="Surer than this counts as speech")
        min_speech_ms: int = Field(default=64, ge=32, le=1000, description="Shorter sounds are no speech")
        min_silence_ms: int = Field(default=480, ge=64, le=5000, description="A longer pause ends the turn")
        pre_roll_ms: int = Field(default=32, ge=0, le=500, description="Onset is set this much earlier")

    async def setup(self) -> None:
        try:
            self.start(await self.ctx.pool().call(silero_vad.load))
        except FileNotFoundError as e:
            raise StageError(f"node {self.ctx.node!r}: {e}") from e

    def start(self, model: silero_vad.SileroVad) -> None:
        """Begin a stream with these weights."""
        self._model = model
        self._audio = MonoStream(RATE_HZ)
        self._state = self._model.init_state()
        self._pending = np.zeros(0, np.float32)
        self._index = 0  # of the first pending sample
        self._speaking = False
        self._loud = 0  # windows in a row above the threshold
        self._quiet = 0  # windows since the last one above the lower threshold
        self._peak = 0.0  # surest window of this onset

    def process(self, port: str, frame: Frame, out: Outputs) -> None:
        assert isinstance(frame, AudioFrame)
        self._pending = np.concatenate([self._pending, self._audio.push(frame)])
        while len(self._pending) >= WINDOW:
            window, self._pending = self._pending[:WINDOW], self._pending[WINDOW:]
            # on the loop: 0.1 ms is less than the way to a thread and back
            probability = self._model.step(window, self._state)
            if "probability" in self.ctx.connected:
                self._tell(probability, out)
            self._decide(probability, out)
            self._index += WINDOW

    def gap(self, port: str, gap: Gap, out: Outputs) -> None:
        self._state = self._model.init_state()

    def finish(self, out: Outputs) -> None:
        if self._speaking:
            self._put("speech_end", self._index, 0.0, out)
            self._speaking = False

    def _decide(self, probability: float, out: Outputs) -> None:
        """Hysteresis on the window that begins at sample `_index`."""
        p = self.params
        if not self._speaking:
            loud = probability >= p.threshold
            self._loud = self._loud + 1 if loud else 0
            self._peak = max(self._peak, probability) if loud else 0.0
            needed = max(1, round(p.min_speech_ms / _WINDOW_MS))
            if self._loud >= needed:
                self._speaking, self._quiet = True, 0
                onset = self._index - (self._loud - 1) * WINDOW - p.pre_roll_ms * RATE_HZ // 1000
                self._loud = 0
                self._put("speech_start", onset, self._peak, out)
        else:
            # 0.15: the gap that Silero's own iterator uses
            self._quiet = self._quiet + 1 if probability < p.threshold - 0.15 else 0
            if self._quiet * _WINDOW_MS >= p.min_silence_ms:
                self._speaking = False
                self._put("speech_end", self._index - (self._quiet - 1) * WINDOW, probability, out)

    def _tell(self, probability: float, out: Outputs) -> None:
        until = self._audio.pts_of(self._index + WINDOW)
        fields = {"probability": round(probability, 3), "until": until}
        pts = self._audio.pts_of(self._index)
        out.post(
            "probability", EventFrame(pts=pts, epoch=out.epoch, name="speech_probability", fields=fields)
        )

    def _put(self, name: str, index: int, probability: float, out: Outputs) -> None:
        pts = self._audio.pts_of(index)
        known = self._audio.pts_of(self._index + WINDOW)
        fields = {
            "probability": round(probability, 3),
            "late_ms": round((known - pts) * 1000 / SECOND),
        }
        out.post("speech", EventFrame(pts=pts, epoch=out.epoch, name=name, fields=fields))
