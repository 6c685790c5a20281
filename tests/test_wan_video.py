"""Causal Wan behind the StreamModel interface, from a folder of the true format that the test writes; and TAEHV's decoder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from penstock.models.causal_wan import kept
from penstock.models.stream_model import Entry, Finished, Settings
from penstock.models.taehv import DecoderState, TinyDecoder, load_tiny_decoder
from safetensors.torch import save_file

diffusers = pytest.importorskip("diffusers", reason="needs the extra: hub")
transformers = pytest.importorskip("transformers", reason="needs the extra: hub")
tokenizers = pytest.importorskip("tokenizers", reason="needs the extra: hub")
pytestmark = pytest.mark.filterwarnings("ignore")
torch.set_num_threads(1)

from penstock.models import stream_models  # noqa: E402 - they need what is skipped for above
from penstock.models.wan_load import load_wan_video  # noqa: E402
from penstock.models.wan_video import WanVideo, WanVideoState, levels  # noqa: E402

TRANSFORMER = {
    "num_attention_heads": 2,
    "attention_head_dim": 24,
    "ffn_dim": 32,
    "num_layers": 2,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 16,
    "freq_dim": 16,
}


def write_wan(folder: Path) -> Path:
    """A Wan 2.1 in small: the same files, the same keys."""
    torch.manual_seed(0)
    diffusers.WanTransformer3DModel(**TRANSFORMER).save_pretrained(folder / "transformer")
    diffusers.AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).save_pretrained(
        folder / "vae"
    )
    words = ["<pad>", "</s>", "<unk>", "a", "cat", "dog"]
    raw = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>")
    )
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder / "tokenizer")
    config = transformers.UMT5Config(
        vocab_size=len(words), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2
    )
    transformers.UMT5EncoderModel(config).save_pretrained(folder / "text_encoder")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_wan(tmp_path_factory.mktemp("wan") / "tiny-wan")


@pytest.fixture(scope="module")
def model(folder: Path) -> WanVideo:
    return load_wan_video(folder, window=3, sink=1)


def picture(seed: int) -> NDArray[np.uint8]:
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return small.repeat(8, 0).repeat(8, 1)


def entries(count: int, seed: int = 0) -> list[Entry]:
    """The first picture by itself, then fours."""
    made = [Entry((picture(seed),), (0,))]
    for c in range(1, count):
        at = range(4 * c - 3, 4 * c + 1)
        made.append(Entry(tuple(picture(seed + i) for i in at), tuple(at)))
    return made


def draw(model: WanVideo, state: WanVideoState, chunks: list[Entry], *, batched: bool) -> list[Finished]:
    """All chunks through all steps, as Stream Batch or one after the other."""
    done: list[Finished] = []

    def go(entry: Entry | None) -> None:
        flights = [*state.flights, *([model.enter(state, entry)] if entry else [])]
        rows = [model.row(state, f) for f in flights]
        done.extend(model.commit(state, rows, model.forward(rows)))

    for entry in chunks:
        go(entry)
        while not batched and state.flights:
            go(None)
    while state.flights:
        go(None)
    return done


def same(a: list[Finished], b: list[Finished], levels: int = 1) -> bool:
    """Pictures within one level of rounding."""
    return [x.tag for x in a] == [y.tag for y in b] and all(
        int(np.abs(x.picture.astype(int) - y.picture).max()) <= levels for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("steps", [1, 2])
def test_stream_batch_equals_one_chunk_after_the_other(model: WanVideo, steps: int) -> None:
    wish = Settings("a cat", strength=0.6, steps=steps)
    a, b = (
        draw(model, model.init_state((32, 32), wish), entries(5), batched=batched)
        for batched in (True, False)
    )
    assert [f.tag for f in a] == list(range(17))
    assert all(f.picture.shape == (32, 32, 3) for f in a)
    assert same(a, b)
    assert not np.array_equal(a[3].picture, a[9].picture)


def test_strangers_in_one_forward_do_not_mix(model: WanVideo) -> None:
    wishes = [Settings("a cat", steps=1, strength=0.6), Settings("dog", steps=2, strength=0.9, seed=3)]
    together, alone = ([model.init_state((32, 32), w) for w in wishes] for _ in range(2))
    chunks = [entries(4, seed) for seed in (0, 50)]
    shown: list[list[Finished]] = [[], []]
    for t in range(4):
        plans = [
            [model.row(s, f) for f in [*s.flights, model.enter(s, its[t])]]
            for s, its in zip(together, chunks, strict=True)
        ]
        results = model.forward([row for plan in plans for row in plan])
        for i, plan in enumerate(plans):
            mine, results = results[: len(plan)], results[len(plan) :]
            shown[i] += model.commit(together[i], plan, mine)
    for i, state in enumerate(alone):
        expected = draw(model, state, chunks[i], batched=True)
        assert same(shown[i], expected[: len(shown[i])])
        assert shown[i]


def test_a_chunk_that_failed_leaves_no_trace_and_a_lost_first_one_is_made_up_for(model: WanVideo) -> None:
    wish = Settings("a cat", steps=1, strength=0.5)
    one, two = (model.init_state((32, 32), wish) for _ in range(2))
    chunks = entries(3)
    draw(model, one, chunks[:1], batched=True)
    draw(model, two, chunks[:1], batched=True)
    model.forward([model.row(two, model.enter(two, entries(2, 77)[1]))])  # too late: thrown away
    assert same(draw(model, one, chunks[1:], batched=True), draw(model, two, chunks[1:], batched=True), 0)
    late = model.init_state((32, 32), wish)
    shown = draw(model, late, chunks[1:], batched=True)  # four pictures where one was due
    assert [f.tag for f in shown] == [4, 5, 6, 7, 8]


def test_a_stream_that_was_warmed_has_seen_every_fill_of_its_window_and_forgot(model: WanVideo) -> None:
    wish = Settings("a cat", strength=0.7, steps=2)
    seen: set[tuple[int, int]] = set()  # rows, frames in their caches
    inner = model._model  # pyright: ignore[reportPrivateUsage]

    class Watched:
        window = inner.window

        def __getattr__(self, name: str) -> Any:
            return getattr(inner, name)

        def denoise(self, rows: list[Any]) -> Any:
            seen.add((len(rows), len(kept(rows[0].cache.frames, inner.window)[0])))
            return inner.denoise(rows)

    model._model = Watched()  # type: ignore[assignment]
    try:
        warmed = model.warm((32, 32), wish, 2)
    finally:
        model._model = inner  # pyright: ignore[reportPrivateUsage]
    assert {full for _, full in seen} == {0, 1, 2}  # the block itself is the third frame of the window
    chunks = entries(5)
    expected = draw(model, model.init_state((32, 32), wish), chunks, batched=True)
    assert same(draw(model, warmed, chunks, batched=True), expected, 0)


def test_memory_is_flat(model: WanVideo) -> None:
    state = model.init_state((32, 32), Settings("a cat", steps=1, strength=0.5))

    def held() -> int:
        past = sum(r.latent.nbytes for rows in state.past for r in rows)
        return state.vae.nbytes + sum(c.nbytes for c in state.caches) + past

    draw(model, state, entries(6), batched=True)
    before = held()
    more = [Entry(tuple(picture(i) for i in range(4)), (0, 1, 2, 3))] * 20
    draw(model, state, more, batched=True)
    assert held() == before
    assert state.frames == 26


def test_a_new_prompt_keeps_recaches_or_forgets(model: WanVideo) -> None:
    def after(switch: str, prompt: str = "dog") -> tuple[WanVideoState, list[Finished]]:
        state = model.init_state((32, 32), Settings("a cat", steps=1, strength=0.8))
        draw(model, state, entries(5), batched=True)
        wish = Settings(prompt, steps=1, strength=0.8, switch=switch)  # type: ignore[arg-type]
        model.adjust(state, wish)
        more = [Entry(tuple(picture(90 + i) for i in range(4)), (0, 1, 2, 3))]
        return state, draw(model, state, more, batched=True)

    found = {s: after(s) for s in ("keep", "recache", "reset")}
    keys = {s: state.caches[0].keys for s, (state, _) in found.items()}
    assert found["keep"][0].caches[0].frames == found["recache"][0].caches[0].frames or set(
        found["keep"][0].caches[0].frames
    ) == {0, 4, 5}
    assert found["reset"][0].caches[0].frames == (5,)
    assert not torch.equal(keys["keep"], keys["recache"])
    same_words, _ = after("recache", "a cat")
    kept, _ = after("keep", "a cat")
    assert torch.equal(same_words.caches[0].keys, kept.caches[0].keys)  # no new prompt: nothing happens


def test_recaching_with_the_old_prompt_gives_the_old_cache(model: WanVideo) -> None:
    """Without a sink and within the window, the frames again give the same keys."""
    state = model.init_state((32, 32), Settings("a cat", steps=1, strength=0.8))
    draw(model, state, entries(3), batched=True)
    again = model._recached(state, state.voice.text)[0]  # pyright: ignore[reportPrivateUsage]
    assert again.frames == state.caches[0].frames
    assert float((again.keys - state.caches[0].keys).abs().max()) < 1e-5


def test_levels_never_reach_pure_noise() -> None:
    assert levels(1.0, 2) == (pytest.approx(0.9375), pytest.approx(0.625))
    for steps in (1, 2, 3, 4):
        falling = levels(1.0, steps)
        assert sorted(falling, reverse=True) == list(falling)
        assert falling[0] < 1


def test_folders_with_faults_are_named(tmp_path: Path, folder: Path) -> None:
    assert isinstance(stream_models.load(str(folder), how=stream_models.How(device="cpu")), WanVideo)
    with pytest.raises(ValueError, match="there is no such folder"):
        stream_models.check(str(tmp_path / "none"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="neither unet/"):
        stream_models.load(str(tmp_path / "empty"))
    bad = tmp_path / "bad"
    (bad / "transformer").mkdir(parents=True)
    with pytest.raises(ValueError, match="is no model's configuration"):
        load_wan_video(bad)
    (bad / "transformer" / "config.json").write_text(json.dumps(TRANSFORMER))
    with pytest.raises(ValueError, match="has no weights"):
        load_wan_video(bad)
    save_file({"a": torch.zeros(1)}, bad / "generator.safetensors")
    with pytest.raises(ValueError, match="does not hold this Wan"):
        load_wan_video(bad)
    with pytest.raises(ValueError, match="has no engine onnx"):
        stream_models.load(str(folder), how=stream_models.How(engine="onnx"))


# ---------------------------------------------------------------- the small decoder


def decoder() -> TinyDecoder:
    torch.manual_seed(0)
    return TinyDecoder(4, (16, 8, 8, 8)).eval().requires_grad_(False)


def offline(net: TinyDecoder, latents: torch.Tensor) -> torch.Tensor:
    """All frames at once: each block's past is its input, one frame later."""
    x = latents
    for layer in net.decoder:
        if type(layer).__name__ == "MemBlock":
            x = layer(x, torch.cat([torch.zeros_like(x[:1]), x[:-1]]))
        else:
            x = layer(x)
    return x[3:].clamp(0, 1) * 2 - 1


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_the_small_decoders_stream_equals_the_whole_for_any_chunking(chunks: list[int]) -> None:
    net = decoder()
    latents = torch.randn(sum(chunks), 4, 4, 4, generator=torch.Generator().manual_seed(1))
    state, parts = DecoderState(), list[torch.Tensor]()
    for part in latents.split(chunks):
        pictures, state = net.step(part, state)
        parts.append(pictures)
    assert sum(len(p) for p in parts) == 4 * sum(chunks) - 3
    with torch.inference_mode():
        assert float((torch.cat(parts) - offline(net, latents)).abs().max()) <= 1e-5


def test_the_small_decoder_loads_strictly_and_takes_the_autoencoders_place(
    tmp_path: Path, folder: Path
) -> None:
    path = tmp_path / "taew.safetensors"
    net = TinyDecoder(16, (16, 8, 8, 8))
    save_file({**net.state_dict(), "encoder.0.weight": torch.zeros(1)}, path)
    loaded = load_tiny_decoder(path)
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in net.state_dict().items())
    plain = load_wan_video(folder)
    fast = WanVideo("fast", plain._model, plain._vae, plain._encode, loaded)  # pyright: ignore[reportPrivateUsage]
    shown = draw(fast, fast.init_state((32, 32), Settings("a cat", steps=1)), entries(3), batched=True)
    assert [f.tag for f in shown] == list(range(9))
    for wrong in (
        {"a": torch.zeros(1)},
        {k: v for k, v in net.state_dict().items() if k != "decoder.3.conv.0.bias"},
    ):
        save_file(wrong, path)
        with pytest.raises(ValueError, match="does not hold a TAEHV decoder"):
            load_tiny_decoder(path)
    path.write_bytes(b"short")
    with pytest.raises(ValueError, match="no readable safetensors"):
        load_tiny_decoder(path)
