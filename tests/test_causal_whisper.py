"""The streaming recogniser's encoder and front end: any chunking gives what the whole gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.models.causal_whisper import CausalWhisper, TextRow
from penstock.models.conv_stream import ConvFront
from penstock.models.log_mel import N_FFT, LogMel, LogMelState
from penstock.models.whisper_dims import SIZES, BlockPlan, WhisperDims
from torch import Tensor
from torch.nn import functional as F

SMALL = WhisperDims(80, 1500, 64, 4, 2, 101, 64, 64, 4, 2)
torch.set_num_threads(1)
torch.manual_seed(0)


def noise(seconds: float, seed: int = 0) -> Tensor:
    """Noise whose loudness wanders, so that the running maximum moves."""
    generator = torch.Generator().manual_seed(seed)
    count = int(seconds * 16_000)
    envelope = torch.linspace(-3, 0, count) + torch.linspace(0, 9, count).sin()
    return torch.randn(count, generator=generator) * 0.1 * 10**envelope


def mel_stft(pcm: Tensor) -> Tensor:
    """Whisper's own formula but for the floor, by torch.stft: an independent reference."""
    mel = LogMel(80)
    spectrum = torch.stft(pcm, N_FFT, 160, window=torch.hann_window(N_FFT), return_complex=True)
    log = (mel._filters @ spectrum[:, :-1].abs() ** 2).clamp(min=1e-10).log10()  # pyright: ignore[reportPrivateUsage]
    floor = torch.stack([log[:, : i + 1].max() for i in range(log.shape[1])]).clamp(min=0.0) - 8
    return (torch.maximum(log, floor) + 4) / 4


def test_offline_log_mel_equals_whispers_stft() -> None:
    pcm = noise(3.3)
    got = LogMel(80).forward(pcm)
    assert got.shape == (80, len(pcm) // 160)
    assert torch.allclose(got, mel_stft(pcm), atol=1e-4)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 3000), min_size=1, max_size=12), st.integers(1, 20_000))
def test_log_mel_over_any_chunking_equals_the_whole(sizes: list[int], total: int) -> None:
    pcm = noise(total / 16_000)
    mel, state, parts, at = LogMel(80), LogMelState(), [], 0
    for size in sizes:
        parts.append(mel.step(pcm[at : at + size], state))
        at += size
    parts.append(mel.step(pcm[at:], state, flush=True))
    whole = mel.forward(pcm)
    got = torch.cat(parts, 1)
    assert got.shape == whole.shape
    assert torch.allclose(got, whole, atol=2e-5)


def test_short_and_empty_streams_have_no_frames_too_many() -> None:
    mel = LogMel(80)
    assert mel.forward(torch.zeros(0)).shape == (80, 0)
    assert mel.forward(torch.zeros(159)).shape == (80, 0)
    assert mel.forward(torch.zeros(160)).shape == (80, 1)


@torch.no_grad()
def test_convolutions_with_look_ahead_equal_the_offline_ones() -> None:
    front = ConvFront(80, 32)
    mel = torch.randn(80, 2 * 60)
    whole = F.gelu(front.conv2(F.gelu(front.conv1(mel[None]))))[0].T  # (60, 32)
    state, parts = front.init_state(), []
    state.push(F.pad(mel, (0, 1)))
    for n in (30, 15, 7, 8):
        window, first = state.window(n, 1), torch.tensor([state.first])
        parts.append(front(window[None], first)[0])
        state.drop(n)
    assert torch.allclose(torch.cat(parts), whole, atol=1e-5)


def published(model: CausalWhisper, mel: Tensor, plan: BlockPlan) -> Tensor:
    """CarelessWhisper's way, independent of ours: convolve all mel so far again, keep what is new."""
    encoder, parts = model.encoder, []
    for begin, end in plan.bounds(mel.shape[1] // 2):
        upto = mel[None, :, : 2 * end]
        parts.append(F.gelu(encoder.conv2(F.gelu(encoder.conv1(upto))))[0, :, begin:end])
    x = torch.cat(parts, 1).T[None]
    x = x + encoder.positional_embedding[: x.shape[1]]
    block = torch.tensor([i for i, (a, b) in enumerate(plan.bounds(x.shape[1])) for _ in range(a, b)])
    mask = block[:, None] >= block[None]
    for layer in encoder.blocks:
        x = layer(x, mask)
    return encoder.ln_post(x)[0]


def stream(model: CausalWhisper, mel: Tensor, plan: BlockPlan) -> Tensor:
    state, parts = model.encoder.start(plan), []
    state.queue.push(F.pad(mel, (0, plan.lookahead)))
    for begin, end in plan.bounds(mel.shape[1] // 2):
        parts.append(model.encoder.step([state], end - begin, plan)[0])
        model.encoder.commit(state, end - begin, plan)
    return torch.cat(parts)


@torch.no_grad()
@pytest.mark.parametrize("chunk_ms", [40, 100, 300, 1000])
@pytest.mark.parametrize(
    "dims", [SMALL, pytest.param(SIZES["tiny"], marks=pytest.mark.slow)], ids=["small", "tiny"]
)
def test_streaming_equals_offline_block_causal(chunk_ms: int, dims: WhisperDims) -> None:
    model = CausalWhisper.random(dims)
    plan = BlockPlan.of_ms(chunk_ms)
    mel = torch.randn(80, 2 * (plan.first + 4 * plan.chunk))
    whole = published(model, mel, plan)
    assert (stream(model, mel, plan) - whole).abs().max() <= 1e-4
    assert (model.encoder(mel[None], plan)[0] - whole).abs().max() <= 1e-4


@torch.no_grad()
@pytest.mark.parametrize("lookahead", [0, 1])
def test_bounded_left_window_streams_like_its_offline_mask_for_ever(lookahead: int) -> None:
    model = CausalWhisper.random(SMALL)
    plan = BlockPlan(chunk=5, first=10, lookahead=lookahead, left=20)
    mel = torch.randn(80, 2 * 2000)  # beyond the 1500 positions: they begin again
    whole = model.encoder(mel[None], plan)[0]
    assert (stream(model, mel, plan) - whole).abs().max() <= 1e-4


@torch.no_grad()
def test_a_row_does_not_depend_on_the_strangers_it_shares_a_forward_with() -> None:
    model = CausalWhisper.random(SMALL)
    plan = BlockPlan.of_ms(300)
    mels = [torch.randn(80, 2 * (30 + 15 * n)) for n in (1, 3, 4)]
    states = [model.encoder.start(plan) for _ in mels]
    for state, mel in zip(states, mels, strict=True):
        state.queue.push(mel)
        for n in [30] + [15] * ((mel.shape[1] // 2 - 30) // 15 - 1):
            model.encoder.step([state], n, plan)
            model.encoder.commit(state, n, plan)
    together = model.encoder.step(states, 15, plan)
    for row, mel in zip(together, mels, strict=True):
        assert (row - model.encoder(mel[None], plan)[0, -15:]).abs().max() <= 1e-4


@torch.no_grad()
def test_a_forward_that_is_dropped_leaves_no_trace() -> None:
    model = CausalWhisper.random(SMALL)
    plan = BlockPlan.of_ms(300)
    mel = torch.randn(80, 2 * 60)
    state = model.encoder.start(plan)
    state.queue.push(mel)
    parts = []
    for n in (30, 15, 15):
        model.encoder.step([state], n, plan)  # never committed: a pool dropped the row
        parts.append(model.encoder.step([state], n, plan)[0])
        model.encoder.commit(state, n, plan)
    assert (torch.cat(parts) - model.encoder(mel[None], plan)[0]).abs().max() <= 1e-4


@torch.no_grad()
def test_decoder_steps_in_mixed_rows_equal_the_whole() -> None:
    model = CausalWhisper.random(SMALL)
    audio = torch.randn(2, 40, 64)
    tokens = [[1, 5, 9, 2], [3, 3, 8]]
    caches = [model.decoder.start(40) for _ in audio]
    model.decoder.hear(audio, caches)
    past = [model.decoder.start(16) for _ in audio]
    for cut in (2, 1):
        rows = [TextRow(t[:cut], 0, p, c, 40) for t, p, c in zip(tokens, past, caches, strict=True)]
        model.decoder.step(rows)
        rows = [TextRow(t[cut:], cut, p, c, 40) for t, p, c in zip(tokens, past, caches, strict=True)]
        hidden = model.decoder.step(rows, align=True)
        ends = [len(tokens[0]) - cut, len(tokens[0]) + len(tokens[1]) - 2 * cut]
        logits = model.decoder.logits(hidden)
        for r, end in enumerate(ends):
            whole = model.decoder(torch.tensor([tokens[r]]), audio[r : r + 1])[0, -1]
            assert (logits[end - 1] - whole).abs().max() <= 1e-4
        assert rows[1].attention[0].shape == (4, len(tokens[1]) - cut, 40)
        assert rows[1].attention[0].sum(-1).allclose(torch.ones(()))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: BlockPlan.of_ms(50), "50 ms is not a multiple of 20 ms"),
        (lambda: BlockPlan.of_ms(1020), "40|chunk of 1020 ms"),
        (lambda: BlockPlan(chunk=15, first=10), "first block"),
        (lambda: BlockPlan(left=10), "left window of 10 frames"),
        (lambda: WhisperDims(80, 1500, 65, 4, 2, 9, 9, 65, 4, 2), "n_audio_state 65"),
    ],
)
def test_impossible_shapes_are_refused_in_words(make: object, words: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=words):
        make()
