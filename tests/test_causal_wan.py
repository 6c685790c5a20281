"""Causal Wan against diffusers' own model with a block-causal mask, and its autoencoder against the whole video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

pytest.importorskip("diffusers", reason="needs the extra: hub")
pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers, about its own future
torch.set_num_threads(1)

from penstock.models import wan_vae  # noqa: E402 - they need what is skipped for above
from penstock.models.causal_wan import (  # noqa: E402
    CausalWan,
    StepCache,
    WanRow,
    Window,
    diffusers_keys,
    kept,
    load_causal_wan,
    warped,
)
from wan_stream import (  # noqa: E402
    SMALL,
    WanState,
    WanStream,
    small,
    small_vae,
    streamed_and_whole,
    vae_streamed_and_whole,
)


def text_of(model: CausalWan, seed: int) -> Any:
    return model.text_kv(torch.randn(1, 7, 16, generator=torch.Generator().manual_seed(seed)))


@pytest.mark.parametrize("block", [1, 3])
def test_the_stream_equals_the_whole_video_under_a_block_causal_mask(block: int) -> None:
    streamed, expected = streamed_and_whole(block)
    assert float((streamed - expected).abs().max()) <= 1e-5
    assert float((expected[:, 1:] - expected[:, :-1]).abs().max()) > 0.1


def run(stream: WanStream, state: WanState, video: torch.Tensor, *, batched: bool) -> torch.Tensor:
    """The stream's latents; video (C, T, h, w), a block of one frame."""
    found: list[tuple[int, torch.Tensor]] = []

    def tick() -> None:
        rows = stream.rows(state)
        found.extend(stream.commit(state, rows, stream.forward(rows)))

    for t in range(video.shape[1]):
        stream.enter(state, video[:, t : t + 1], t)
        tick()
        while not batched and state.flights:
            tick()
    while state.flights:
        tick()
    assert [tag for tag, _ in found] == list(range(video.shape[1]))
    return torch.cat([x for _, x in found], 1)


class Zero(WanStream):
    """Noise that does not depend on the order of its drawing."""

    def _noise(self, state: WanState, like: torch.Tensor) -> torch.Tensor:
        return torch.full_like(like, 0.3)


def test_steps_in_one_batch_equal_steps_in_a_row() -> None:
    """Block t's second step and block t + 1's first share a forward; each step has its own cache."""
    stream = Zero(small(Window(capacity=4, sink=1)), warped((1000, 500, 250)))
    video = torch.randn(4, 9, 4, 6, generator=torch.Generator().manual_seed(1))
    text = text_of(stream.model, 0)
    a = run(stream, stream.init_state(4, 6, text), video, batched=True)
    b = run(stream, stream.init_state(4, 6, text), video, batched=False)
    assert float((a - b).abs().max()) <= 5e-5


def test_rows_of_strangers_do_not_mix() -> None:
    stream = WanStream(small(Window(capacity=3, sink=1)))
    texts = [text_of(stream.model, i) for i in range(2)]
    together = [stream.init_state(4, 6, t, seed=i) for i, t in enumerate(texts)]
    alone = [stream.init_state(4, 6, t, seed=i) for i, t in enumerate(texts)]
    generator = torch.Generator().manual_seed(3)
    for _ in range(6):
        latents = [torch.randn(4, 1, 4, 6, generator=generator) for _ in texts]
        for state, other, latent in zip(together, alone, latents, strict=True):
            stream.enter(state, latent)
            stream.enter(other, latent)
        plans = [stream.rows(s) for s in together]
        results = stream.forward([row for plan in plans for row in plan])
        for plan, state, other in zip(plans, together, alone, strict=True):
            mine, results = results[: len(plan)], results[len(plan) :]
            rows = stream.rows(other)
            expected = stream.forward(rows)
            for x, y in zip(mine, expected, strict=True):
                assert float((x.x0 - y.x0).abs().max()) <= 1e-5
            stream.commit(state, plan, mine)
            stream.commit(other, rows, expected)


def test_a_stream_longer_than_the_position_table_stays_in_its_memory() -> None:
    """1,100 frames: diffusers' own table of positions ends at 1,024."""
    stream = WanStream(small(Window(capacity=4, sink=1)), (0.8,))
    state = stream.init_state(2, 2, text_of(stream.model, 0))
    latent = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(3))
    before = sum(c.nbytes for c in state.caches)
    done: list[Any] = []
    for _ in range(1100):
        stream.enter(state, latent)
        rows = stream.rows(state)
        done = stream.commit(state, rows, stream.forward(rows))
    assert torch.isfinite(done[0][1]).all()
    assert sum(c.nbytes for c in state.caches) == before
    assert sorted(state.caches[0].frames) == [0, 1097, 1098, 1099]


def test_only_the_frames_of_the_window_and_the_sink_count() -> None:
    model = small(Window(capacity=3, sink=1))
    text = text_of(model, 0)
    base = torch.randn(4, 8, 4, 4, generator=torch.Generator().manual_seed(4))

    def last(changed: int | None) -> torch.Tensor:
        video = base.clone()
        if changed is not None:
            video[:, changed] += 1
        cache = model.init_cache(4, 4)
        x0 = video[:, :1]
        for t in range(8):
            row = WanRow(video[:, t : t + 1], 0.5, cache, text, t)
            result = model.denoise([row])[0]
            model.commit(row, result)
            x0 = result.x0
        return x0

    reference = last(None)
    assert not torch.equal(last(0), reference)  # the sink
    assert not torch.equal(last(6), reference)  # the window
    # two layers reach back twice the window; what is older can only come through the sink, which is older still
    assert torch.equal(last(1), reference)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 3), st.integers(1, 3), st.integers(0, 4), st.integers(1, 30))
def test_the_window_keeps_the_sink_and_the_newest(sink: int, block: int, more: int, blocks: int) -> None:
    window = Window(capacity=sink + block + more, sink=sink, block=block)
    frames: tuple[int, ...] = ()
    for b in range(blocks):
        seen, slots = kept(frames, window)
        assert [frames[s] for s in seen] == sorted(frames[s] for s in seen)
        assert len(slots) == block
        assert not set(seen) & set(slots)
        grown = [*frames, *[-1] * max(0, max(slots) + 1 - len(frames))]
        for i, slot in enumerate(slots):
            grown[slot] = b * block + i
        frames = tuple(grown)
        assert len(frames) <= window.capacity
        count = (b + 1) * block
        assert set(frames) >= set(range(min(sink, count)))
        assert set(frames) >= set(range(max(0, count - block), count))


def test_a_window_too_small_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="window of 2 frames cannot hold a sink of 1 and a block of 3"):
        Window(capacity=2, sink=1, block=3)


def test_a_new_prompt_takes_the_next_row_and_may_forget() -> None:
    stream = WanStream(small(Window(capacity=3, sink=1)), (0.8,))
    states = [stream.init_state(4, 4, text_of(stream.model, 0)) for _ in range(3)]
    latent = torch.randn(4, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    stream.switch(states[1], text_of(stream.model, 1))
    stream.switch(states[2], text_of(stream.model, 1), reset=True)
    drawn: list[torch.Tensor] = []
    for state in states:
        done: list[Any] = []
        for _ in range(3):
            stream.enter(state, latent)
            rows = stream.rows(state)
            done = stream.commit(state, rows, stream.forward(rows))
        drawn.append(done[0][1])
    assert not torch.equal(drawn[0], drawn[1])
    assert states[2].caches[0].frames == (0, 1, 2)


# ---------------------------------------------------------------- checkpoints

_WAN_NAMES = (
    ("condition_embedder.time_embedder.linear_1", "time_embedding.0"),
    ("condition_embedder.time_embedder.linear_2", "time_embedding.2"),
    ("condition_embedder.text_embedder.linear_1", "text_embedding.0"),
    ("condition_embedder.text_embedder.linear_2", "text_embedding.2"),
    ("condition_embedder.time_proj", "time_projection.1"),
    (".attn1.", ".self_attn."),
    (".attn2.", ".cross_attn."),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    (".to_out.0.", ".o."),
    (".ffn.net.0.proj.", ".ffn.0."),
    (".ffn.net.2.", ".ffn.2."),
    (".norm2.", ".norm3."),
    ("proj_out.", "head.head."),
)


def wan_name(key: str) -> str:
    """Diffusers' name → Wan's own, by hand."""
    for ours, theirs in _WAN_NAMES:
        key = key.replace(ours, theirs)
    if key.startswith("blocks."):
        return key.replace("scale_shift_table", "modulation")
    return key.replace("scale_shift_table", "head.modulation")


@pytest.mark.parametrize(
    "prefix", ["", "model.", "generator_ema.model.", "generator.model._fsdp_wrapped_module."]
)
def test_checkpoints_of_self_forcing_load_strictly(tmp_path: Path, prefix: str) -> None:
    model = small(Window())
    state = {prefix + wan_name(k): v.clone().contiguous() for k, v in model.state_dict().items()}
    save_file(state, tmp_path / "a.safetensors")
    loaded = load_causal_wan(tmp_path / "a.safetensors", SMALL)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in model.state_dict().items())


def test_averaged_weights_win() -> None:
    model = small(Window())
    both = {f"generator.model.{wan_name(k)}": torch.zeros_like(v) for k, v in model.state_dict().items()}
    both |= {f"generator_ema.model.{wan_name(k)}": v for k, v in model.state_dict().items()}
    found = diffusers_keys(both)
    assert all(torch.equal(v, found[k]) for k, v in model.state_dict().items())


def test_wrong_and_truncated_checkpoints_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    state = {k: v.clone() for k, v in small(Window()).state_dict().items()}
    save_file(state, path)
    with pytest.raises(ValueError, match="does not hold this Wan"):
        load_causal_wan(path, SMALL | {"num_layers": 3})
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match="no readable safetensors file"):
        load_causal_wan(path, SMALL)


def test_noise_levels_are_warped() -> None:
    assert warped((1000, 500)) == (1.0, pytest.approx(2.5 / 3))


def test_cache_starts_empty() -> None:
    cache = small(Window(capacity=5)).init_cache(8, 8)
    assert isinstance(cache, StepCache)
    assert cache.keys.shape == (2, 5, 16, 2, 24)
    assert cache.frames == ()


# ---------------------------------------------------------------- the autoencoder


@pytest.fixture(scope="module")
def vae() -> Any:
    return small_vae()


def test_the_autoencoders_stream_equals_the_whole_video_with_two_sessions_interleaved(vae: Any) -> None:
    for streamed, whole in vae_streamed_and_whole(vae):
        assert torch.equal(streamed, whole)


def test_a_chunk_that_is_thrown_away_leaves_no_trace(vae: Any) -> None:
    video = torch.rand(1, 3, 5, 32, 32) * 2 - 1
    _, state = wan_vae.encode(vae, wan_vae.VaeState(), video[:, :, :1])
    wan_vae.encode(vae, state, torch.zeros(1, 3, 4, 32, 32))
    a, after = wan_vae.encode(vae, state, video[:, :, 1:])
    with torch.inference_mode():
        whole = vae.encode(video).latent_dist.mode()
    assert torch.equal(a, whole[:, :, 1:])
    assert after.nbytes == wan_vae.encode(vae, after, video[:, :, 1:])[1].nbytes


def test_chunks_of_another_length_are_refused(vae: Any) -> None:
    with pytest.raises(ValueError, match="a chunk of 4 pictures: this one takes 1"):
        wan_vae.encode(vae, wan_vae.VaeState(), torch.zeros(1, 3, 4, 32, 32))
    with pytest.raises(ValueError, match="2 latent frames"):
        wan_vae.decode(vae, wan_vae.VaeState(), torch.zeros(1, 4, 2, 4, 4))
