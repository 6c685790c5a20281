"""The onnxruntime engine is the torch one: the same states, the same text, and no stream knows of another."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from penstock.models.causal_whisper import CausalWhisper, TextRow
from penstock.models.tokens import WordTokens
from penstock.models.whisper_dims import BlockPlan, WhisperDims
from penstock.models.whisper_ort import OrtWhisper
from penstock.models.whisper_stream import StreamWord, WhisperStream, WhisperStreamer
from torch import Tensor

pytest.importorskip("onnx", reason="the engine onnx writes its graphs with the package onnx")
torch.set_num_threads(1)
DIMS = WhisperDims(80, 300, 64, 4, 2, 32, 64, 64, 4, 3)
PLAN = BlockPlan(chunk=15, first=30)
WORDS = WordTokens([f"w{i}" for i in range(30)])
Engine = CausalWhisper | OrtWhisper


def weights() -> CausalWhisper:
    model = CausalWhisper.random(DIMS)
    model.decoder.token_embedding.weight.data.mul_(20)  # else all logits are alike
    return model


def mel(frames: int, seed: int = 0) -> Tensor:
    return torch.randn(80, 2 * frames, generator=torch.Generator().manual_seed(seed))


def streamer(engine: Engine, plan: BlockPlan = PLAN) -> WhisperStreamer:
    return WhisperStreamer(engine, WORDS, plan, tokens_per_s=0.1)


def run(asr: WhisperStreamer, stream: WhisperStream) -> list[StreamWord]:
    words: list[StreamWord] = []
    while asr.ready(stream):
        words += asr.commit(stream, asr.forward([stream])[0])
    return words


@torch.no_grad()
@pytest.mark.parametrize("plan", [PLAN, BlockPlan(5, 10), BlockPlan(15, 30, lookahead=1, left=45)])
def test_both_engines_give_the_same_states_logits_and_attention(plan: BlockPlan) -> None:
    model = weights()
    engines: list[Engine] = [model, OrtWhisper(model)]
    states = [e.encoder.start(plan) for e in engines]
    caches = [e.decoder.start(300) for e in engines]
    for block in range(12):  # 128 positions are allocated at first: they grow
        n = plan.block(states[0].at)
        out: list[Tensor] = []
        for engine, state, cache in zip(engines, states, caches, strict=True):
            state.queue.push(mel(n + 1, block))
            out.append(engine.encoder.step([state], n, plan))
            engine.decoder.hear(out[-1], [cache])
            engine.encoder.commit(state, n, plan)
            for kv in cache:
                kv.advance(n)
        assert (out[0] - out[1]).abs().max() <= 1e-4
    hidden: list[Tensor] = []
    attention: list[Tensor] = []
    for engine, cache in zip(engines, caches, strict=True):
        row = TextRow([3, 1, 4, 1], 0, engine.decoder.start(20), cache, cache[0].fill, 7)
        parts = [engine.decoder.step([row], align=True)]
        row.tokens, row.start = [5], 4
        parts.append(engine.decoder.step([row]))
        hidden.append(engine.decoder.logits(torch.cat(parts)))
        attention.append(torch.stack(row.attention))
    assert (hidden[0] - hidden[1]).abs().max() <= 1e-4
    assert (attention[0] - attention[1]).abs().max() <= 1e-5


@pytest.mark.parametrize("plan", [PLAN, dataclasses.replace(PLAN, left=60)], ids=["sliding", "bounded"])
def test_both_engines_write_the_same_words_and_a_stream_can_change_engines(plan: BlockPlan) -> None:
    model = weights()
    torch_asr, ort_asr = streamer(model, plan), streamer(OrtWhisper(model), plan)
    found: list[list[StreamWord]] = []
    for first, then in ((torch_asr, torch_asr), (ort_asr, ort_asr), (torch_asr, ort_asr)):
        stream = first.start()
        stream.encoder.queue.push(mel(180, 1))
        words = run(first, stream)
        stream.encoder.queue.push(mel(180, 2))
        found.append(words + run(then, stream))
    assert len(found[0]) > 5
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("int8", ["head", "all"])
def test_an_int8_stream_does_not_depend_on_the_strangers_it_shares_a_forward_with(int8: str) -> None:
    asr = streamer(OrtWhisper(weights(), int8))
    alone, shared, *strangers = (
        asr.start() for _ in range(7)
    )  # a full run of four, and one with empty lanes
    for seed, stream in enumerate([alone, shared, *strangers]):
        stream.encoder.queue.push(mel(180, max(seed, 1)) * (9.0 if seed > 1 else 1.0))
    words = run(asr, alone)
    found: list[StreamWord] = []
    while asr.ready(shared):
        rows = [*strangers, shared]
        for stream, heard in zip(rows, asr.forward(rows), strict=True):
            said = asr.commit(stream, heard)
            found += said if stream is shared else []
    assert found == words
    assert torch.equal(shared.encoder.layers[1].k, alone.encoder.layers[1].k)


@torch.no_grad()
def test_int8_is_close_to_fp32() -> None:
    model = weights()
    exact, quantised = OrtWhisper(model), OrtWhisper(model, "all")
    out: list[Tensor] = []
    for engine in (exact, quantised):
        state = engine.encoder.start(PLAN)
        state.queue.push(mel(30))
        out.append(engine.encoder.step([state], 30, PLAN))
    assert 0 < (out[0] - out[1]).norm() <= 0.05 * out[0].norm()


def test_an_unknown_kind_of_int8_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="accepted: none, head, all"):
        OrtWhisper(weights(), "body")
