"""What the paced sink plays when speech runs dry, is held, and goes on."""

from __future__ import annotations

import asyncio

import numpy as np
from numpy.typing import NDArray
from penstock.pipeline.clock import MS, SECOND, ManualClock
from penstock.pipeline.frame import AudioFrame
from penstock.transport.audio_out import AUDIO_RATE, AudioOut
from penstock.transport.speech_gap import MADE_UP, SpeechGap

STEP = AUDIO_RATE // 50


def tone(ms: int, hz: float = 150.0, at: int = 0) -> NDArray[np.int16]:
    t = (np.arange(ms * AUDIO_RATE // 1000) + at) / AUDIO_RATE
    return (8000 * np.sin(2 * np.pi * hz * t)).astype(np.int16)[:, None]


def steepest(pcm: NDArray[np.int16]) -> int:
    return int(np.abs(np.diff(pcm[:, 0].astype(int))).max())


def test_a_voice_that_breaks_off_fades_on_its_period_without_a_click() -> None:
    gap = SpeechGap()
    sound = tone(100)
    parts = [gap.step(sound[i : i + STEP], STEP) for i in range(0, len(sound), STEP)]
    parts += [gap.step(sound[:0], STEP) for _ in range(3)]
    out = np.concatenate(parts)
    assert steepest(out) <= 1.2 * steepest(sound)
    after = out[len(sound) :]
    assert np.abs(after[: STEP // 2]).max() > 3000
    assert not after[MADE_UP:].any()


def test_it_leads_back_into_what_comes() -> None:
    gap = SpeechGap()
    sound = tone(100)
    for i in range(0, len(sound), STEP):
        gap.step(sound[i : i + STEP], STEP)
    first = gap.step(sound[:0], STEP)
    back = gap.step(tone(20, at=137), STEP)
    assert steepest(np.concatenate([first, back])) <= 2.5 * steepest(sound)
    assert np.array_equal(back[STEP // 2 :], tone(20, at=137)[STEP // 2 :])


def test_speech_that_ended_in_silence_is_not_continued() -> None:
    gap = SpeechGap()
    sound = np.concatenate([tone(60), np.zeros((STEP, 1), np.int16)])
    for i in range(0, len(sound), STEP):
        gap.step(sound[i : i + STEP], STEP)
    assert not gap.step(sound[:0], STEP).any()


def said(word: int, epoch: int = 0) -> AudioFrame:
    """100 ms of a value that is the word's own."""
    pcm = np.full((AUDIO_RATE // 10, 1), 1000 * word, np.int16)
    return AudioFrame(pts=0, pcm=pcm, rate_hz=AUDIO_RATE, text=f"w{word} ", utterance=5, epoch=epoch)


def test_a_hold_is_silent_at_once_and_goes_on_with_the_cut_word() -> None:
    async def main() -> None:
        clock = ManualClock()
        track = AudioOut(clock, ahead=SECOND)
        told: list[tuple[int, str]] = []
        track.on_step = lambda at, samples, pcm, waiting, words: told.extend(words)
        for word in (1, 2, 3):
            await track.write(said(word))
        for _ in range(7):
            await track.pull()
        assert told == [(5, "w1 ")]
        track.hold(clock.now() + 10 * SECOND)
        fade, _ = await track.pull()
        assert fade[: AUDIO_RATE // 200].any()
        assert not fade[AUDIO_RATE // 200 :].any()
        for _ in range(20):
            assert not (await track.pull())[0].any()
        assert told == [(5, "w1 ")]
        track.hold(0)
        again = np.concatenate([(await track.pull())[0] for _ in range(10)])
        assert (again[:, 0] == 2000).sum() > 0.9 * AUDIO_RATE // 10  # from its beginning, faded in
        assert (again[:, 0] == 3000).sum() == AUDIO_RATE // 10
        assert told == [(5, "w1 "), (5, "w2 "), (5, "w3 ")]

    asyncio.run(main())


def test_a_hold_that_nobody_ends_ends_itself() -> None:
    async def main() -> None:
        track = AudioOut(ManualClock(), ahead=SECOND)
        await track.write(said(1))
        track.hold(track.clock.now() + 100 * MS)
        pulled = [(await track.pull())[0] for _ in range(10)]
        assert not pulled[3].any()
        assert sum(int((p == 1000).sum()) for p in pulled) > 0.9 * AUDIO_RATE // 10

    asyncio.run(main())


def test_a_flush_ends_a_hold_and_what_it_held() -> None:
    async def main() -> None:
        track = AudioOut(ManualClock(), ahead=SECOND)
        told: list[tuple[int, str]] = []
        track.on_step = lambda at, samples, pcm, waiting, words: told.extend(words)
        await track.write(said(1))
        await track.pull()
        track.hold(track.clock.now() + 10 * SECOND)
        await track.pull()
        track.flush(1)
        await track.write(said(2, epoch=1))
        pulled = np.concatenate([(await track.pull())[0] for _ in range(5)])
        assert set(np.unique(pulled)) <= {0, 2000}
        assert told == [(5, "w2 ")]

    asyncio.run(main())
