"""Moonshine streamed is Moonshine: frames and tokens equal those of transformers over the whole, with its mask.
Untrained weights."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import FakeContext
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from penstock.models import moonshine_stream
from penstock.models.causal_whisper import TextRow
from penstock.models.framed_pcm import FramedPcm, samples
from penstock.models.local_optimality import Hypothesis
from penstock.models.log_mel import LogMel
from penstock.models.moonshine_stream import MoonshineStreamer
from penstock.models.stream_words import StreamWord
from penstock.pipeline.stage import StageError
from penstock.stages.asr_moonshine import MoonshineAsr
from streamed import beside_strangers, same_words_over_any_chunking, speech, turn
from torch import Tensor

pytest.importorskip("transformers", reason="needs the extra hub")
torch.set_num_threads(1)
VOCABULARY = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the true format, with random weights; the windows of the released ones."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import MoonshineStreamingConfig, MoonshineStreamingForConditionalGeneration

    path = tmp_path_factory.mktemp("moonshine")
    torch.manual_seed(5)
    options: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "decoder_start_token_id": 1,
        "max_position_embeddings": 400, "pad_head_dim_to_multiple_of": 8,
        "encoder_config": {
            "hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4,
        },
    }  # fmt: skip
    config = MoonshineStreamingConfig(**options)
    model = MoonshineStreamingForConditionalGeneration(config)
    for name, weight in model.named_parameters():
        if "norm" not in name and "log_k" not in name:
            weight.data.normal_(0, 0.25)
    model.save_pretrained(path)
    special = [("<unk>", 0.0), ("<s>", 0.0), ("</s>", 0.0)]
    pieces = [*special, *((f"{'▁' if i % 2 else ''}p{i}", 0.0) for i in range(3, VOCABULARY))]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([name for name, _ in special])
    tokenizer.save(str(path / "tokenizer.json"))
    return path


@pytest.fixture(scope="module")
def asr(folder: Path) -> MoonshineStreamer:
    return moonshine_stream.load(str(folder), chunk_ms=160)


def whole(asr: MoonshineStreamer, pcm: Tensor) -> Tensor:
    """What transformers gives for all of it at once."""
    with torch.no_grad():
        mask = torch.ones(1, len(pcm), dtype=torch.long)
        return asr.model.model.encoder(pcm[None], attention_mask=mask).last_hidden_state[0]


# ---------------------------------------------------------------- the front and the encoder


@pytest.mark.parametrize("sizes", [[160], [1, 399, 7, 5000], [320]])
def test_frames_hold_the_waveform_and_the_loudness_over_any_chunking(sizes: list[int]) -> None:
    pcm, front, at, i = torch.from_numpy(speech(0.7)), FramedPcm(), 0, 0
    state, parts = front.init_state(), list[Tensor]()
    while at < len(pcm):
        parts.append(front.step(pcm[at : at + sizes[i % len(sizes)]], state))
        at, i = at + sizes[i % len(sizes)], i + 1
    mel = torch.cat(parts, 1)
    n = mel.shape[1]
    assert n >= len(pcm) // 160 - 2
    assert torch.equal(samples(mel), pcm[: n * 160])
    levels = LogMel().level(LogMel().forward(pcm))[:n]
    assert (front.level(mel) - levels).abs().max() <= 1e-4


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(1, 130))
def test_steps_over_any_chunking_give_the_frames_of_the_whole(
    asr: MoonshineStreamer, sizes: list[int], frames: int
) -> None:
    pcm = torch.from_numpy(speech(frames / 50))
    state, parts, at, i = asr.encoder.start(), list[Tensor](), 0, 0
    while at < frames:
        n = min(sizes[i % len(sizes)], frames - at)
        got, state = asr.encoder.step(state, pcm[at * 320 : (at + n) * 320], last=at + n == frames)
        parts.append(got)
        at, i = at + n, i + 1
        assert sum(map(len, parts)) == (frames if at == frames else max(0, at - asr.encoder.ahead))
    assert (torch.cat(parts) - whole(asr, pcm)).abs().max() <= 1e-4


def test_without_the_mask_the_network_would_hear_the_future(asr: MoonshineStreamer) -> None:
    """Why the windows are applied here: transformers' encoder applies none where it is given no mask."""
    pcm = torch.from_numpy(speech(2))
    with torch.no_grad():
        careless = asr.model.model.encoder(pcm[None]).last_hidden_state[0]
    assert (careless - whole(asr, pcm)).abs().max() > 1e-2
    assert asr.encoder.ahead * 20 == 240


def test_a_steps_work_and_memory_stay_the_same_however_long_the_stream(asr: MoonshineStreamer) -> None:
    state, held, given_frames = asr.encoder.start(), list[list[int]](), list[int]()
    for _ in range(30):
        got, state = asr.encoder.step(state, torch.randn(8 * 320))
        held.append([s.keys.shape[1] + len(s.waiting) for s in state.layers])
        given_frames.append(len(got))
    assert given_frames == [0, 4, *[8] * 28]
    assert held[10:] == [held[10]] * 20
    assert max(held[-1]) <= 15 + 2 * 3


# ---------------------------------------------------------------- text


def run(asr: MoonshineStreamer, pcm: NDArray[np.float32], step: int) -> tuple[list[StreamWord], Any]:
    """A whole turn → its words and the stream at its end."""
    mel = torch.cat([torch.from_numpy(pcm).reshape(-1, 160).T, torch.zeros(1, len(pcm) // 160)])
    stream, words = asr.start(), list[StreamWord]()
    for at in range(0, mel.shape[1], step):
        asr.push(stream, mel[:, at : at + step])
        while asr.ready(stream):
            words += asr.commit(stream, asr.forward([stream])[0])
    assert asr.fill(stream)
    return words + list(asr.commit(stream, asr.forward([stream])[0], everything=True)), stream


PAD = pytest.mark.parametrize("pad", [False, True], ids=["apart", "padded"])  # padded: as on a GPU


@PAD
def test_logits_over_the_streamed_audio_are_those_of_the_whole(
    asr: MoonshineStreamer, monkeypatch: pytest.MonkeyPatch, pad: bool
) -> None:
    monkeypatch.setattr(asr.decoder, "pad", pad)
    pcm = speech(1.9)
    _, stream = run(asr, pcm, 7)
    assert (stream.audio - whole(asr, torch.from_numpy(pcm))).abs().max() <= 1e-4
    tokens = [asr.model.config.decoder_start_token_id, *stream.text.tokens]
    assert len(tokens) > 4
    mask = torch.ones(1, len(pcm), dtype=torch.long)
    with torch.no_grad():
        theirs = asr.model(
            input_values=torch.from_numpy(pcm)[None], attention_mask=mask, decoder_input_ids=torch.tensor([tokens])
        ).logits[0]  # fmt: skip
        row = TextRow(tokens, 0, asr.writer.past(), stream.cross, len(stream.audio))
        hidden = asr.decoder.step([row], align=True)
    assert (asr.decoder.logits(hidden) - theirs).abs().max() <= 1e-4
    weights = torch.cat(row.attention)
    assert weights.shape == (2, len(tokens), len(stream.audio))


def test_one_block_writes_what_transformers_generates(asr: MoonshineStreamer) -> None:
    """All in one block there is nothing to review: the greedy text of the whole."""
    pcm = torch.from_numpy(speech(0.1))
    stream = asr.start()
    asr.push(stream, torch.cat([pcm.reshape(-1, 160).T, torch.zeros(1, 10)]))
    asr.fill(stream)
    text = asr.forward([stream])[0].text
    mask = torch.ones(1, len(pcm), dtype=torch.long)
    theirs = asr.model.generate(
        input_values=pcm[None], attention_mask=mask, max_new_tokens=len(text.tokens), do_sample=False
    )[0].tolist()
    assert len(text.tokens) > 3
    assert [1, *text.tokens] == theirs[: 1 + len(text.tokens)]


@PAD
def test_strangers_of_any_age_and_dropped_forwards_change_nothing(
    asr: MoonshineStreamer, monkeypatch: pytest.MonkeyPatch, pad: bool
) -> None:
    monkeypatch.setattr(asr.decoder, "pad", pad)

    def feed(stream: Any, i: int) -> None:
        mel = torch.from_numpy(speech(0.19, i)).reshape(-1, 160).T
        asr.push(stream, torch.cat([mel, torch.zeros(1, mel.shape[1])]))

    alone, among, one, other = beside_strangers(asr, feed, 12, [0, 2, 5, 5])
    assert among == alone
    assert len(alone) >= 2
    assert len(one.text.tokens) > 6
    assert one.text.tokens == other.text.tokens
    assert (one.audio - other.audio).abs().max() <= 1e-4
    for a, b in zip(one.cross, other.cross, strict=True):
        assert (a.k[:, : a.fill] - b.k[:, : b.fill]).abs().max() <= 1e-4


def test_a_full_window_slides_without_a_reset_and_words_stay_in_order(folder: Path) -> None:
    model = moonshine_stream.load(str(folder), chunk_ms=160)
    small = MoonshineStreamer(model.model, model.tokens, chunk_ms=160, window=60)
    words, stream = run(small, speech(8.0), 16)
    assert stream.origin > 200
    assert len(stream.audio) <= 60
    assert stream.origin + len(stream.audio) == 400
    assert len(words) > 10
    assert all(a.end <= b.begin for a, b in zip(words, words[1:]))  # noqa: B905, RUF007
    assert words[-1].end <= 400 + len(words)
    assert run(small, speech(8.0), 5)[0] == words


def test_committed_tokens_never_change(asr: MoonshineStreamer) -> None:
    pcm = speech(3.0)
    stream, before = asr.start(), Hypothesis()
    for at in range(0, len(pcm), 2560):
        mel = torch.from_numpy(pcm[at : at + 2560]).reshape(-1, 160).T
        asr.push(stream, torch.cat([mel, torch.zeros(1, mel.shape[1])]))
        while asr.ready(stream):
            asr.commit(stream, asr.forward([stream])[0])
        now = stream.text
        assert now.committed >= before.committed
        assert now.tokens[: before.committed] == before.tokens[: before.committed]
        before = now.fork()
    assert before.committed > 5


# ---------------------------------------------------------------- sessions and the stage


def test_a_session_gives_the_same_words_over_any_chunking_and_none_is_taken_back(
    asr: MoonshineStreamer,
) -> None:
    same_words_over_any_chunking(asr, turn(2.0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "/nowhere"}, "'/nowhere' is neither a folder nor a hub id .* nor one of: moonshine-"),
        ({"model": "moonshine-streaming-tiny"}, "is not here: penstock models pull moonshine-streaming-tiny"),
        ({"model": "."}, "is missing; a folder for asr.moonshine has"),
        ({"chunk_ms": 330}, "chunk_ms 330 is not possible; accepted: 80 to 1000, a multiple of 20"),
    ],
)
def test_what_cannot_be_loaded_is_told_with_the_node(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], words: str
) -> None:
    monkeypatch.setenv("PENSTOCK_MODELS", str(tmp_path))
    stage = MoonshineAsr(MoonshineAsr.Options.model_validate({"model": str(folder)} | options))
    stage.ctx = FakeContext()
    with pytest.raises(StageError, match=f"node 'node': .*{words}"):
        asyncio.run(stage.setup())


def spoil(path: Path, how: str) -> None:
    config = json.loads((path / "config.json").read_text())
    if how == "kind":
        config["model_type"] = "whisper"
    elif how == "windows":
        config["encoder_config"]["sliding_windows"] = [[0, 4]] * 6
    elif how == "frames":
        config["encoder_config"]["frame_ms"] = 10.0
    elif how == "vocabulary":
        config["vocab_size"] = 20
    elif how == "cut":
        weights = (path / "model.safetensors").read_bytes()
        (path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    elif how == "lacks":
        from safetensors.torch import load_file, save_file

        state = load_file(path / "model.safetensors")
        del state["model.encoder.layers.3.mlp.fc1.weight"]
        save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    elif how == "tokenizer":
        (path / "tokenizer.json").write_text("{}")
    (path / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("kind", "model_type is 'whisper'; accepted: 'moonshine_streaming'"),
        ("windows", "sliding_windows .* do not fit 6 layers"),
        ("frames", r"accepted: 5 ms at 16000 Hz|cannot be read"),
        ("vocabulary", "cannot be read|the tokenizer has 40 tokens, the model 20"),
        ("cut", "cannot be read"),
        ("lacks", "lacks 1 weights, the first: model.encoder.layers.3.mlp.fc1.weight"),
        ("tokenizer", "cannot be read"),
    ],
)
def test_a_bad_checkpoint_is_told_in_words(folder: Path, tmp_path: Path, how: str, words: str) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    spoil(bad, how)
    with pytest.raises(ValueError, match=words) as told:
        moonshine_stream.load(str(bad))
    assert "\n" not in str(told.value)


def test_the_stage_sets_up_from_a_folder(folder: Path) -> None:
    stage = MoonshineAsr(
        MoonshineAsr.Options.model_validate({"model": str(folder), "chunk_ms": 80, "device": "cpu"})
    )
    stage.ctx = FakeContext()
    asyncio.run(stage.setup())
