"""Silero VAD: when speech starts and ends, and that nothing else does."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import soxr
from numpy.typing import NDArray
from penstock.models import silero_vad
from penstock.pipeline.clock import MS, SECOND
from penstock.pipeline.frame import AudioFrame, EventFrame, Gap
from penstock.stages.resample import MonoStream
from penstock.stages.vad import SileroVad

from .fakes import Collected, FakeContext, audio_frames, feed
from .speech import room, said


def events(frames: list[AudioFrame], **params: float) -> list[EventFrame]:
    async def main() -> list[EventFrame]:
        stage, out = SileroVad(params=SileroVad.Params(**params)), Collected()  # type: ignore[arg-type]
        stage.ctx = FakeContext()
        await stage.setup()
        for frame in frames:
            await feed(stage, "audio", frame, out)
        stage.finish(out)
        return out.of("speech")

    return asyncio.run(main())


def names(found: list[EventFrame]) -> list[str]:
    return [event.name for event in found]


def cut(pcm: NDArray[np.int16], sizes: list[int]) -> list[AudioFrame]:
    frames: list[AudioFrame] = []
    at = i = 0
    while at < len(pcm):
        size = sizes[i % len(sizes)]
        frames.append(AudioFrame(pts=at * SECOND // 16_000, pcm=pcm[at : at + size, None], rate_hz=16_000))
        at, i = at + size, i + 1
    return frames


def test_speech_starts_and_ends_where_it_does() -> None:
    words = said("What time is it?")
    found = events(audio_frames(room([words])))
    assert names(found) == ["speech_start", "speech_end"]
    start, end = found
    # flite puts up to 200 ms of silence around its words
    assert 0.95 * SECOND < start.pts < 1.3 * SECOND
    assert abs(end.pts - (SECOND + len(words) * SECOND // 16_000)) < 300 * MS
    assert start.fields["late_ms"] <= 100
    assert start.fields["probability"] > 0.5


def test_noise_tones_and_silence_are_no_speech() -> None:
    t = np.arange(3 * 16_000) / 16_000
    rng = np.random.default_rng(1)
    for pcm in (
        np.zeros(48_000),
        rng.normal(0, 3000, 48_000),
        8000 * np.sin(2 * np.pi * 440 * t),
        np.where(np.arange(48_000) % 8000 < 40, 20_000, 0),
    ):
        assert events(audio_frames(pcm.astype(np.int16))) == []


@pytest.mark.parametrize("sizes", [[160], [512], [1000], [1, 7, 4000], [48_000]])
def test_any_framing_gives_the_same_events(sizes: list[int]) -> None:
    pcm = room([said("Pencil sketch."), said("Neon please.")])
    expected = events(audio_frames(pcm))
    assert names(expected) == ["speech_start", "speech_end"] * 2
    assert [(e.name, e.pts // MS) for e in events(cut(pcm, sizes))] == [
        (e.name, e.pts // MS) for e in expected
    ]


def test_48k_stereo_gives_the_same_events_within_a_window() -> None:
    pcm = room([said("What do you see?")])
    wide = np.asarray(soxr.resample(pcm, 16_000, 48_000), np.int16)
    found = events(audio_frames(np.stack([wide, wide], axis=1), 48_000))
    for a, b in zip(found, events(audio_frames(pcm)), strict=True):
        assert a.name == b.name
        assert abs(a.pts - b.pts) <= 33 * MS


def test_a_longer_pause_keeps_two_phrases_in_one_turn() -> None:
    frames = audio_frames(room([said("Pencil sketch."), said("Neon please.")], pause_s=0.6))
    assert names(events(frames, min_silence_ms=1500)) == ["speech_start", "speech_end"]


def test_speech_that_the_stream_cuts_off_is_ended_by_finish() -> None:
    frames = audio_frames(room([said("Pencil sketch.")])[: int(1.5 * 16_000)])
    assert names(events(frames)) == ["speech_start", "speech_end"]


def test_a_gap_starts_afresh() -> None:
    async def main() -> None:
        stage, out = SileroVad(), Collected()
        stage.ctx = FakeContext()
        await stage.setup()
        for frame in audio_frames(room([said("Hello there.")]))[:20]:
            await feed(stage, "audio", frame, out)
        stage.gap("audio", Gap(pts=0, until=SECOND), out)
        assert not np.any(stage._state.lstm)  # pyright: ignore[reportPrivateUsage]

    asyncio.run(main())


def test_a_window_of_another_length_is_refused() -> None:
    model = silero_vad.load()
    with pytest.raises(ValueError, match="512"):
        model.step(np.zeros(256, np.float32), model.init_state())


def test_resampled_time_follows_a_drifting_clock_and_a_hole() -> None:
    audio = MonoStream(16_000)
    pts = 0
    for _ in range(3000):  # a minute, captured 0.1 % too slowly
        audio.push(AudioFrame(pts=pts, pcm=np.zeros((960, 1), np.int16), rate_hz=48_000))
        pts += 20_020_000
    assert abs(audio.pts_of(audio.given) - pts) < 25 * MS  # the filter holds 13 ms back
    pts += 5 * SECOND
    audio.push(AudioFrame(pts=pts, pcm=np.zeros((960, 1), np.int16), rate_hz=48_000))
    assert abs(audio.pts_of(audio.given) - pts) < 25 * MS
    assert audio.index_of(audio.pts_of(1234567)) == pytest.approx(1234567, abs=1)


def test_resampling_does_not_depend_on_framing() -> None:
    rng = np.random.default_rng(2)
    pcm = rng.integers(-9000, 9000, 48_000).astype(np.int16)

    def whole(frame_ms: int) -> NDArray[np.float32]:
        audio = MonoStream(16_000)
        return np.concatenate([audio.push(f) for f in audio_frames(pcm, 48_000, frame_ms)])

    a, b = whole(20), whole(70)
    n = min(len(a), len(b))
    assert n > 14_000
    np.testing.assert_allclose(a[:n], b[:n], atol=1e-5)
