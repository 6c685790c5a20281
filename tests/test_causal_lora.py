"""Fine-tuning to causal: the recipe lowers the loss, goes on where it was, and its results load as published ones do."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from penstock.models import whisper_loader
from penstock.models.causal_whisper import CausalWhisper
from penstock.models.log_mel import LogMel
from penstock.models.tokens import WordTokens
from penstock.models.training import causal_lora
from penstock.models.training.aligned import Aligned
from penstock.models.training.aligned_speech import Recordings, utterance
from penstock.models.whisper_dims import WhisperDims
from penstock.models.whisper_loader import Checkpoint

WORDS = ("low", "mid", "high", "top")
TOKENS = WordTokens(WORDS)
DIMS = WhisperDims(80, 200, 48, 2, 2, 6, 24, 48, 2, 1)
torch.set_num_threads(1)


def tones(rng: np.random.Generator, count: int = 3) -> tuple[np.ndarray, list[str], list[float]]:
    """Tones in place of words: 300 ms each."""
    words = [int(w) for w in rng.integers(0, 4, count)]
    t = np.arange(4800) / 16_000
    parts = [np.sin(2 * np.pi * 400 * (w + 1) * t) * 0.3 for w in words]
    pcm = np.concatenate([*parts, np.zeros(4800)]).astype(np.float32)
    return pcm, [WORDS[w] for w in words], [0.3 * (i + 1) for i in range(count)]


class Tones:
    def draw(self, seed: Sequence[int], count: int) -> list[Aligned]:
        rng = np.random.default_rng(seed)
        return [utterance(*tones(rng), LogMel(80), TOKENS) for _ in range(count)]

    def held_out(self, count: int) -> list[tuple[str, Aligned]]:
        rng = np.random.default_rng(9)
        found = [tones(rng) for _ in range(count)]
        return [
            (" ".join(words), utterance(pcm, words, ends, LogMel(80), TOKENS)) for pcm, words, ends in found
        ]


@pytest.fixture(scope="module")
def base() -> Checkpoint:
    model = CausalWhisper.random(DIMS)
    model.decoder.token_embedding.weight.data.mul_(8)
    return Checkpoint(DIMS, model.state_dict(), words=WORDS)


def steps(run: causal_lora.Run, count: int, of: int = 16) -> list[float]:
    return [causal_lora.advance(run, Tones(), seed=3, batch=6, rate=2e-2, steps=of) for _ in range(count)]


def test_the_loss_falls_and_the_result_loads_as_a_published_checkpoint_does(
    base: Checkpoint, tmp_path: Path
) -> None:
    run = causal_lora.begin(base, TOKENS, causal_lora.plan_of(100), rank=4, seed=0)
    before = {k: v.clone() for k, v in run.model.state_dict().items() if ".lora_layer." not in k}
    values = steps(run, 16)
    assert np.mean(values[-3:]) < 0.8 * np.mean(values[:3])
    after = run.model.state_dict()
    assert all(torch.equal(v, after[k]) for k, v in before.items())  # only adapters learn
    assert not math.isnan(causal_lora.word_error(run, Tones(), 2))

    for name in ("tones_100.pt", "tones_100.safetensors"):
        causal_lora.write(run, WORDS, tmp_path / name)
    published = whisper_loader.read(tmp_path / "tones_100.pt")
    merged = whisper_loader.read(tmp_path / "tones_100.safetensors")
    assert published.plan == merged.plan == run.plan
    assert merged.words == WORDS
    assert (run.plan.chunk, run.plan.first) == (5, 30)
    mel = Tones().draw([1], 1)[0].mel[None]
    run.model.eval()
    with torch.no_grad():
        want = run.model.encoder(mel, run.plan)
        for checkpoint in (published, merged):
            assert (whisper_loader.build(checkpoint).encoder(mel, run.plan) - want).abs().max() <= 1e-4


def test_a_run_that_was_broken_off_goes_on_as_if_it_had_not_been(base: Checkpoint, tmp_path: Path) -> None:
    plan, keep = causal_lora.plan_of(300), tmp_path / "work" / "run.pt"
    whole = causal_lora.begin(base, TOKENS, plan, rank=2, seed=0)
    steps(whole, 4)
    part = causal_lora.begin(base, TOKENS, plan, rank=2, seed=0)
    steps(part, 2)
    part.save(keep)
    again = causal_lora.begin(base, TOKENS, plan, rank=2, seed=5)
    again.resume(keep)
    steps(again, 2)
    assert again.step == 4
    for name, value in whole.adapters().items():
        assert torch.allclose(value, again.adapters()[name], atol=1e-6)
    other = causal_lora.begin(base, TOKENS, plan, rank=3, seed=0)
    with pytest.raises(ValueError, match="another base, rank or chunk"):
        other.resume(keep)
    state = {name: tensor + 1 for name, tensor in base.state.items()}
    foreign = causal_lora.begin(replace(base, state=state), TOKENS, plan, rank=2, seed=0)
    with pytest.raises(ValueError, match="another base"):
        foreign.resume(keep)


def recordings(folder: Path, lines: list[object]) -> None:
    import av

    pcm, _, _ = tones(np.random.default_rng(0), 12)
    with av.open(str(folder / "a.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        frame = av.AudioFrame.from_ndarray((pcm[None] * 32767).astype(np.int16), "s16", "mono")
        frame.sample_rate = 16_000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    (folder / "aligned.jsonl").write_text("\n".join(json.dumps(line) for line in lines))


def test_a_folder_is_cut_to_the_window_between_words(tmp_path: Path) -> None:
    words = [[WORDS[i % 4], 0.3 * i, 0.3 * (i + 1)] for i in range(12)]
    recordings(tmp_path, [{"audio": "a.wav", "words": words}] * 3)
    material = Recordings(tmp_path, TOKENS, window_s=2.0)
    items = material.draw([0], 4)
    assert all(item.mel.shape[1] <= 200 for item in items)
    assert all(len(item.tokens) >= 2 and item.ends[-1] <= 2.0 for item in items)
    assert all(b - a == pytest.approx(0.3) for item in items for a, b in zip(item.ends, item.ends[1:]))  # noqa: B905
    text, item = material.held_out(1)[0]
    assert len(text.split()) == len(item.tokens)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"audio": "a.wav"}, r"line 1: needed is .*words"),
        ({"audio": "b.wav", "words": []}, "line 1: .*b.wav is missing"),
        ({"audio": "a.wav", "words": [["low", 0.5, 0.3]]}, "line 1: the words' times must rise"),
    ],
)
def test_a_folder_that_cannot_be_used_is_told_with_its_line(line: object, words: str, tmp_path: Path) -> None:
    recordings(tmp_path, [line])
    with pytest.raises(ValueError, match=words):
        Recordings(tmp_path, TOKENS, 2.0)


def test_the_command_trains_on_a_folder_and_says_what_it_cannot(
    base: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recordings(tmp_path, [{"audio": "a.wav", "words": [["low", 0.0, 0.3], ["mid", 0.3, 0.6]]}] * 2)
    whisper_loader.save(base, tmp_path / "base.safetensors")
    out = tmp_path / "out.safetensors"
    given = [
        "causal_lora",
        "--base",
        str(tmp_path / "base.safetensors"),
        "--data",
        str(tmp_path),
        "--rank",
        "2",
    ]
    given += [
        "--work",
        str(tmp_path / "work"),
        "--out",
        str(out),
        "--steps",
        "2",
        "--batch",
        "2",
        "--every",
        "1",
    ]
    monkeypatch.setattr(sys, "argv", given)
    causal_lora.main()
    assert "trained, word error" in capsys.readouterr().out
    assert whisper_loader.read(out).plan == causal_lora.plan_of(300)
    monkeypatch.setattr(sys, "argv", [*given, "--data", "/nowhere"])
    with pytest.raises(SystemExit, match=r"causal_lora: .*aligned.jsonl is missing"):
        causal_lora.main()
