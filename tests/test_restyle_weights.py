"""The weights that are shipped: small, the ones on the card, and drawing what their teachers draw."""

from __future__ import annotations

import asyncio
from itertools import pairwise

import numpy as np
import pytest
import torch
from fakes import Collected, FakeContext, feed
from penstock.models.restyle_prompt import PHRASES
from penstock.models.stream_model import Picture, Settings
from penstock.models.stream_models import How, load
from penstock.models.tiny_restyle import WEIGHTS, TinyRestyle
from penstock.models.training import teachers
from penstock.pipeline.frame import VideoFrame
from penstock.stages.diffusion import DiffusionStream
from penstock.stages.diffusion_params import DiffusionOptions, DiffusionParams

pytest.importorskip("skimage", reason="needs scikit-image, of the extra: test")
from penstock.models.training import scenes

torch.set_num_threads(1)
SIDE = 128
WEAK: tuple[str, ...] = ()  # styles that the card says are not learned


def psnr(a: Picture, b: Picture) -> float:
    error = np.mean((a.astype(np.float64) - b) ** 2)
    return float(10 * np.log10(255**2 / max(error, 1e-9)))


@pytest.fixture(scope="module")
def portrait() -> Picture:
    """Held out of the training."""
    image = scenes.photograph("astronaut.png", SIDE)
    return (image[:SIDE, :SIDE] * 255).astype(np.uint8)


def draw(picture: Picture, prompt: str, steps: int = 1) -> Picture:
    model = load("tiny-restyle", how=How(device="cpu", engine="torch", precision="fp32"))
    assert isinstance(model, TinyRestyle)
    state = model.init_state((SIDE, SIDE), Settings(prompt, steps=steps))
    done = []
    for _ in range(2 * steps):
        rows = model.rows(state, picture)
        done = model.commit(state, rows, model.forward(rows))
    return done[-1].picture


def test_the_file_is_small() -> None:
    assert WEIGHTS.stat().st_size <= 4_000_000


@pytest.mark.parametrize("style", [s for s in PHRASES if s not in (*WEAK, "identity")])
def test_each_style_is_nearer_to_its_teacher_than_to_the_camera(portrait: Picture, style: str) -> None:
    drawn = draw(portrait, PHRASES[style][0])
    teacher = (teachers.apply(portrait.astype(np.float32) / np.float32(255), style) * 255).astype(np.uint8)
    assert psnr(drawn, teacher) > psnr(portrait, teacher) + 1


@pytest.mark.parametrize("pan", [0, 2])
def test_it_flickers_less_than_its_teacher_standing_and_panning(pan: int) -> None:
    """A noisy camera; watercolor and cartoon, the worst of all before results followed the picture."""
    rng = np.random.default_rng(0)
    photo = scenes.photograph("astronaut.png", SIDE + 32)
    seen = [
        np.clip((photo[:SIDE, t * pan : t * pan + SIDE] + rng.normal(0, 0.02, (SIDE, SIDE, 3))) * 255, 0, 255)
        for t in range(5)
    ]
    frames = [np.asarray(f, np.uint8) for f in seen]
    model = load("tiny-restyle", how=How(device="cpu", engine="onnx", precision="fp32"))
    assert isinstance(model, TinyRestyle)

    def change(video: list[Picture]) -> float:
        pairs = pairwise([p.astype(np.float32) for p in video[1:]])
        return float(np.mean([np.abs(b[:, : SIDE - pan] - a[:, pan:])[8:-8, 8:-8].mean() for a, b in pairs]))

    for style in ("watercolor", "cartoon"):
        state = model.init_state((SIDE, SIDE), Settings(PHRASES[style][0], steps=1))
        ours: list[Picture] = []
        for frame in frames:
            rows = model.rows(state, frame)
            ours += [d.picture for d in model.commit(state, rows, model.forward(rows))]
        theirs = [
            np.asarray(teachers.apply(f.astype(np.float32) / np.float32(255), style) * 255, np.uint8)
            for f in frames
        ]
        assert change(ours) < (1.0 if pan else 0.6) * change(theirs)


def test_without_a_prompt_the_picture_stays(portrait: Picture) -> None:
    assert psnr(draw(portrait, ""), portrait) > 35
    assert psnr(draw(portrait, "purple elephants dancing"), portrait) > 35


def test_the_stage_draws_with_what_is_shipped(portrait: Picture) -> None:
    async def run() -> list[VideoFrame]:
        stage = DiffusionStream(DiffusionOptions(side=SIDE, device="cpu"), DiffusionParams(prompt="sepia"))
        stage.ctx = FakeContext(realtime=False)
        out = Collected()
        await stage.setup()
        await feed(stage, "video", VideoFrame(pts=0, image=portrait), out)
        return out.of("video")

    shown = asyncio.run(run())[0].image
    teacher = (teachers.apply(portrait.astype(np.float32) / np.float32(255), "sepia") * 255).astype(np.uint8)
    assert psnr(shown, teacher) > 24
