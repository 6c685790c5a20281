"""Checkpoints of each true format, written here, load into equal models; damaged ones are refused in words."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from penstock.models import pull, registry, whisper_loader
from penstock.models.causal_whisper import CausalWhisper
from penstock.models.lora import LoraLinear, adapt, merge
from penstock.models.tokens import WhisperTokens, WordTokens
from penstock.models.whisper_dims import BlockPlan, WhisperDims
from penstock.models.whisper_loader import Checkpoint, CheckpointError
from safetensors.torch import save_file
from torch import Tensor

DIMS = WhisperDims(80, 100, 32, 2, 2, 40, 16, 32, 2, 2)


@pytest.fixture
def model() -> CausalWhisper:
    return CausalWhisper.random(DIMS, seed=3)


def same(a: CausalWhisper, b: CausalWhisper) -> bool:
    audio, tokens = torch.randn(1, 80, 60), torch.tensor([[1, 2, 3]])
    plan = BlockPlan(5, 10)
    with torch.no_grad():
        return torch.allclose(
            a.decoder(tokens, a.encoder(audio, plan)), b.decoder(tokens, b.encoder(audio, plan)), atol=1e-5
        )


def openai_pt(model: CausalWhisper, path: Path) -> Path:
    torch.save({"dims": asdict(DIMS), "model_state_dict": model.state_dict()}, path)
    return path


def hf_folder(model: CausalWhisper, folder: Path) -> Path:
    """The names that transformers gives, written out independently of the loader's table."""
    folder.mkdir()
    out: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        side, _, rest = name.partition(".")
        if rest.startswith("blocks."):
            _, index, *parts = rest.split(".")
            layer = {
                "attn": "self_attn", "attn_ln": "self_attn_layer_norm", "cross_attn": "encoder_attn",
                "cross_attn_ln": "encoder_attn_layer_norm", "mlp_ln": "final_layer_norm",
            }.get(parts[0], parts[0])  # fmt: skip
            if parts[0] == "mlp":
                layer, parts = {"0": "fc1", "2": "fc2"}[parts[1]], parts[1:]
            elif parts[0] in ("attn", "cross_attn"):
                layer += {"query": ".q_proj", "key": ".k_proj", "value": ".v_proj", "out": ".out_proj"}[
                    parts[1]
                ]
                parts = parts[1:]
            rest = f"layers.{index}.{layer}.{parts[1]}"
        rest = {
            "positional_embedding": "embed_positions.weight", "token_embedding.weight": "embed_tokens.weight",
            "ln_post.weight": "layer_norm.weight", "ln_post.bias": "layer_norm.bias",
            "ln.weight": "layer_norm.weight", "ln.bias": "layer_norm.bias",
        }.get(rest, rest)  # fmt: skip
        out[f"model.{side}.{rest}"] = value.clone()
    out["proj_out.weight"] = out["model.decoder.embed_tokens.weight"].clone()
    save_file(out, folder / "model.safetensors")
    config = {
        "model_type": "whisper", "num_mel_bins": 80, "max_source_positions": 100, "d_model": 32,
        "encoder_attention_heads": 2, "encoder_layers": 2, "vocab_size": 40, "max_target_positions": 16,
        "decoder_attention_heads": 2, "decoder_layers": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_openai_checkpoint_is_converted_once(model: CausalWhisper, tmp_path: Path) -> None:
    path = openai_pt(model, tmp_path / "tiny.pt")
    first = whisper_loader.read(path)
    copy = tmp_path / "tiny.penstock.safetensors"
    assert first.plan is None
    assert same(whisper_loader.build(first), model)
    stamp = copy.stat().st_mtime_ns
    assert same(whisper_loader.build(whisper_loader.read(path)), model)
    assert copy.stat().st_mtime_ns == stamp
    other = CausalWhisper.random(DIMS, seed=4)
    openai_pt(other, path)  # the original has changed: its copy is not used
    assert same(whisper_loader.build(whisper_loader.read(path)), other)


def test_hugging_face_folder_loads(model: CausalWhisper, tmp_path: Path) -> None:
    folder = hf_folder(model, tmp_path / "hf")
    assert same(whisper_loader.build(whisper_loader.read(folder)), model)
    assert same(whisper_loader.build(whisper_loader.read(folder / "model.safetensors")), model)


def causal(model: CausalWhisper) -> tuple[dict[str, Any], CausalWhisper]:
    """A published causal checkpoint: base weights, adapters that do something, and the model with both."""
    trained = adapt(model, rank=4)
    for parameter in trained:
        torch.nn.init.normal_(parameter, std=0.1)
    raw = {
        "dims": asdict(DIMS),
        "cfg": {"gran": 5, "rank": 4, "extra_gran_blocks": 1},
        "state_dict": model.state_dict(),
    }
    return raw, model


def test_causal_checkpoint_is_merged_and_says_its_blocks(model: CausalWhisper, tmp_path: Path) -> None:
    raw, adapted = causal(model)
    assert isinstance(adapted.encoder.blocks[0].attn.query, LoraLinear)  # pyright: ignore
    path = tmp_path / "causal.pt"
    torch.save(raw, path)
    for _ in range(2):  # from the pickle, then from its copy
        read = whisper_loader.read(path)
        assert read.plan == BlockPlan(chunk=5, first=10)
        assert same(whisper_loader.build(read), adapted)


def test_a_pulled_causal_checkpoint_keeps_what_says_how_to_stream_it(
    model: CausalWhisper, tmp_path: Path
) -> None:
    raw, adapted = causal(model)
    torch.save(raw, tmp_path / "base_100.pt")
    parts = registry.card("causal-whisper-base-300").parts
    assert [p.place("base_300.pt") for p in parts if p.pickle] == [whisper_loader.OWN]
    pull.as_safetensors(tmp_path / "base_100.pt", tmp_path / "pulled" / whisper_loader.OWN)
    read = whisper_loader.read(tmp_path / "pulled")  # the folder, as a graph names it
    assert read.plan == BlockPlan(chunk=5, first=10)
    assert same(whisper_loader.build(read), adapted)


def test_half_an_adapter_is_refused(model: CausalWhisper) -> None:
    raw, _ = causal(model)
    name = "encoder.blocks.0.attn.query.lora_layer.lora_B"
    del raw["state_dict"][name]
    with pytest.raises(ValueError, match=r"adapter for 'encoder.blocks.0.attn.query' but not its B"):
        merge(raw["state_dict"])


def test_own_format_keeps_words_and_plan(model: CausalWhisper, tmp_path: Path) -> None:
    words = tuple(f"w{i}" for i in range(38))
    state = {k: v.half() for k, v in model.state_dict().items()}
    whisper_loader.save(Checkpoint(DIMS, state, BlockPlan(5, 10), words), tmp_path / "own.safetensors")
    read = whisper_loader.read(tmp_path / "own.safetensors")
    assert (read.dims, read.plan, read.words) == (DIMS, BlockPlan(5, 10), words)
    tokens = whisper_loader.vocabulary(read, tmp_path / "own.safetensors")
    assert tokens.decode([0, 37, tokens.eot]) == "w0 w37"


def test_truncated_and_wrong_files_are_refused_in_words(model: CausalWhisper, tmp_path: Path) -> None:
    path = openai_pt(model, tmp_path / "cut.pt")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match=r"cut.pt: truncated"):
        whisper_loader.read(path)
    path.write_bytes(bytes(range(256)) * 8)
    with pytest.raises(CheckpointError, match="no checkpoint that can be read safely") as refused:
        whisper_loader.read(path)
    assert "weights_only" not in str(refused.value)
    torch.save({"weights": 1}, tmp_path / "odd.pt")
    with pytest.raises(CheckpointError, match=r"odd.pt has weights; accepted: dims and model_state_dict"):
        whisper_loader.read(tmp_path / "odd.pt")
    folder = hf_folder(model, tmp_path / "hf")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated or not safetensors"):
        whisper_loader.read(folder)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model.safetensors is missing"):
        whisper_loader.read(folder)
    with pytest.raises(CheckpointError, match="neither a file, a folder nor a hub id"):
        whisper_loader.read(tmp_path / "nowhere.bin")


def test_a_pickle_with_code_in_it_is_refused(tmp_path: Path) -> None:
    torch.save({"dims": asdict(DIMS), "model_state_dict": Path("x")}, tmp_path / "bad.pt")
    with pytest.raises(CheckpointError, match=r"can be read safely \(weights only, no code\)"):
        whisper_loader.read(tmp_path / "bad.pt")


def test_weights_of_another_shape_and_nan_are_refused(model: CausalWhisper) -> None:
    state = dict(model.state_dict())
    name = "encoder.ln_post.bias"
    with pytest.raises(CheckpointError, match=r"1 missing \(first: \['encoder.ln_post.bias'\]\)"):
        whisper_loader.build(Checkpoint(DIMS, {k: v for k, v in state.items() if k != name}))
    with pytest.raises(CheckpointError, match=r"has shape \(3,\); its dims need \(32,\)"):
        whisper_loader.build(Checkpoint(DIMS, state | {name: torch.zeros(3)}))
    with pytest.raises(CheckpointError, match="holds NaN"):
        whisper_loader.build(Checkpoint(DIMS, state | {name: torch.full((32,), torch.nan)}))


def test_whisper_tokens_from_a_tokenizer_file(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers", reason="needs the package tokenizers")
    vocab = {t: i for i, t in enumerate(["h", "i", "\u0120", "\u0120h", "\u0120hi", "!"])}
    tok = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[("\u0120", "h"), ("\u0120h", "i")]))
    tok.decoder = tokenizers.decoders.ByteLevel()
    tok.add_special_tokens(
        ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    )
    tok.save(str(tmp_path / "tokenizer.json"))
    tokens = WhisperTokens.load(tmp_path)
    assert list(tokens.prefix) == [7, 8, 9, 10]
    assert (tokens.eot, list(tokens.banned)) == (6, [7, 8, 9, 10])
    assert tokens.decode([4, 5, 4]) == " hi! hi"
    assert [tokens.begins_word(i) for i in (4, 5, 1)] == [True, False, False]
    with pytest.raises(ValueError, match=r"no <\|xx\|>; languages it has: en"):
        WhisperTokens(tok, "xx", 51865)
    with pytest.raises(FileNotFoundError, match=r"tokenizer.json is missing"):
        WhisperTokens.load(tmp_path / "none" / "tokenizer.json")


def test_equal_words_are_refused() -> None:
    with pytest.raises(ValueError, match="2 words, 1 different"):
        WordTokens(["a", "a"])
