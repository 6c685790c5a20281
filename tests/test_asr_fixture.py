"""Closed loop: a synthetic voice speaks commands, the fixture writes them. And the recipe that makes it learns."""

from __future__ import annotations

import jiwer
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from penstock.models import whisper_loader
from penstock.models.asr_session import AsrEvent, AsrRows, AsrSession
from penstock.models.log_mel import LogMel
from penstock.models.lora import adapt, merge
from penstock.models.training import asr_fixture, flite_words
from penstock.models.training.aligned import Aligned, attention_loss, collate, loss
from penstock.models.training.command_speech import WORDS, draw, phrase, spoken_bank
from penstock.models.whisper_dims import BlockPlan
from penstock.models.whisper_stream import WhisperStreamer

torch.set_num_threads(1)
needs_voice = pytest.mark.skipif(not flite_words.available(), reason="needs the package libflite1")
needs_fixture = pytest.mark.skipif(
    not whisper_loader.FIXTURE.is_file(), reason="needs models/data/asr_fixture.safetensors"
)
SECOND = 1_000_000_000
WORST = 0.15  # of a score of phrases that were never trained on; .03 to .04 of many (benchmarks/LOG.md)


@pytest.fixture(scope="module")
def rows() -> AsrRows:
    checkpoint = whisper_loader.read(whisper_loader.FIXTURE)
    assert checkpoint.plan is not None
    words = whisper_loader.vocabulary(checkpoint, whisper_loader.FIXTURE)
    return AsrRows(WhisperStreamer(whisper_loader.build(checkpoint), words, checkpoint.plan))


def spoken(text: str) -> tuple[NDArray[np.float32], flite_words.Spoken]:
    """300 ms of silence, the phrase, 1.2 s of silence; faint noise."""
    voice = flite_words.speak(text)
    pcm = np.concatenate([np.zeros(4800, np.float32), voice.pcm, np.zeros(19_200, np.float32)])
    noise = np.random.default_rng(1).normal(size=len(pcm)) * 1e-4
    return pcm + noise.astype(np.float32), voice


def listen(rows: AsrRows, pcm: NDArray[np.float32]) -> list[AsrEvent]:
    session, events = AsrSession(rows), list[AsrEvent]()
    for at in range(0, len(pcm), 320):
        events += session.push(pcm[at : at + 320], at * SECOND // 16_000)
    return events + session.finish()


@needs_voice
@needs_fixture
def test_spoken_commands_come_back_as_committed_words(rows: AsrRows) -> None:
    rng = np.random.default_rng(41)
    said, heard = list[str](), list[str]()
    for _ in range(20):
        said.append(" ".join(phrase(rng, 4)))
        events = listen(rows, spoken(said[-1])[0])
        heard.append(" ".join(e.text for e in events if e.kind == "commit"))
        assert [e.text for e in events if e.kind == "endpoint"] == [heard[-1]]
    assert jiwer.wer(said, heard) <= WORST


@needs_voice
@needs_fixture
def test_words_are_not_lost_where_the_window_slides(rows: AsrRows) -> None:
    """One turn of five windows, with pauses: the seams used to lose the words that were not final yet, one in four."""
    rng, parts, said = np.random.default_rng(6), [np.zeros(4800, np.float32)], list[str]()
    for _ in range(12):
        some = phrase(rng, 5)
        said += some
        parts += [flite_words.speak(" ".join(some)).pcm, np.zeros(3200, np.float32)]
    pcm = np.concatenate([*parts, np.zeros(19_200, np.float32)])
    pcm += rng.normal(size=len(pcm)).astype(np.float32) * np.float32(1e-4)
    events = listen(rows, pcm)
    commits = [e for e in events if e.kind == "commit"]
    found = jiwer.process_words(" ".join(said), " ".join(e.text for e in commits))
    assert len(said) > 25
    assert found.deletions <= 0.1 * len(said)
    assert [e.text for e in events if e.kind == "endpoint"] == [" ".join(e.text for e in commits)]


@needs_voice
@needs_fixture
def test_word_times_are_near_the_voices_own(rows: AsrRows) -> None:
    errors: list[float] = []
    for text in ("make it neon please", "switch to watercolor", "what do you see", "stop"):
        pcm, voice = spoken(text)
        commits = [e for e in listen(rows, pcm) if e.kind == "commit"]
        if " ".join(e.text for e in commits) == text:
            errors.append(abs(commits[-1].end / SECOND - voice.ends[-1] - 0.3))
    assert len(errors) >= 3
    assert np.median(errors) <= 0.3


@needs_voice
def test_the_voice_says_when_each_word_ends() -> None:
    voice = flite_words.speak("make it neon please")
    assert voice.words == ("make", "it", "neon", "please")
    assert all(a < b for a, b in zip(voice.starts, voice.ends, strict=True))
    assert voice.starts[0] > 0
    assert voice.ends[-1] <= len(voice.pcm) / flite_words.RATE_HZ
    loud = np.abs(voice.pcm[int(voice.starts[0] * 16_000) : int(voice.ends[-1] * 16_000)]).mean()
    assert loud > 5 * np.abs(voice.pcm[: int(voice.starts[0] * 8_000)]).mean()


@needs_voice
def test_utterances_cut_from_a_bank_are_the_same_for_a_seed_and_their_times_are_inside() -> None:
    bank = spoken_bank(5, 8)
    first, second = draw(bank, [1, 2], 20), draw(bank, [1, 2], 20)
    assert any(len(s.words) > 3 for s in first)
    for a, b in zip(first, second, strict=True):
        assert (a.words, a.ends) == (b.words, b.ends)
        assert np.array_equal(a.pcm, b.pcm)
        assert list(a.ends) == sorted(a.ends)
        assert all(0 < end < len(a.pcm) / 16_000 for end in a.ends)
        assert set(a.words) <= set(WORDS)
        assert len(a.phones) == len(a.pcm) // 320
    quiet, loud = list[float](), list[float]()
    for sample in first:  # phones lie where the sound is
        level = np.abs(sample.pcm[: len(sample.phones) * 320]).reshape(-1, 320).mean(1)
        quiet += [float(x) for x in level[sample.phones == 0]]
        loud += [float(x) for x in level[sample.phones > 0]]
    assert np.median(loud) > 5 * np.median(quiet)


def test_attention_on_the_words_frames_costs_less_than_attention_elsewhere() -> None:
    spans = torch.tensor([[[2, 5], [0, 0]]])
    there, elsewhere = torch.zeros(1, 2, 2, 10), torch.zeros(1, 2, 2, 10)
    there[..., 3] = 1.0
    elsewhere[..., 8] = 1.0
    assert attention_loss(there, spans) < 1e-3 < 5 < attention_loss(elsewhere, spans)


def utterances(count: int) -> list[Aligned]:
    """Tones in place of words: no voice needed. Word w is 300 ms of its own pitch."""
    rng, mel, out = np.random.default_rng(0), LogMel(80), list[Aligned]()
    t = np.arange(4800) / 16_000
    for _ in range(count):
        tokens = [int(w) for w in rng.integers(0, 4, 3)]
        tones = [np.sin(2 * np.pi * 400 * (w + 1) * t) * 0.3 for w in tokens]
        pcm = torch.from_numpy(np.concatenate([*tones, np.zeros(4800)]).astype(np.float32))
        out.append(Aligned(mel.forward(pcm), tuple(tokens), (0.3, 0.6, 0.9)))
    return out


def test_targets_are_the_words_that_have_ended_before_the_cut() -> None:
    plan = BlockPlan(chunk=15, first=15)
    batch = collate(utterances(4), plan, [asr_fixture.SOT], asr_fixture.EOT, np.random.default_rng(0), cuts=6)
    for cut, target in zip(batch.cuts.tolist(), batch.targets, strict=True):
        words = int((target >= 0).sum()) - 1
        assert words == sum(end + 0.04 <= cut * 0.02 for end in (0.3, 0.6, 0.9))
        assert target[words] == asr_fixture.EOT


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "adapters"])
def test_training_lowers_the_loss_and_adapters_merge_into_the_same_model(lora: bool) -> None:
    model, hints = asr_fixture.initial(0)
    plan, items = BlockPlan(chunk=15, first=15), utterances(8)
    trained = adapt(model, 4) if lora else [*model.parameters(), *hints.parameters()]
    optimiser = torch.optim.AdamW(trained, lr=1e-2 if lora else 2e-3)
    frozen = model.decoder.token_embedding.weight.detach().clone()
    batch = collate(items, plan, [asr_fixture.SOT], asr_fixture.EOT, np.random.default_rng(0))
    values: list[float] = []
    for _ in range(12):
        value = loss(model, batch, plan, None if lora else hints, guide=0.3)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        values.append(value.item())
    assert values[-1] < 0.85 * values[0]
    if lora:
        assert torch.equal(frozen, model.decoder.token_embedding.weight)
        merged = asr_fixture.CausalWhisper(asr_fixture.DIMS)
        merged.load_state_dict(merge(model.state_dict()))
        with torch.no_grad():
            assert abs(loss(merged, batch, plan).item() - loss(model, batch, plan).item()) < 1e-4
