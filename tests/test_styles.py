import asyncio
from typing import Any

import numpy as np
import pytest
from fakes import Collected, FakeContext, feed
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.models import styles
from penstock.pipeline.frame import Gap, VideoFrame
from penstock.pipeline.pixels import i420_from_rgb
from penstock.pipeline.stage import DeadlineMissed
from penstock.stages.restyle import Restyle, RestyleParams
from pydantic import ValidationError

SCENE = np.random.default_rng(3).integers(0, 256, (6, 8, 3), np.uint8).repeat(20, 0).repeat(20, 1)  # blocks


def stage(**params: Any) -> Restyle:
    made = Restyle(None, RestyleParams(**params))
    made.ctx = FakeContext()
    return made


def run(made: Restyle, *frames: VideoFrame) -> list[VideoFrame]:
    out = Collected()

    async def main() -> None:
        for frame in frames:
            await feed(made, "video", frame, out)

    asyncio.run(main())
    return out.of("video")


@given(st.sampled_from(sorted(styles.STYLES)), st.integers(1, 70), st.integers(1, 70), st.floats(0, 1))
@settings(max_examples=120, deadline=None)
def test_every_style_takes_any_size(style: str, height: int, width: int, detail: float) -> None:
    image = np.random.default_rng(height * 71 + width).integers(0, 256, (height, width, 3), np.uint8)
    before = image.copy()
    styled = styles.apply(style, image, 1.0, detail)
    assert styled.shape == image.shape
    assert styled.dtype == np.uint8
    assert np.array_equal(image, before), "a style must not write to the picture it is given"


@pytest.mark.parametrize("style", sorted(styles.STYLES))
def test_a_style_changes_the_picture_and_strength_is_between(style: str) -> None:
    full = styles.apply(style, SCENE).astype(int)
    half = styles.apply(style, SCENE, 0.5).astype(int)
    assert np.abs(full - SCENE).mean() > 5
    assert np.abs(half - (full + SCENE) / 2).max() <= 1


@pytest.mark.parametrize("style", sorted(styles.STYLES))
def test_a_still_scene_stays_still_under_noise(style: str) -> None:
    """Sensor noise of ±3 levels must not come out larger than a style's contrast explains."""
    rng = np.random.default_rng(5)
    calm, shown = None, []
    for _ in range(12):
        noise = rng.integers(-3, 4, SCENE.shape)
        noisy = np.clip(SCENE.astype(int) + noise, 0, 255).astype(np.uint8)
        calm = styles.steady(calm, noisy, 0.8)
        shown.append(styles.apply(style, calm).astype(int))
    flicker = np.abs(shown[-1] - shown[-2]).mean()
    raw = [styles.apply(style, np.clip(SCENE.astype(int) + rng.integers(-3, 4, SCENE.shape), 0, 255).astype(np.uint8))
           for _ in range(2)]  # fmt: skip
    assert flicker < 1.5
    assert flicker < 0.8 * np.abs(raw[0].astype(int) - raw[1]).mean() + 0.05


def test_steady_takes_what_moves_at_once() -> None:
    black, white = np.zeros((40, 40, 3), np.uint8), np.full((40, 40, 3), 255, np.uint8)
    assert np.array_equal(styles.steady(black, white, 0.9), white)


def test_an_unknown_style_is_named_with_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"'glow'; there are: none, pencil, neon"):
        styles.apply("glow", SCENE)
    with pytest.raises(ValidationError):
        RestyleParams.model_validate({"style": "glow"})


def test_the_stage_offers_every_style() -> None:
    names = RestyleParams.model_json_schema()["properties"]["style"]["enum"]
    assert set(names) == {"none", *styles.STYLES}


@pytest.mark.parametrize("params", [{"style": "none"}, {"style": "neon", "strength": 0}])
def test_none_passes_the_very_frame(params: dict[str, Any]) -> None:
    frame = VideoFrame(pts=1, image=SCENE)
    assert run(stage(**params), frame)[0] is frame


def test_a_restyled_frame_keeps_its_times_in_either_format() -> None:
    rgb = VideoFrame(pts=7, deadline=10**12, epoch=3, image=SCENE)
    i420 = VideoFrame(pts=7, deadline=10**12, epoch=3, image=i420_from_rgb(SCENE), format="i420")
    for frame in (rgb, i420):
        (made,) = run(stage(style="pencil"), frame)
        assert (made.pts, made.deadline, made.epoch, made.format) == (7, 10**12, 3, "rgb24")
        assert made.image.shape == SCENE.shape
        assert np.ptp(made.image, axis=2).max() == 0, "pencil is gray"


def test_a_missed_deadline_drops_the_frame_only() -> None:
    made = stage(style="noir")

    class LatePool:
        calls = 0

        async def call(self, fn: Any, *args: Any, deadline: int = 0) -> Any:
            self.calls += 1
            if self.calls == 1:
                raise DeadlineMissed
            return fn(*args)

    pool = LatePool()
    made.ctx.pool = lambda name=None: pool  # type: ignore[method-assign]
    shown = run(made, VideoFrame(pts=1, image=SCENE), VideoFrame(pts=2, image=SCENE))
    assert [f.pts for f in shown] == [2]


def test_a_gap_forgets_the_scene_before() -> None:
    dark = np.full((40, 40, 3), 100, np.uint8)
    dim = np.full((40, 40, 3), 104, np.uint8)  # a change so small that it would be taken for noise
    made = stage(style="thermal", steady=0.9)
    run(made, VideoFrame(pts=1, image=dark))
    made.gap("video", Gap(pts=2, until=3), Collected())
    (after,) = run(made, VideoFrame(pts=4, image=dim))
    assert np.array_equal(after.image, styles.apply("thermal", dim))
