"""Live sound catches up unheard; generated speech loses nothing."""

import asyncio

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.clock import MS, SECOND, LoopClock
from penstock.pipeline.frame import AudioFrame
from penstock.pipeline.virtual_loop import run_virtual
from penstock.transport.audio_out import LIVE_MOST, SAMPLES, AudioOut
from penstock.transport.playout import FADE, LONGEST_CUT, cut_at_pitch


def voice(k: int, samples: int = SAMPLES) -> np.ndarray:
    t = np.arange(samples) + samples * k
    return (6000 * np.sin(2 * np.pi * 160 * t / 48_000))[:, None].astype(np.int16)


def sound(k: int) -> AudioFrame:
    return AudioFrame(pts=k * 20 * MS, pcm=voice(k), rate_hz=48_000)


def test_live_sound_leaves_as_it_comes():
    async def main() -> None:
        clock = LoopClock(asyncio.get_running_loop())
        track = AudioOut(clock, live=True)
        left: list[int] = []

        async def send() -> None:
            for _ in range(100):
                await track.pull()
                left.append(clock.now())

        sending = asyncio.create_task(send())
        await clock.sleep(7 * MS)
        came: list[int] = []
        for k in range(100):
            await track.write(sound(k))
            came.append(clock.now())
            await clock.sleep(20 * MS)
        await sending
        lag = [min((out - c for c in came if c <= out), default=0) for out in left[10:]]
        assert max(lag) <= 5 * MS
        assert track.buffered == 0

    run_virtual(main())


def test_delay_after_a_stall_is_gone_within_a_second():
    async def main() -> None:
        clock = LoopClock(asyncio.get_running_loop())
        track = AudioOut(clock, live=True)

        async def send() -> None:
            while True:
                await track.pull()

        sending = asyncio.create_task(send())
        for k in range(50):
            await track.write(sound(k))
            await clock.sleep(20 * MS)
        for k in range(50, 56):  # what a stalled machine brings at once
            await track.write(sound(k))
        assert track.buffered >= 80 * MS
        for k in range(56, 106):
            await clock.sleep(20 * MS)
            await track.write(sound(k))
        await clock.sleep(MS)
        assert track.buffered <= 8 * MS
        assert track.shortened >= 70 * 48
        sending.cancel()

    run_virtual(main())


def test_silence_is_dropped_at_once():
    assert len(cut_at_pitch(np.zeros((4800, 1), np.int16), 3000)) == 1800


def test_a_cut_keeps_the_pitch_and_does_not_click():
    pcm = np.concatenate([voice(0), voice(1)])
    shorter = cut_at_pitch(pcm, LONGEST_CUT)
    assert len(pcm) - LONGEST_CUT <= len(shorter) < len(pcm)
    assert (
        np.abs(np.diff(shorter[:, 0].astype(int))).max() <= 1.2 * np.abs(np.diff(pcm[:, 0].astype(int))).max()
    )
    spectrum = np.abs(np.fft.rfft(shorter[:, 0] * np.hanning(len(shorter)), 48_000))
    assert abs(int(np.argmax(spectrum)) - 160) <= 3


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 3000), st.integers(0, 2000), st.integers(1, 2), st.integers(0, 5))
def test_cuts_stay_in_bounds(samples: int, most: int, channels: int, seed: int):
    pcm = np.random.default_rng(seed).integers(-32768, 32767, (samples, channels)).astype(np.int16)
    shorter = cut_at_pitch(pcm, most)
    assert max(min(samples, FADE), samples - most) <= len(shorter) <= samples
    assert shorter.shape[1] == channels


def test_generated_speech_is_played_whole_and_in_order():
    async def main() -> None:
        clock = LoopClock(asyncio.get_running_loop())
        track = AudioOut(clock)
        written = np.arange(48_000, dtype=np.int16)[:, None]

        async def write() -> None:
            for at in range(0, 48_000, 4800):
                await track.write(AudioFrame(pts=0, pcm=written[at : at + 4800], rate_hz=48_000))

        writing = asyncio.create_task(write())
        await asyncio.sleep(0)
        heard = np.concatenate([(await track.pull())[0] for _ in range(50)])
        await writing
        assert (heard == written).all()
        assert track.shortened == 0

    run_virtual(main())


def test_live_writers_never_wait_and_the_oldest_goes():
    async def main() -> None:
        clock = LoopClock(asyncio.get_running_loop())
        track = AudioOut(clock, live=True)
        before = clock.now()
        for k in range(100):
            await track.write(sound(k))
        assert clock.now() == before
        assert track.buffered <= LIVE_MOST
        assert track.shortened == 100 * SAMPLES - LIVE_MOST * 48_000 // SECOND

    run_virtual(main())


def test_stereo_is_kept_and_mono_stays_mono():
    async def main() -> None:
        track = AudioOut(LoopClock(asyncio.get_running_loop()))
        wide = np.stack([np.full(SAMPLES, 100), np.full(SAMPLES, -100)], axis=1).astype(np.int16)
        await track.write(AudioFrame(pts=0, pcm=wide, rate_hz=48_000))
        await track.write(sound(0))
        assert ((await track.pull())[0] == wide).all()
        assert (await track.pull())[0].shape == (SAMPLES, 1)
        assert (await track.recv()).layout.name == "mono"

    run_virtual(main())
