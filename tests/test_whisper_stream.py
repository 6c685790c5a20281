"""Rows of a streaming recogniser: rules of commitment, sharing, restoring and sliding, on untrained weights."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.models import stream_snapshot
from penstock.models.causal_whisper import CausalWhisper, EncoderState, TextRow
from penstock.models.int8 import Int8Linear, quantize_linears
from penstock.models.local_optimality import Hypothesis, agree, branch, checked, revise, settle
from penstock.models.text_writer import AGAIN
from penstock.models.tokens import WordTokens
from penstock.models.whisper_dims import BlockPlan, WhisperDims
from penstock.models.whisper_loader import quantized
from penstock.models.whisper_stream import Heard, StreamWord, WhisperStream, WhisperStreamer
from penstock.models.whisper_window import PACE
from penstock.models.window_seam import Said, find_seam
from penstock.models.word_times import monotonic, token_times
from torch import Tensor

WORDS = WordTokens([f"w{i}" for i in range(30)])
DIMS = WhisperDims(80, 100, 32, 2, 2, 32, 32, 32, 2, 1)  # a window of 2 s
PLAN = BlockPlan(chunk=10, first=10)
GRID = BlockPlan(chunk=5, first=10)
torch.set_num_threads(1)


def streamer(
    plan: BlockPlan = PLAN, beams: int = 1, seed: int = 0, dims: WhisperDims = DIMS
) -> WhisperStreamer:
    model = CausalWhisper.random(dims, seed)
    model.decoder.token_embedding.weight.data.mul_(20)  # else all logits are alike
    return WhisperStreamer(model, WORDS, plan, beams=beams, tokens_per_s=0.1)


def mel(frames: int, seed: int = 0) -> Tensor:
    return torch.randn(80, 2 * frames, generator=torch.Generator().manual_seed(seed))


def run(asr: WhisperStreamer, stream: WhisperStream) -> list[StreamWord]:
    words: list[StreamWord] = []
    while asr.ready(stream):
        words += asr.commit(stream, asr.forward([stream])[0])
    return words


# ---------------------------------------------------------------- the rule


def logits(*best: tuple[int, float]) -> Tensor:
    """Rows whose largest value is as given; all else is 0."""
    out = torch.zeros(len(best), 8)
    for row, (token, value) in zip(out, best, strict=True):
        row[token] = value
    return out


def test_a_token_stays_while_it_is_the_best_or_no_less_likely() -> None:
    hyp = Hypothesis([1, 2, 3], [5.0, 5.0, 5.0])
    new = logits((2, 3.0), (4, 9.0), (7, 1.0))  # token 2: best but lower; token 3: was 5, now 0
    assert revise(hyp, new) == 1
    assert hyp.tokens == [1, 2]
    rising = torch.zeros(3, 8)
    rising[0, 2], rising[0, 6] = 3.5, 9.0  # not the best, but more likely than before
    hyp.add(3, -1.0)
    assert revise(hyp, rising) == 2
    assert hyp.tokens == [1, 2, 3]


def test_the_first_unstable_token_takes_all_after_it_along() -> None:
    hyp = Hypothesis([1, 2, 3], [5.0, 5.0, 5.0])
    assert revise(hyp, logits((6, 9.0), (3, 9.0), (7, 9.0))) == 0
    assert hyp.tokens == [1]


def test_in_a_beam_a_token_among_the_best_is_stable() -> None:
    new = torch.zeros(2, 8)
    new[0, 6], new[0, 2] = 9.0, 4.0
    greedy, beam = Hypothesis([1, 2], [1.0, 5.0], committed=1), Hypothesis([1, 2], [1.0, 5.0], committed=1)
    assert checked(greedy) == 1
    assert revise(greedy, new) == 0
    assert revise(beam, new, top=2) == 1


def test_the_commit_line_never_goes_back() -> None:
    hyp = Hypothesis([1, 2, 3, 4], [0.0] * 4)
    assert settle(hyp) == 2
    del hyp.tokens[2:], hyp.scores[2:]
    assert settle(hyp) == 0
    assert hyp.committed == 2
    assert settle(hyp, everything=True) == 0


def test_a_token_that_has_stood_enough_reviews_is_final_though_nothing_follows() -> None:
    hyp, same = Hypothesis([1, 2], [0.0] * 2), logits((1, 9.0), (2, 9.0), (7, 1.0))
    for _ in range(3):
        assert settle(hyp, stood=4) == 0
        assert revise(hyp, same) == 2
    assert revise(hyp, same) == 2
    hyp.add(3, 0.0)
    assert settle(hyp, stood=4) == 2
    hyp.cut(2)
    assert (hyp.tokens, hyp.committed) == ([1, 2], 2)


def test_beams_that_contradict_what_is_committed_are_dropped() -> None:
    best, same, other = (Hypothesis(t, [0.0] * 4) for t in ([1, 2, 3, 4], [1, 2, 5, 6], [1, 7, 3, 4]))
    assert agree([best, same, other], best) == [best, same]
    assert same.committed == 2
    live, ended = branch([best], logits((5, 9.0)), 2, eot=5)
    assert [h.tokens for _, h in ended] == [[1, 2, 3, 4]]
    assert len(live) == 1


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize("beams", [1, 3])
def test_committed_tokens_are_append_only(beams: int) -> None:
    asr = streamer(beams=beams)
    stream = asr.start()
    stream.encoder.queue.push(mel(95))
    before: list[int] = []
    while asr.ready(stream):
        heard = asr.forward([stream])[0]
        asr.commit(stream, heard)
        before = before[heard.dropped :]  # they have left the window, as words
        assert stream.text.tokens[: len(before)] == before
        before = stream.text.tokens[: stream.text.committed]
    assert len(before) > 3


def outcome(stream: WhisperStream) -> tuple[object, ...]:
    return (stream.origin, stream.encoder.at, stream.text.tokens, stream.text.committed, stream.said)


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(1, 120), min_size=1, max_size=8))
def test_any_split_of_the_mel_gives_the_same_text(sizes: list[int]) -> None:
    asr, audio = streamer(), mel(140)
    whole = asr.start()
    whole.encoder.queue.push(audio)
    words = run(asr, whole)
    split, found, at = asr.start(), list[StreamWord](), 0
    for size in [*sizes, 400]:
        split.encoder.queue.push(audio[:, at : at + size])
        found += run(asr, split)
        at += size
    assert found == words
    assert outcome(split) == outcome(whole)
    kv, ref = split.encoder.layers[1], whole.encoder.layers[1]
    assert (kv.k[:, : kv.fill] - ref.k[:, : ref.fill]).abs().max() <= 1e-4


@pytest.mark.parametrize("pad", [False, True], ids=["apart", "padded"])
@pytest.mark.parametrize("plan", [PLAN, dataclasses.replace(PLAN, left=40)], ids=["sliding", "bounded"])
def test_streams_in_one_forward_do_not_touch_each_other(plan: BlockPlan, pad: bool) -> None:
    asr = streamer(plan)
    audio = [mel(140, seed) for seed in range(3)]
    alone: list[list[StreamWord]] = []
    for one in audio:
        stream = asr.start()
        stream.encoder.queue.push(one)
        alone.append(run(asr, stream))
    assert isinstance(asr.model, CausalWhisper)
    asr.model.encoder.pad = asr.model.decoder.pad = pad  # one kernel for streams of any length, as on a GPU
    streams = [asr.start() for _ in audio]
    together: list[list[StreamWord]] = [[] for _ in audio]
    for i, (stream, one) in enumerate(zip(streams, audio, strict=True)):
        stream.encoder.queue.push(one[:, : 40 * i])
        together[i] += run(asr, stream)  # of different ages
        stream.encoder.queue.push(one[:, 40 * i :])
    while any(map(asr.ready, streams)):
        groups: dict[object, list[int]] = {}
        for i, stream in enumerate(streams):
            if asr.ready(stream):
                groups.setdefault(asr.batch_key(stream), []).append(i)
        for rows in groups.values():
            for i, heard in zip(rows, asr.forward([streams[i] for i in rows]), strict=True):
                together[i] += asr.commit(streams[i], heard)
    assert together == alone
    assert sum(map(len, alone)) > 10


def test_a_restored_stream_goes_on_as_the_one_it_was_taken_from() -> None:
    asr, audio = streamer(), mel(140)
    stream = asr.start()
    stream.encoder.queue.push(audio[:, :160])
    run(asr, stream)
    copy = stream_snapshot.restore(stream_snapshot.dump(stream), asr)
    for one in (stream, copy):
        one.encoder.queue.push(audio[:, 160:])
    assert run(asr, copy) == run(asr, stream)
    assert outcome(copy) == outcome(stream)


def test_a_damaged_or_foreign_snapshot_is_refused_in_words() -> None:
    asr = streamer()
    data = stream_snapshot.dump(asr.start())
    with pytest.raises(ValueError, match="damaged"):
        stream_snapshot.restore(data[:40], asr)
    stream = asr.start()
    stream.encoder.queue.push(mel(10))
    run(asr, stream)
    other = WhisperStreamer(CausalWhisper.random(dataclasses.replace(DIMS, n_audio_head=4)), WORDS, PLAN)
    with pytest.raises(ValueError, match="another model"):
        stream_snapshot.restore(stream_snapshot.dump(stream), other)


def test_a_full_window_slides_and_equals_a_window_begun_at_the_seam() -> None:
    asr, audio = streamer(), mel(150)
    stream = asr.start()
    stream.encoder.queue.push(audio)
    last: Heard | None = None
    while asr.ready(stream):
        last = asr.forward([stream])[0]
        asr.commit(stream, last)
        if last.slid:
            break
    assert last is not None
    assert last.slid is not None
    assert stream.origin == last.slid.seam.frame > 0
    assert (stream.origin - PLAN.first) % PLAN.chunk == 0
    fresh = asr.start()
    fresh.encoder.queue.push(audio[:, 2 * stream.origin : 2 * (stream.origin + stream.encoder.at)])
    run(asr, fresh)
    a, b = stream.encoder.layers[1], fresh.encoder.layers[1]
    assert a.fill == b.fill
    assert (a.k[:, : a.fill] - b.k[:, : b.fill]).abs().max() <= 1e-4
    assert stream.history is not None
    at = 2 * stream.encoder.at
    assert torch.equal(stream.history[:, :at], audio[:, 2 * stream.origin : 2 * stream.origin + at])


@pytest.mark.parametrize("plan", [PLAN, dataclasses.replace(PLAN, left=40)], ids=["sliding", "bounded"])
def test_many_windows_run_without_a_reset_and_words_stay_in_order(plan: BlockPlan) -> None:
    asr = streamer(plan)
    stream, words = asr.start(), list[StreamWord]()
    for seed in range(10):
        stream.encoder.queue.push(mel(50, seed))
        words += run(asr, stream)
        assert len(stream.text.tokens) + 1 <= DIMS.n_text_ctx
        assert stream.encoder.layers[0].fill <= stream.encoder.layers[0].capacity
    assert stream.origin + stream.encoder.at == 500
    assert all(a.end <= b.begin for a, b in itertools.pairwise(words))
    assert all(w.begin <= w.end <= 500 for w in words)


def test_a_next_window_is_made_in_small_steps_and_goes_with_a_snapshot() -> None:
    """No forward encodes more than its own block and a few of the next window; a copy goes on as the stream does."""
    asr = streamer(BlockPlan(5, 10), dims=dataclasses.replace(DIMS, n_audio_ctx=200, n_text_ctx=200))
    stream, steps, most = asr.start(), 0, 0
    encode = asr.model.encoder.step

    def counted(states: list[EncoderState], n: int, plan: BlockPlan) -> Tensor:
        nonlocal steps
        steps += 1
        return encode(states, n, plan)

    asr.model.encoder.step = counted  # type: ignore[method-assign]  # pyright: ignore
    stream.encoder.queue.push(mel(260))
    copy: WhisperStream | None = None
    while asr.ready(stream):
        steps = 0
        asr.commit(stream, asr.forward([stream])[0])
        most = max(most, steps)
        if stream.next is not None and stream.next.encoder.at > 0 and copy is None:
            copy = stream_snapshot.restore(stream_snapshot.dump(stream), asr)
    assert most == 1 + PACE
    assert stream.origin > 0
    assert copy is not None
    assert copy.next is not None
    run(asr, copy)
    assert outcome(copy) == outcome(stream)


def test_what_is_final_is_not_read_again_and_the_text_costs_the_same_however_long() -> None:
    asr = streamer(dataclasses.replace(PLAN, left=40), seed=1, dims=dataclasses.replace(DIMS, n_text_ctx=150))
    stream, read = asr.start(), list[int]()
    write = asr.model.decoder.step

    def counted(rows: list[TextRow], *, align: bool = False) -> Tensor:
        read.append(len(rows[0].tokens))
        return write(rows, align=align)

    asr.model.decoder.step = counted  # type: ignore[method-assign]  # pyright: ignore
    stream.encoder.queue.push(mel(200))
    run(asr, stream)
    assert len(stream.text.tokens) > 25
    assert stream.past[0].fill == 1 + stream.worded - AGAIN
    assert max(read) <= AGAIN + 2 * asr.writer.new + 4


def test_the_seam_lies_between_words_on_the_grid() -> None:
    words = [Said(1, 20, 40), Said(2, 60, 80), Said(3, 82, 120), Said(4, 140, 170)]
    seam = find_seam(words, now=195, plan=GRID, keep=100)
    assert seam.tokens == 2  # the words that end before 95
    assert (195 - seam.frame - GRID.first) % GRID.chunk == 0
    assert 75 <= seam.frame <= 82
    silent = find_seam([], now=195, plan=GRID, keep=100)
    assert (silent.tokens, silent.frame) == (0, 95)


# ---------------------------------------------------------------- word times


def test_rows_get_their_frames_in_order() -> None:
    gain = np.zeros((3, 10))
    gain[0, :3] = gain[1, 3:4] = gain[2, 4:] = 1.0
    assert monotonic(gain) == [(0, 3), (3, 4), (4, 10)]
    with pytest.raises(ValueError, match="4 tokens cannot have 3 frames"):
        monotonic(np.zeros((4, 3)))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5), st.integers(0, 10), st.integers(0, 1000))
def test_alignment_is_the_best_of_all_cuts(rows: int, more: int, seed: int) -> None:
    frames = rows + more
    gain = np.random.default_rng(seed).normal(size=(rows, frames))
    got = monotonic(gain)
    assert [a for a, _ in got[1:]] == [b for _, b in got[:-1]]
    assert (got[0][0], got[-1][1]) == (0, frames)

    def best(row: int, begin: int) -> float:
        if row == rows - 1:
            return float(gain[row, begin:].sum())
        ends = range(begin + 1, frames - (rows - 2 - row))
        return max(float(gain[row, begin:e].sum()) + best(row + 1, e) for e in ends)

    assert sum(gain[i, a:b].sum() for i, (a, b) in enumerate(got)) == pytest.approx(best(0, 0))


def test_a_words_time_leaves_out_the_silence_around_it() -> None:
    heads = torch.full((2, 3, 40), 1e-4)
    heads[:, 0, 5:12] = heads[:, 1, 20:30] = heads[:, 2, 35:] = 0.1
    (a, b), (c, d) = token_times(heads)
    assert abs(a - 5) <= 3
    assert abs(b - 12) <= 3
    assert abs(c - 20) <= 3
    assert abs(d - 30) <= 3


# ---------------------------------------------------------------- int8 and bf16


def test_int8_layers_are_close_and_have_the_shape_of_the_ones_they_replace() -> None:
    layer = torch.nn.Linear(64, 100)
    x = torch.randn(2, 5, 64)
    with torch.no_grad():
        want, got = layer(x), Int8Linear(layer.weight, layer.bias)(x)
    assert got.shape == want.shape
    assert (got - want).abs().max() < 0.05
    model = CausalWhisper.random(DIMS)
    assert quantize_linears(model) == DIMS.n_audio_layer * 6 + DIMS.n_text_layer * 10


@pytest.mark.parametrize("kind", ["head", "all", "bf16"])
def test_other_precisions_stream_too(kind: str) -> None:
    asr = streamer()
    assert isinstance(asr.model, CausalWhisper)
    if kind == "bf16":
        asr.model.to(torch.bfloat16)
    else:
        quantized(asr.model, kind)
    stream = asr.start()
    stream.encoder.queue.push(mel(140))
    assert len(run(asr, stream)) > 3


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"plan": BlockPlan(chunk=50, first=50)}, "chunk of 1000 ms is too long for a window of 2000 ms"),
        ({"beams": 0}, "0 beams"),
        ({"tokens_per_s": 300.0}, "text context of 32"),
    ],
)
def test_impossible_streamers_are_refused_in_words(change: dict[str, object], words: str) -> None:
    kwargs: dict[str, object] = {"plan": PLAN} | change
    with pytest.raises(ValueError, match=words):
        WhisperStreamer(CausalWhisper.random(DIMS), WORDS, **kwargs)  # type: ignore[arg-type]  # pyright: ignore
