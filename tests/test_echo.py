"""The echo guard: the agent's voice goes, another's stays, silence costs nothing."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import numpy as np
import pytest
from numpy.typing import NDArray
from penstock.models import silero_vad
from penstock.models.echo import BLOCK, RATE_HZ, EchoGuard
from penstock.pipeline.clock import MS
from penstock.pipeline.frame import AudioFrame
from penstock.stages.echo import EchoGuardStage

from .fakes import Collected, FakeContext, feed
from .speech import said

REPLY = "I see a picture that is neither dark nor bright, mostly blue, with a lot of movement. Ask me for a style."


def room(far: NDArray[np.float32], delay: int, gain: float, seed: int = 0) -> NDArray[np.float32]:
    """What a microphone gets of it: late, softer, with 120 ms of reverberation and a little noise."""
    rng = np.random.default_rng(seed)
    decay = rng.normal(size=1920) * np.exp(-np.arange(1920) / 300) * 0.3
    decay[0] = 1
    echo = np.convolve(far, decay)[: len(far)]
    late = np.concatenate([np.zeros(delay), echo])[: len(far)]
    return (gain * late / 2 + rng.normal(0, 2e-4, len(far))).astype(np.float32)


def speech(text: str, voice: str, times: int = 1) -> NDArray[np.float32]:
    one = said(text, voice).astype(np.float32) / np.float32(32768)
    return np.concatenate([one] * times)


def guarded(mic: NDArray[np.float32], far: NDArray[np.float32]) -> tuple[NDArray[np.float32], EchoGuard]:
    guard = EchoGuard()
    count = min(len(mic), len(far)) // BLOCK
    out = [
        guard.block(mic[i * BLOCK : (i + 1) * BLOCK], far[i * BLOCK : (i + 1) * BLOCK]) for i in range(count)
    ]
    return np.concatenate(out), guard


def talking(sound: NDArray[np.float32]) -> float:
    """Share of the time in which a VAD hears speech."""
    model = silero_vad.load()
    state = model.init_state()
    windows = sound[: len(sound) // silero_vad.WINDOW * silero_vad.WINDOW].reshape(-1, silero_vad.WINDOW)
    return float(np.mean([model.step(window.astype(np.float32), state) >= 0.5 for window in windows]))


@pytest.mark.parametrize(("delay_ms", "gain"), [(60, 0.5), (180, 0.2), (420, 0.8)])
def test_the_agent_does_not_hear_itself(delay_ms: int, gain: float) -> None:
    far = speech(REPLY, "flite:rms", 2)
    mic = room(far, delay_ms * 16, gain)
    out, guard = guarded(mic, far)
    assert guard.delay is not None
    assert abs(guard.delay - delay_ms * 16) < 64
    assert talking(mic) > 0.9
    assert talking(out) < 0.02  # 0 in 14 of 15 rooms, .005 in one


def test_somebody_who_talks_over_it_is_heard() -> None:
    far = speech(REPLY, "flite:rms", 2)
    other = speech("Stop. What time is it please?", "flite:slt")
    mic = room(far, 2000, 0.4)
    begin = RATE_HZ * 7
    mic[begin : begin + len(other)] += 0.6 * other
    out, _ = guarded(mic, far)
    assert talking(out[: begin - 1600]) < 0.02
    assert talking(out[begin : begin + len(other)]) > 0.3


def test_a_quiet_loudspeaker_changes_nothing() -> None:
    mic = speech("Hello there.", "flite:slt")
    out, guard = guarded(mic, np.zeros_like(mic))
    assert np.array_equal(out, mic[: len(out)])
    assert guard.delay is None


def test_a_far_end_without_echo_is_deaf_for_a_moment_only() -> None:
    far = speech(REPLY, "flite:rms")
    mic = np.zeros_like(far)
    other = speech("What time is it?", "flite:kal16")  # another noise generator than the statistical voices
    mic[RATE_HZ * 3 : RATE_HZ * 3 + len(other)] = other
    mic += np.random.default_rng(0).normal(0, 1e-4, len(mic)).astype(np.float32)
    out, guard = guarded(mic, far)
    assert guard.delay is None
    assert np.array_equal(out[RATE_HZ * 3 :], mic[RATE_HZ * 3 : len(out)])
    assert np.abs(out[RATE_HZ // 4 : RATE_HZ]).max() < 1e-5


def before_and_after(
    mic: NDArray[np.float32], far: NDArray[np.float32]
) -> tuple[NDArray[np.float32], EchoGuard]:
    """With two seconds of the room before anything is played."""
    quiet = np.random.default_rng(9).normal(0, 2e-4, 2 * RATE_HZ).astype(np.float32)
    out, guard = guarded(np.concatenate([quiet, mic]), np.concatenate([np.zeros_like(quiet), far]))
    return out[len(quiet) // BLOCK * BLOCK :], guard


def test_a_quiet_far_end_without_echo_is_deaf_half_as_long() -> None:
    far = speech(REPLY, "flite:rms")
    mic = np.random.default_rng(0).normal(0, 2e-4, len(far)).astype(np.float32)
    out, guard = before_and_after(mic, far)
    assert guard.delay is None
    begin = RATE_HZ // 4  # it sounds by then
    opened = begin + int(np.flatnonzero(out[begin:])[0])
    assert RATE_HZ <= opened <= 1.6 * RATE_HZ


@pytest.mark.parametrize("gain", [0.5, 0.02, 0.005, 0.002])
@pytest.mark.parametrize("delay_ms", [60, 300, 650])
def test_no_echo_is_so_weak_or_late_that_it_is_taken_for_quiet(delay_ms: int, gain: float) -> None:
    far = speech(REPLY, "flite:rms", 2)
    out, _ = before_and_after(room(far, delay_ms * 16, gain), far)
    assert talking(out[: 3 * RATE_HZ]) < 0.02


def test_the_stage_finds_the_echo_by_the_sinks_clock() -> None:
    far = speech(REPLY, "flite:rms", 2)
    mic = (room(far, 150 * 16, 0.5) * 32768).astype(np.int16)
    loud = np.repeat((far * 32768).astype(np.int16), 3)[:, None]  # 48 kHz

    async def main() -> None:
        ctx = FakeContext()
        ctx.playback.attach(48_000, lambda until: None)
        stage, out = EchoGuardStage(), Collected()
        stage.ctx = ctx
        await stage.setup()
        await feed(stage, "audio", AudioFrame(pts=0, pcm=np.zeros((320, 1), np.int16), rate_hz=RATE_HZ), out)
        for i in range(len(mic) // 320):
            at = (i + 1) * 20 * MS
            ctx.playback.step(at, 960, loud[i * 960 : (i + 1) * 960], 0, ())
            await feed(
                stage,
                "audio",
                AudioFrame(pts=at, pcm=mic[i * 320 : (i + 1) * 320, None], rate_hz=RATE_HZ),
                out,
            )
        found = [fields["delay_ms"] for name, fields in ctx.events if name == "echo_found"]
        assert found
        assert abs(int(str(found[-1])) - 150) <= 5
        frames = out.of("audio")
        heard = np.concatenate([f.pcm[:, 0] for f in frames]).astype(np.float32)
        assert talking(heard / np.float32(32768)) < 0.02
        assert all(b.pts - a.pts == 16 * MS for a, b in pairwise(frames))
        await stage.close()

    asyncio.run(main())
