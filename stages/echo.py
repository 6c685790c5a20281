"""`audio.echo_guard`: the agent does not hear itself."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from scipy.signal import firwin

from ..models.echo import BLOCK, RATE_HZ, EchoGuard
from ..pipeline.clock import MS, SECOND
from ..pipeline.frame import AudioFrame, Frame, Gap
from ..pipeline.playback import Tap
from ..pipeline.stage import In, Out, Outputs, Ports, Stage
from .resample import MonoStream

_JUMP = 60 * MS  # between two played steps: the loop stood still, what was between was not played
_LAG = 40 * MS  # nothing is heard sooner after it was played; what was played is surely known then
_KEPT = 4 * RATE_HZ  # samples of played sound kept for microphones that are late


class EchoGuardStage(Stage):
    """Takes out of the microphone what the session's sink plays: for clients without an echo canceller of their own.

    Browsers have one: there this stage finds nothing to do, but for a deaf moment (`learn_ms` of the first reply, half of it
    when nobody speaks then).
    16 kHz, mono, blocks of 16 ms. Echo paths of up to 0.7 s delay and 0.19 s of room; the gate may swallow a quiet
    word said at the same time as a loud reply.
    """

    ports = Ports(inputs={"audio": In(AudioFrame)}, outputs={"audio": Out(AudioFrame, origin="live")})

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        learn_ms: int = Field(
            default=2200, ge=0, le=5000, description="Of played sound, until it knows whether there is echo"
        )

    async def setup(self) -> None:
        self._audio = MonoStream(RATE_HZ)
        self._pending = np.zeros(0, np.float32)
        self._index = 0  # of the first pending sample
        self._guard = EchoGuard(self.options.learn_ms / 1000)
        self._tap: Tap | None = None
        self._far = _Played()
        self._known: int | None = None

    def process(self, port: str, frame: Frame, out: Outputs) -> None:
        assert isinstance(frame, AudioFrame)
        if self._tap is None:
            self._tap = self.ctx.playback.tap()
        self._pending = np.concatenate([self._pending, self._audio.push(frame)])
        if self._tap is not None:
            self._far.add(self._tap)
        while len(self._pending) >= BLOCK:
            mic, self._pending = self._pending[:BLOCK], self._pending[BLOCK:]
            pts = self._audio.pts_of(self._index)
            self._index += BLOCK
            clean = self._guard.block(mic, self._far.at(pts - _LAG))
            pcm = np.clip(clean * 32768, -32768, 32767).astype(np.int16)[:, None]
            out.post(
                "audio",
                AudioFrame(pts=pts, deadline=frame.deadline, epoch=out.epoch, pcm=pcm, rate_hz=RATE_HZ),
            )
        if self._guard.delay is not None and self._guard.delay != self._known:
            self._known = self._guard.delay
            self.ctx.emit("echo_found", delay_ms=self._known * 1000 // RATE_HZ + _LAG // MS)

    def gap(self, port: str, gap: Gap, out: Outputs) -> None:
        """Lost sound is no silence: the pts of what follows says how much it was."""

    async def close(self) -> None:
        if getattr(self, "_tap", None) is not None:
            assert self._tap is not None
            self.ctx.playback.untap(self._tap)


class _Played:
    """What was played, at RATE_HZ, by time."""

    def __init__(self) -> None:
        self._sound = np.zeros(0, np.float32)
        self._end = 0  # time at which `_sound` ends, ns
        self._carry: NDArray[np.float32] | None = None  # last inputs of the decimating filter

    def add(self, tap: Tap) -> None:
        parts: list[NDArray[np.float32]] = []
        ratio = tap.rate_hz // RATE_HZ
        taps = _low_pass(ratio)
        for at, samples, pcm in tap.take():
            ends = at + samples * SECOND // tap.rate_hz
            if self._carry is None or abs(at - self._end) > _JUMP:
                missing = (at - self._end) * RATE_HZ // SECOND if self._carry is not None else 0
                parts.append(np.zeros(min(max(0, missing), _KEPT), np.float32))
                self._carry = np.zeros(len(taps) - 1, np.float32)
                self._end = ends
            else:
                self._end += samples * SECOND // tap.rate_hz
                self._end += (ends - self._end) // 50  # follows the clock, not its jitter
            mono = (
                np.zeros(samples, np.float32) if pcm is None else pcm.mean(axis=1, dtype=np.float32) / 32768
            )
            whole = np.concatenate([self._carry, mono])
            self._carry = whole[samples:]
            parts.append(np.convolve(whole, taps, "valid")[::ratio].astype(np.float32))
        if parts:
            self._sound = np.concatenate([self._sound, *parts])[-_KEPT:]

    def at(self, pts: int) -> NDArray[np.float32]:
        """(BLOCK,) from `pts` on; silence where nothing was played or is known."""
        first = len(self._sound) - (self._end - pts) * RATE_HZ // SECOND
        out = np.zeros(BLOCK, np.float32)
        begin, end = max(0, first), min(len(self._sound), first + BLOCK)
        if begin < end:
            out[begin - first : end - first] = self._sound[begin:end]
        return out


@cache
def _low_pass(ratio: int) -> NDArray[np.float32]:
    """Keeps what the lower rate can carry; its delay of 5 ms becomes part of the measured one."""
    if ratio == 1:
        return np.ones(1, np.float32)
    return np.asarray(firwin(16 * ratio + 1, 0.9 / ratio), np.float32)
