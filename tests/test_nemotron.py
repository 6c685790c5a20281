"""A transducer streamed is the transducer: features, states and tokens equal those of the whole. Untrained weights."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import FakeContext
from penstock.models import nemotron_stream
from penstock.models.nemo_mel import NemoMel
from penstock.pipeline.stage import StageError
from penstock.stages.asr_nemotron import NemotronAsr
from streamed import beside_strangers, same_words_over_any_chunking, speech, turn

pytest.importorskip("transformers", reason="needs the extra hub")
torch.set_num_threads(1)
BLANK = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the true format, with random weights."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import NemotronAsrStreamingConfig, NemotronAsrStreamingForRNNT

    path = tmp_path_factory.mktemp("nemotron")
    torch.manual_seed(3)
    config = NemotronAsrStreamingConfig(
        vocab_size=BLANK + 1, blank_token_id=BLANK, decoder_hidden_size=24, num_decoder_layers=1, max_symbols_per_step=3,
        encoder_config={
            "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
            "subsampling_conv_channels": 8, "sliding_window": 15, "initializer_range": 0.3,
        },
    )  # fmt: skip
    model = NemotronAsrStreamingForRNNT(config)
    model.joint.head.bias.data[BLANK] = 0.4
    model.save_pretrained(path)
    pieces = [
        ("<unk>", 0.0),
        *((f"{'▁' if i % 2 else ''}p{i}", 0.0) for i in range(1, BLANK)),
        ("<blank>", 0.0),
    ]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "processor_config.json").write_text(json.dumps({"supported_num_lookahead_tokens": [6, 1, 0]}))
    return path


def test_features_are_those_of_transformers() -> None:
    from transformers import NemotronAsrStreamingFeatureExtractor

    pcm = speech(1.37)
    theirs = NemotronAsrStreamingFeatureExtractor(80)(pcm, sampling_rate=16_000, return_tensors="pt")
    valid = int(theirs.attention_mask.sum())
    ours = NemoMel(80).forward(torch.from_numpy(pcm))
    assert ours.shape == (80, valid)
    assert (ours.T - theirs.input_features[0, :valid]).abs().max() <= 1e-3


@pytest.mark.parametrize("sizes", [[160], [1, 399, 7, 5000], [80, 641]])
def test_features_over_any_chunking_equal_the_whole(sizes: list[int]) -> None:
    pcm, mel, at, i = torch.from_numpy(speech(0.7)), NemoMel(80), 0, 0
    state, parts = mel.init_state(), list[torch.Tensor]()
    while at < len(pcm):
        parts.append(mel.step(pcm[at : at + sizes[i % len(sizes)]], state))
        at, i = at + sizes[i % len(sizes)], i + 1
    parts.append(mel.step(torch.zeros(0), state, flush=True))
    got, whole = torch.cat(parts, 1), mel.forward(pcm)
    assert got.shape == whole.shape
    assert (got - whole).abs().max() <= 2e-4


@torch.no_grad()
@pytest.mark.parametrize("lookahead_ms", [80, 160, 560])
def test_blocks_give_the_states_and_tokens_of_the_whole(
    folder: Path, lookahead_ms: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asr = nemotron_stream.load(str(folder), lookahead_ms=lookahead_ms)
    ahead, blocks = lookahead_ms // 80 - 1, 30 if lookahead_ms < 500 else 6
    frames = 1 + 8 * ahead + blocks * 8 * (ahead + 1)
    mel = torch.randn(80, frames, generator=torch.Generator().manual_seed(1))
    stream, tokens, states = asr.start(), list[int](), list[torch.Tensor]()
    encode = asr.encoder.steps

    def recorded(*given: Any) -> Any:
        out = encode(*given)
        states.append(out[0][0][None])
        return out

    monkeypatch.setattr(asr.encoder, "steps", recorded)
    for at in range(0, frames, 37):
        asr.push(stream, mel[:, at : at + 37])
        while asr.ready(stream):
            heard = asr.forward([stream])[0]
            tokens += [t for t, _ in heard.tokens]
            asr.commit(stream, heard)
    whole = asr.model.get_audio_features(
        input_features=mel.T[None], num_lookahead_tokens=ahead, output_attention_mask=False
    )
    assert (torch.cat(states, 1) - whole.pooler_output).abs().max() <= 1e-4
    said = (
        asr.model.generate(
            input_features=mel.T[None],
            num_lookahead_tokens=ahead,
            decoder_start_token_id=BLANK,
            max_new_tokens=2000,
        )
        .sequences[0]
        .tolist()
    )
    assert tokens == [t for t in said if t not in (BLANK, 0)] or tokens == [t for t in said if t != BLANK]
    assert len(tokens) > 5


@torch.no_grad()
def test_strangers_of_any_age_and_dropped_forwards_change_nothing(folder: Path) -> None:
    asr = nemotron_stream.load(str(folder), lookahead_ms=160)

    def feed(stream: Any, i: int) -> None:
        asr.push(stream, torch.randn(80, 31, generator=torch.Generator().manual_seed(i)))

    alone, among, one, other = beside_strangers(asr, feed, 20, [0, 3, 11])  # 20 rounds: past the left window
    assert among == alone
    assert len(alone) > 5
    assert one.encoder.held == other.encoder.held == 14
    for a, b in zip(one.encoder.keys, other.encoder.keys, strict=True):
        assert (a - b).abs().max() <= 1e-4
    assert one.predictor is not None
    assert (one.predictor[0] - other.predictor[0]).abs().max() <= 1e-4


def test_a_session_gives_the_same_words_over_any_chunking_and_none_is_taken_back(folder: Path) -> None:
    pcm = turn(2.0)
    found = same_words_over_any_chunking(nemotron_stream.load(str(folder), lookahead_ms=160), pcm)
    begin, end = found[0].begin, found[-1].end
    assert 0 <= begin < end <= len(pcm) * 1_000_000_000 // 16_000


def test_missing_weights_are_refused_by_name(folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    state = load_file(bad / "model.safetensors")
    del state["encoder.layers.1.conv.norm.weight"], state["joint.head.bias"]
    save_file(state, bad / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 2 weights, the first: encoder.layers.1.conv.norm.weight"):
        nemotron_stream.load(str(bad))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lookahead_ms": 100}, r"100 is none that the model knows; it knows: \[80, 160, 560\]"),
        ({"model": "/nowhere"}, "is neither a folder nor a hub id"),
        ({"model": "."}, "is missing; a folder for asr.nemotron has"),
    ],
)
def test_what_cannot_be_loaded_is_told_with_the_node(
    folder: Path, options: dict[str, Any], words: str
) -> None:
    stage = NemotronAsr(NemotronAsr.Options.model_validate({"model": str(folder)} | options))
    stage.ctx = FakeContext()
    with pytest.raises(StageError, match=f"node 'node': .*{words}"):
        asyncio.run(stage.setup())


def test_the_stage_sets_up_from_a_folder(folder: Path) -> None:
    stage = NemotronAsr(
        NemotronAsr.Options.model_validate({"model": str(folder), "lookahead_ms": 80, "device": "cpu"})
    )
    stage.ctx = FakeContext()
    asyncio.run(stage.setup())
