"""tiny-restyle: rows of strangers, Stream Batch, prompts, checkpoints. Weights are random: these are facts of the code."""

from __future__ import annotations

import gc
import json
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.models.restyle_net import RestyleNet
from penstock.models.restyle_ort import OrtForward
from penstock.models.restyle_prompt import MAX_WORDS, PHRASES, SIZE, VOCABULARY, read
from penstock.models.stream_model import Finished, Picture, Settings, fitted
from penstock.models.tiny_restyle import BadCheckpoint, RestyleState, TinyRestyle, load_net
from safetensors.torch import save_file

torch.set_num_threads(1)


def random_net(seed: int = 0) -> RestyleNet:
    torch.manual_seed(seed)
    net = RestyleNet(SIZE)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.03)  # the new net is identity: nothing could differ
    return net.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model() -> TinyRestyle:
    return TinyRestyle(random_net())


def pictures(count: int, seed: int, height: int = 64, width: int = 64) -> list[Picture]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (height, width, 3), np.uint8) for _ in range(count)]


def tick(model: TinyRestyle, state: RestyleState, picture: Picture | None, tag: int = 0) -> list[Finished]:
    rows = model.rows(state, picture, tag)
    return model.commit(state, rows, model.forward(rows))


def estimates(
    model: TinyRestyle, state: RestyleState, frames: list[Picture], *, batched: bool
) -> list[torch.Tensor]:
    """The last step's result of each picture."""
    found: list[torch.Tensor] = []

    def go(picture: Picture | None) -> None:
        rows = model.rows(state, picture)
        results = model.forward(rows)
        found.extend(d.estimate for r, d in zip(rows, results, strict=True) if r.last)
        model.commit(state, rows, results)

    for frame in frames:
        go(frame)
        while not batched and state.flights:
            go(None)
    while state.flights:
        go(None)
    return found


@pytest.mark.parametrize("steps", [1, 2, 3, 4])
def test_stream_batch_equals_one_picture_after_the_other(model: TinyRestyle, steps: int) -> None:
    frames = pictures(6, 1)
    wish = Settings("oil painting", steps=steps)
    a = estimates(model, model.init_state((64, 64), wish), frames, batched=True)
    b = estimates(model, model.init_state((64, 64), wish), frames, batched=False)
    assert len(a) == len(b) == 6
    assert max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True)) <= 5e-5
    # the facts above could not fail if the results did not depend on their frames
    assert min(float((x - y).abs().max()) for x, y in pairwise(a)) > 0.05


def test_rows_batched_with_strangers_equal_rows_alone(model: TinyRestyle) -> None:
    wishes = [
        Settings("neon cyan", seed=1),
        Settings("pencil sketch", steps=4, seed=2),
        Settings("oil", negative_prompt="blueprint", guidance=1.7, steps=1),
    ]
    streams = [pictures(4, 10 + i) for i in range(3)]
    states = [model.init_state((64, 64), w) for w in wishes]
    alone = [model.init_state((64, 64), w) for w in wishes]
    for t in range(4):
        plans = [model.rows(s, f[t], t) for s, f in zip(states, streams, strict=True)]
        every = [row for plan in plans for row in plan]
        results = model.forward(every)
        for plan, state, other, frames in zip(plans, states, alone, streams, strict=True):
            mine, results = results[: len(plan)], results[len(plan) :]
            separate = model.rows(other, frames[t], t)
            expected = model.forward(separate)
            for x, y in zip(mine, expected, strict=True):
                assert float((x.estimate - y.estimate).abs().max()) <= 1e-5
            model.commit(state, plan, mine)
            model.commit(other, separate, expected)


def test_a_forward_that_is_not_committed_leaves_no_trace(model: TinyRestyle) -> None:
    frames = pictures(3, 3)
    one, two = (model.init_state((64, 64), Settings("comic ink")) for _ in range(2))
    for state in (one, two):
        tick(model, state, frames[0])
    model.forward(model.rows(two, pictures(1, 99)[0]))  # too late: thrown away
    a, b = (estimates(model, s, frames[1:], batched=True) for s in (one, two))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_a_thousand_frames_do_not_grow_the_state(model: TinyRestyle) -> None:
    state = model.init_state((16, 16), Settings("neon", steps=2))
    frame = pictures(1, 4, 16, 16)[0]

    def held() -> tuple[int, int]:
        gc.collect()
        tensors = [o for o in gc.get_objects() if type(o) is torch.Tensor]
        return len(tensors), sum(t.untyped_storage().nbytes() for t in tensors)

    for _ in range(20):
        tick(model, state, frame)
    before = held()
    finished = sum(len(tick(model, state, frame)) for _ in range(1000))
    assert finished == 1000
    count, size = held()
    assert count <= before[0]
    assert size <= before[1]


def test_a_new_prompt_shows_within_two_frames(model: TinyRestyle) -> None:
    frame = pictures(1, 5)[0]
    state = model.init_state((64, 64), Settings("pencil sketch"))
    for i in range(4):
        tick(model, state, frame, i)
    model.adjust(state, Settings("neon magenta"))
    shown = [tick(model, state, frame, 10 + i) for i in range(3)]
    fresh = model.init_state((64, 64), Settings("neon magenta"))
    tick(model, fresh, frame)
    expected = tick(model, fresh, frame)[0]
    assert [len(s) for s in shown] == [1, 1, 1]  # no stall
    assert shown[1][0].tag == 10
    assert np.array_equal(shown[1][0].picture, expected.picture)  # not a trace of the old style


def test_identity_settings_give_the_camera_picture_back(model: TinyRestyle) -> None:
    frame = pictures(1, 6, 50, 70)[0]
    state = model.init_state((48, 64), Settings("neon", strength=0.0, steps=1))
    assert np.array_equal(tick(model, state, frame)[0].picture, frame)


def test_the_seed_decides_the_noise_and_nothing_else_does(model: TinyRestyle) -> None:
    frame = pictures(1, 7)[0]
    a, b, c = (
        tick(model, model.init_state((64, 64), Settings("oil", steps=1, seed=s)), frame)[0].picture
        for s in (3, 3, 4)
    )
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_fewer_steps_drop_what_would_come_too_late(model: TinyRestyle) -> None:
    frame = pictures(1, 8)[0]
    state = model.init_state((64, 64), Settings("oil", steps=4))
    for i in range(3):
        assert tick(model, state, frame, i) == []
    model.adjust(state, Settings("oil", steps=1))
    tags = [f.tag for f in tick(model, state, frame, 3)]
    assert tags == [0, 3]  # 0 was done in the same tick; 1 and 2 would have come after 3
    assert state.flights == []


def test_onnxruntime_draws_what_torch_draws() -> None:
    net = random_net(1)
    frames = pictures(3, 9, 48, 80)
    wish = Settings("watercolor warm", guidance=1.5)
    torch_model, ort_model = TinyRestyle(net), TinyRestyle(net, forward=OrtForward(net))
    a = estimates(torch_model, torch_model.init_state((48, 80), wish), frames, batched=True)
    b = estimates(ort_model, ort_model.init_state((48, 80), wish), frames, batched=True)
    assert max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True)) <= 1e-4


@pytest.mark.parametrize("size", [(64, 64), (32, 96)])
def test_the_network_traced_at_one_size_is_the_network_at_all(size: tuple[int, int]) -> None:
    net = random_net(2)
    wish = Settings("neon cyan", steps=2)
    frames = pictures(3, 4, *size)
    traced, eager = TinyRestyle(net), TinyRestyle(net, forward=net)
    a, b = (estimates(m, m.init_state(size, wish), frames, batched=True) for m in (traced, eager))
    assert max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True)) <= 1e-6


def test_bf16_stays_close_to_float32() -> None:
    wish = Settings("pencil")
    frame = pictures(1, 9)[0]
    exact, short = TinyRestyle(random_net()), TinyRestyle(random_net(), dtype=torch.bfloat16)
    a = estimates(exact, exact.init_state((64, 64), wish), [frame], batched=True)[0]
    b = estimates(short, short.init_state((64, 64), wish), [frame], batched=True)[0]
    assert b.dtype == torch.bfloat16
    assert float((a - b.float()).pow(2).mean()) < 4 * 10**-3.5  # 35 dB on a range of 2


def test_a_wrong_size_is_refused_in_words(model: TinyRestyle) -> None:
    with pytest.raises(ValueError, match="70x64: tiny-restyle takes multiples of 16"):
        model.init_state((64, 70), Settings())


# ---------------------------------------------------------------- prompts


def test_words_are_read_in_any_case_order_and_spelling() -> None:
    assert set(read("Coloured-Pencil")) == set(read("pencil colored"))
    assert read("8-bit pixel art") == read("8bit Pixel ART")
    assert read("a watercolour by nobody") == read("watercolor") != ()
    assert read("") == read("purple elephants") == ()


def test_ten_thousand_characters_are_cut_not_refused() -> None:
    words = read("neon glow " * 1000)
    assert len(words) == 2
    assert len(read(" ".join(VOCABULARY))) == MAX_WORDS


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=300))
def test_any_text_gives_few_known_numbers(text: str) -> None:
    words = read(text)
    assert len(words) <= MAX_WORDS
    assert all(0 < n < SIZE for n in words)


def test_every_style_is_called_by_its_phrases() -> None:
    assert len(PHRASES) >= 13  # twelve styles and identity
    for phrases in PHRASES.values():
        assert all(len(read(p)) == len(p.split()) for p in phrases)


# ---------------------------------------------------------------- sizes and checkpoints


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000))
def test_the_fitted_size_is_a_multiple_and_bounded(height: int, width: int) -> None:
    h, w = fitted(height, width, 256, 16)
    assert h % 16 == 0
    assert w % 16 == 0
    assert h >= 16
    assert w >= 16
    if max(height, width) < 10 * min(height, width):
        assert h * w <= 1.4 * 256 * 256


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    net = random_net()
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, tmp_path / "a.safetensors")
    again = load_net(tmp_path / "a.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_truncated_wrong_and_missing_checkpoints_are_named(tmp_path: Path) -> None:
    state = {k: v.contiguous() for k, v in random_net().state_dict().items()}
    path = tmp_path / "a.safetensors"
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BadCheckpoint, match="no readable safetensors file"):
        load_net(path)
    header = json.dumps({}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(BadCheckpoint, match="does not hold tiny-restyle"):
        load_net(path)
    save_file({**state, "stem.weight": torch.zeros(1, 2)}, path)
    with pytest.raises(BadCheckpoint, match=r"'stem.weight': \(1, 2\), expected \(16, 39, 3, 3\)"):
        load_net(path)
    with pytest.raises(BadCheckpoint, match="nowhere"):
        load_net(tmp_path / "nowhere.safetensors")
