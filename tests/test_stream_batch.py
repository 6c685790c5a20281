"""Stream Batch and RCFG on tiny checkpoints of diffusers' true format, written by the test."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from penstock.models.static_rows import StaticRows
from penstock.models.stream_batch import BatchState, Guidance, StreamBatch, load_stream_batch, timesteps
from penstock.models.stream_model import Picture, Settings

diffusers = pytest.importorskip("diffusers", reason="needs the extra: hub")
transformers = pytest.importorskip("transformers", reason="needs the extra: hub")
pytestmark = pytest.mark.filterwarnings("ignore")  # of diffusers and transformers, about their own futures
torch.set_num_threads(1)


def write_checkpoint(folder: Path, prediction: str = "epsilon") -> tuple[Path, Path]:
    """An SD-Turbo in small: the same files, the same keys. Returns: the model's folder and the autoencoder's."""
    torch.manual_seed(0)
    model, tiny = folder / "tiny-turbo", folder / "tiny-taesd"
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=8,
        norm_num_groups=8,
    )
    unet.save_pretrained(model / "unet")
    vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )
    vae.save_pretrained(tiny)
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz")]
    vocabulary = {t: i for i, t in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    words = model / "tokenizer"
    words.mkdir(parents=True)
    (words / "vocab.json").write_text(json.dumps(vocabulary))
    (words / "merges.txt").write_text("#version: 0.2\n")
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 16, "pad_token": "<|endoftext|>"}
    config |= {"unk_token": "<|endoftext|>", "bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>"}
    (words / "tokenizer_config.json").write_text(json.dumps(config))
    text = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=len(vocabulary),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=16,
            bos_token_id=len(vocabulary) - 2,
            eos_token_id=len(vocabulary) - 1,
        )
    )
    text.save_pretrained(model / "text_encoder")
    schedule = diffusers.LCMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction
    )
    schedule.save_pretrained(model / "scheduler")
    return model, tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_checkpoint(tmp_path_factory.mktemp("turbo"))


@cache
def model_of(folders: tuple[Path, Path], guidance: Guidance = "self") -> StreamBatch:
    return load_stream_batch(*folders, guidance=guidance)


def pictures(count: int, seed: int = 0) -> list[Picture]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(count)]


def latents(
    model: StreamBatch, state: BatchState, frames: list[Picture], *, batched: bool
) -> list[torch.Tensor]:
    """The finished latent of each picture."""
    found: list[torch.Tensor] = []

    def go(picture: Picture | None) -> None:
        rows = model.rows(state, picture)
        results = model.forward(rows)
        found.extend(d.x0 for r, d in zip(rows, results, strict=True) if r.last)
        model.commit(state, rows, results)

    for frame in frames:
        go(frame)
        while not batched and state.flights:
            go(None)
    while state.flights:
        go(None)
    return found


@pytest.mark.parametrize("guidance", ["self", "onetime", "full"])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_stream_batch_equals_one_picture_after_the_other(
    folders: tuple[Path, Path], guidance: Guidance, steps: int
) -> None:
    model = model_of(folders, guidance)
    wish = Settings("a cat", "dog", strength=0.8, steps=steps, guidance=1.6)
    a, b = (
        latents(model, model.init_state((64, 64), wish), pictures(5), batched=batched)
        for batched in (True, False)
    )
    assert len(a) == len(b) == 5
    assert max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True)) <= 5e-5
    assert float((a[0] - a[1]).abs().max()) > 0.01


def test_rows_of_strangers_do_not_mix(folders: tuple[Path, Path]) -> None:
    model = model_of(folders, "full")
    wishes = [
        Settings("a", strength=0.7, steps=2, seed=1),
        Settings("b", "c", strength=0.5, steps=3, guidance=2.0),
    ]
    together = [model.init_state((64, 64), w) for w in wishes]
    alone = [model.init_state((64, 64), w) for w in wishes]
    for t in range(4):
        plans = [model.rows(s, pictures(4, i)[t]) for i, s in enumerate(together)]
        results = model.forward([row for plan in plans for row in plan])
        for plan, state, other, i in zip(plans, together, alone, range(2), strict=True):
            mine, results = results[: len(plan)], results[len(plan) :]
            rows = model.rows(other, pictures(4, i)[t])
            expected = model.forward(rows)
            for x, y in zip(mine, expected, strict=True):
                assert float((x.x0 - y.x0).abs().max()) <= 1e-5
            model.commit(state, plan, mine)
            model.commit(other, rows, expected)


class Counting:
    """Counts the rows that go through a UNet."""

    def __init__(self, unet: Any) -> None:
        self._unet, self.rows = unet, 0
        self.config, self.device, self.dtype = unet.config, unet.device, unet.dtype

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        self.rows += len(x)
        return self._unet(x, *args, **kwargs)


@pytest.mark.parametrize(
    ("guidance", "gamma", "rows"), [("self", 1.5, 4), ("onetime", 1.5, 5), ("full", 1.5, 8)]
)
def test_guidance_costs_n_n_plus_one_and_two_n_rows(
    folders: tuple[Path, Path], guidance: Guidance, gamma: float, rows: int
) -> None:
    model = load_stream_batch(*folders, guidance=guidance)
    counting = Counting(model._unet)  # pyright: ignore[reportPrivateUsage]
    model._unet = counting  # pyright: ignore[reportPrivateUsage]
    wish = Settings("a", "b", strength=0.8, steps=4, guidance=gamma)
    latents(model, model.init_state((64, 64), wish), pictures(1), batched=False)
    assert counting.rows == rows


def test_full_guidance_is_ordinary_cfg(folders: tuple[Path, Path]) -> None:
    """One step by hand: ε = ε_negative + γ (ε_prompt − ε_negative), then LCM's boundary conditions."""
    model = model_of(folders, "full")
    wish = Settings("a", "b", strength=0.6, steps=1, guidance=1.7)
    state = model.init_state((64, 64), wish)
    found = latents(model, state, pictures(1), batched=False)[0]
    unet, vae, voice = model._unet, model._vae, state.voice  # pyright: ignore[reportPrivateUsage]
    with torch.inference_mode():
        pixels = torch.from_numpy(pictures(1)[0]).permute(2, 0, 1)[None] / 127.5 - 1
        t = voice.times[0]
        a = model._alphas[t]  # pyright: ignore[reportPrivateUsage]
        x = a.sqrt() * vae.encode(pixels).latents + (1 - a).sqrt() * voice.noise[:1]
        no = unet(x, t, voice.negative[None]).sample
        yes = unet(x, t, voice.prompt[None]).sample
        x0 = (x - (1 - a).sqrt() * (no + 1.7 * (yes - no))) / a.sqrt()
        s = torch.tensor(t * 10.0)
        expected = s / (s**2 + 0.25).sqrt() * x0 + 0.25 / (s**2 + 0.25) * x
    assert float((found - expected[0]).abs().max()) < 1e-4


def test_self_guidance_of_one_is_the_prompt_alone(folders: tuple[Path, Path]) -> None:
    drawn = [
        latents(
            model_of(folders, g),
            model_of(folders, g).init_state((64, 64), Settings("a", "b", strength=0.8, guidance=1.0)),
            pictures(2),
            batched=True,
        )
        for g in ("self", "full")
    ]
    assert all(torch.equal(x, y) for x, y in zip(*drawn, strict=True))


@pytest.mark.parametrize("guidance", ["self", "full"])
def test_a_warmed_size_asks_for_no_new_capture(folders: tuple[Path, Path], guidance: Guidance) -> None:
    model = model_of(folders, guidance)
    static = StaticRows(model._predict)  # pyright: ignore[reportPrivateUsage]
    model._draw = static  # pyright: ignore[reportPrivateUsage] - as on a GPU, the CPU in place of graphs
    wish = Settings("ab", "c", strength=0.8, steps=2, guidance=1.5)
    warmed = model.warm((64, 64), wish, 4)
    known = set(static.shapes)
    frames = pictures(4)
    a = latents(model, warmed, frames, batched=True)
    states = [model.init_state((64, 64), wish) for _ in range(2)]
    for _ in range(3):  # four rows, eight with their negatives
        plans = [model.rows(s, frames[0]) for s in states]
        results = model.forward([row for plan in plans for row in plan])
        for state, plan in zip(states, plans, strict=True):
            mine, results = results[: len(plan)], results[len(plan) :]
            model.commit(state, plan, mine)
    assert static.shapes == known
    b = latents(model, model.init_state((64, 64), wish), frames, batched=True)
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_timesteps_fall_on_the_grid() -> None:
    assert timesteps(1.0, 4) == (999, 759, 499, 239)
    assert timesteps(0.6, 2) == (599, 299)
    for strength in (0.0, 0.3, 1.0):
        for steps in (1, 2, 3, 4):
            times = timesteps(strength, steps)
            assert len(set(times)) == steps
            assert sorted(times, reverse=True) == list(times)
            assert all(0 <= t < 1000 and t % 20 == 19 for t in times)


def test_v_prediction_is_read_from_the_checkpoint(tmp_path: Path, folders: tuple[Path, Path]) -> None:
    v = load_stream_batch(*write_checkpoint(tmp_path, "v_prediction"))
    e = model_of(folders)
    wish = Settings("a", strength=0.8)
    a, b = (latents(m, m.init_state((64, 64), wish), pictures(1), batched=False)[0] for m in (v, e))
    assert float((a - b).abs().max()) > 0.01  # the same weights, read otherwise


def test_wrong_and_truncated_checkpoints_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.models import modeling_utils

    warned: list[str] = []
    monkeypatch.setattr(modeling_utils.logger, "warning", warned.append)
    with pytest.raises(ValueError, match="no model in diffusers' layout"):
        load_stream_batch(tmp_path / "none", tmp_path / "none")
    model, tiny = write_checkpoint(tmp_path)
    weights = model / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:2000])
    with pytest.raises(ValueError, match="no model in diffusers' layout"):
        load_stream_batch(model, tiny)
    assert not warned, "the error alone is told"
