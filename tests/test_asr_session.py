"""A listener's session: turns, holes in time, bad samples and silence. Untrained weights: the words are noise."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import Collected, FakeContext, audio_frames, feed
from numpy.typing import NDArray
from penstock.models import whisper_loader
from penstock.models.asr_session import AsrEvent, AsrRows, AsrSession
from penstock.models.causal_whisper import CausalWhisper
from penstock.models.tokens import WordTokens
from penstock.models.whisper_dims import BlockPlan, WhisperDims
from penstock.models.whisper_loader import Checkpoint
from penstock.models.whisper_stream import WhisperStreamer
from penstock.pipeline.clock import MS, SECOND
from penstock.pipeline.frame import EventFrame
from penstock.pipeline.stage import StageError
from penstock.stages.asr_causal import CausalAsr

Pcm = NDArray[np.float32]
DIMS = WhisperDims(80, 200, 32, 2, 1, 32, 32, 32, 2, 1)
PLAN = BlockPlan(chunk=10, first=10)
WORDS = tuple(f"w{i}" for i in range(30))
torch.set_num_threads(1)


def weights() -> CausalWhisper:
    model = CausalWhisper.random(DIMS)
    model.decoder.token_embedding.weight.data.mul_(20)  # else all logits are alike
    return model


def rows() -> AsrRows:
    return AsrRows(WhisperStreamer(weights(), WordTokens(WORDS), PLAN, tokens_per_s=0.1))


def loud(seconds: float, seed: int = 0) -> Pcm:
    return (np.random.default_rng(seed).normal(size=int(seconds * 16_000)) * 0.2).astype(np.float32)


def quiet(seconds: float) -> Pcm:
    return (np.random.default_rng(9).normal(size=int(seconds * 16_000)) * 1e-5).astype(np.float32)


def play(session: AsrSession, pcm: Pcm, begin: int = 0, step: int = 320) -> list[AsrEvent]:
    events: list[AsrEvent] = []
    for at in range(0, len(pcm), step):
        events += session.push(pcm[at : at + step], begin + at * SECOND // 16_000)
    return events


def kinds(events: list[AsrEvent], kind: str) -> list[AsrEvent]:
    return [e for e in events if e.kind == kind]


def test_a_turn_ends_after_silence_and_holds_all_committed_words() -> None:
    session = AsrSession(rows(), endpoint_ms=500)
    events = play(session, np.concatenate([quiet(0.8), loud(1.5), quiet(1.0), loud(1.0), quiet(1.0)]))
    ends = kinds(events, "endpoint")
    assert [e.turn for e in ends] == [0, 1]
    for end in ends:
        said = [e for e in kinds(events, "commit") if e.turn == end.turn]
        assert end.text == " ".join(e.text for e in said)
        assert all(a.end <= b.begin for a, b in zip(said, said[1:]))  # noqa: B905, RUF007
    assert 0.1 * SECOND <= ends[0].begin <= ends[0].end <= 2.9 * SECOND
    assert session.finish() == []


def test_digital_silence_ends_a_turn_and_the_noise_after_it_begins_none() -> None:
    mute = np.zeros(16_000, np.float32)
    tone = (np.sin(np.arange(16_000) / 8) * 0.9).astype(np.float32)  # so loud that the mel floor rises
    noise = (np.random.default_rng(3).normal(size=32_000) * 3e-5).astype(np.float32)
    session = AsrSession(rows(), endpoint_ms=500)
    events = play(session, np.concatenate([mute, tone, mute, tone, mute, noise]))
    assert [e.turn for e in kinds(events, "endpoint")] == [0, 1]
    assert session.stream is None


def test_any_chunking_of_the_samples_gives_the_same_commits() -> None:
    pcm = np.concatenate([quiet(0.3), loud(1.2), quiet(1.0)])
    shared = rows()
    found = [
        [
            (e.kind, e.text, e.begin, e.turn)
            for e in play(AsrSession(shared), pcm, 5 * SECOND, step)
            if e.kind != "partial"
        ]
        for step in (160, 533, len(pcm))
    ]
    assert found[0] == found[1] == found[2]
    assert found[0]


def test_a_snapshot_goes_on_by_itself() -> None:
    pcm = np.concatenate([quiet(0.3), loud(2.0), quiet(1.0)])
    session = AsrSession(rows())
    play(session, pcm[:20_000])
    copy = session.snapshot()
    begin = 20_000 * SECOND // 16_000
    assert play(copy, pcm[20_000:], begin) == play(session, pcm[20_000:], begin)


@pytest.mark.parametrize("seconds", [30, pytest.param(3600, marks=pytest.mark.slow)])
def test_long_silence_runs_no_model_and_keeps_no_memory(seconds: int) -> None:
    session = AsrSession(rows())
    second = quiet(1.0)
    for s in range(seconds):
        assert session.push(second, s * SECOND) == []
    assert session.stream is None
    assert session._roll.shape[1] <= 60  # pyright: ignore[reportPrivateUsage]
    events = play(session, np.concatenate([loud(1.5), quiet(1.0)]), seconds * SECOND)
    assert kinds(events, "endpoint")[0].begin >= (seconds - 1) * SECOND


def test_a_short_hole_keeps_the_turn_and_its_times_a_long_one_ends_it() -> None:
    session = AsrSession(rows())
    play(session, loud(1.0))
    assert session.stream is not None
    assert not kinds(session.push(loud(0.5), 1200 * MS), "endpoint")
    events = session.push(loud(0.5), 9 * SECOND)
    assert len(kinds(events, "endpoint")) == 1
    assert kinds(events, "endpoint")[0].end <= 1700 * MS
    events = play(session, np.concatenate([loud(1.0), quiet(1.0)]), 9500 * MS)
    assert kinds(events, "endpoint")[0].begin >= 8500 * MS


@pytest.mark.parametrize(
    ("pcm", "words"),
    [
        (np.full(320, np.nan, np.float32), "NaN"),
        (np.full(320, np.inf, np.float32), "NaN or infinity"),
        (np.zeros((320, 2), np.float32), r"shape \(320, 2\)"),
        (np.zeros(320, np.int16), "int16"),
    ],
)
def test_bad_samples_are_refused_in_words_and_change_nothing(pcm: Pcm, words: str) -> None:
    session = AsrSession(rows())
    with pytest.raises(ValueError, match=words):
        session.push(pcm, 0)
    assert play(session, np.concatenate([loud(1.0), quiet(1.0)]))


def test_clipped_and_too_loud_samples_are_taken() -> None:
    session = AsrSession(rows())
    assert kinds(play(session, np.concatenate([loud(1.5) * 50, quiet(1.0)])), "endpoint")


# ---------------------------------------------------------------- the stage


def stage(path: Path, **options: object) -> CausalAsr:
    model = path / "asr.safetensors"
    whisper_loader.save(Checkpoint(DIMS, weights().state_dict(), PLAN, WORDS), model)
    out = CausalAsr(CausalAsr.Options.model_validate({"model": str(model)} | options))
    out.ctx = FakeContext()
    return out


@pytest.mark.parametrize(("rate", "channels"), [(8_000, 1), (16_000, 1), (44_100, 2), (48_000, 1)])
def test_the_stage_takes_any_rate_and_channel_count(tmp_path: Path, rate: int, channels: int) -> None:
    asr, out = stage(tmp_path), Collected()
    mono = np.concatenate([loud(1.5), quiet(1.2)])
    place = np.arange(int(len(mono) * rate / 16_000)) * 16_000 / rate
    pcm = (np.interp(place, np.arange(len(mono)), mono).clip(-1, 1) * 32767).astype(np.int16)

    async def run() -> None:
        await asr.setup()
        for frame in audio_frames(np.repeat(pcm[:, None], channels, 1), rate):
            await feed(asr, "audio", frame, out)
        await asr.finish(out)

    asyncio.run(run())
    assert len(out.of("turn")) == 1
    assert out.of("turn")[0].text == " ".join(f.text for f in out.of("commit"))
    assert all(f.end for f in out.of("commit"))  # files and overlays put no pieces together
    assert out.of("turn")[0].until <= 2.7 * SECOND


def test_a_detector_takes_over_from_the_loudness_gate(tmp_path: Path) -> None:
    asr, out = stage(tmp_path), Collected()
    pcm = (loud(3.0).clip(-1, 1) * 32767).astype(np.int16)

    async def run() -> None:
        await asr.setup()
        frames = audio_frames(pcm)
        await feed(asr, "speech", EventFrame(pts=0, name="speech_start"), out)
        for frame in frames[:75]:
            await feed(asr, "audio", frame, out)
        await feed(asr, "speech", EventFrame(pts=0, name="speech_end"), out)
        assert len(out.of("turn")) == 1
        for frame in frames[75:]:  # loud, but no voice
            await feed(asr, "audio", frame, out)
        await asr.finish(out)

    asyncio.run(run())
    assert len(out.of("turn")) == 1


def test_a_missing_model_and_a_wrong_chunk_are_told_with_the_node(tmp_path: Path) -> None:
    for options, words in (
        ({"model": "/nowhere/x.pt"}, "node 'node': '/nowhere/x.pt' is neither"),
        ({"chunk_ms": 50}, "50 ms is not a multiple of 20 ms"),
    ):
        with pytest.raises(StageError, match=words):
            asyncio.run(stage(tmp_path, **options).setup())
