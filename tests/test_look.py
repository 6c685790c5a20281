import asyncio

import numpy as np
import pytest
from fakes import Collected, FakeContext, feed
from numpy.typing import NDArray
from penstock.pipeline.clock import SECOND
from penstock.pipeline.frame import EventFrame, VideoFrame
from penstock.pipeline.pixels import i420_from_rgb
from penstock.stages.look import Look


def see(*images: NDArray[np.uint8], every: int = SECOND // 4, i420: bool = False) -> list[EventFrame]:
    stage, out = Look(), Collected(epoch=4)
    stage.ctx = FakeContext()

    async def main() -> None:
        for n, image in enumerate(images):
            picture = i420_from_rgb(image) if i420 else image
            frame = VideoFrame(pts=n * every, image=picture, format="i420" if i420 else "rgb24")
            await feed(stage, "video", frame, out)

    asyncio.run(main())
    return out.of("seen")


def plain(*rgb: int) -> NDArray[np.uint8]:
    return np.full((240, 320, 3), rgb, np.uint8)


def ball(x: int, y: int) -> NDArray[np.uint8]:
    image = plain(60, 60, 60)
    image[y - 20 : y + 20, x - 20 : x + 20] = 230
    return image


@pytest.mark.parametrize("i420", [False, True])
@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((200, 30, 30), "red"),
        ((30, 160, 40), "green"),
        ((30, 60, 200), "blue"),
        ((240, 220, 40), "yellow"),
        ((245, 140, 20), "orange"),
        ((110, 66, 30), "brown"),
        ((140, 50, 200), "purple"),
        ((240, 90, 190), "pink"),
        ((40, 200, 200), "turquoise"),
        ((120, 120, 120), "gray"),
        ((230, 230, 230), "white"),
    ],
)
def test_plain_colours_have_their_common_names(rgb: tuple[int, int, int], name: str, i420: bool) -> None:
    (seen,) = see(plain(*rgb), i420=i420)
    assert seen.name == "seen"
    assert seen.epoch == 4
    assert seen.fields["colour"] == name
    assert f"mostly {name}" in seen.fields["sentence"]


def test_a_black_feed_is_said_to_be_black() -> None:
    (seen,) = see(plain(0, 0, 0))
    assert seen.fields["black"] is True
    assert seen.fields["brightness"] == 0
    assert "covered or off" in seen.fields["sentence"]


def test_brightness_is_the_share_of_white() -> None:
    assert see(plain(51, 51, 51))[0].fields["brightness"] == pytest.approx(0.2, abs=0.005)
    assert "overexposed" in see(plain(255, 255, 255))[0].fields["sentence"]


@pytest.mark.parametrize(
    ("start", "end", "region"),
    [
        ((40, 120), (50, 120), "left"),
        ((280, 120), (270, 120), "right"),
        ((160, 30), (160, 40), "top"),
        ((160, 200), (160, 210), "bottom"),
        ((155, 120), (165, 120), "centre"),
    ],
)
def test_motion_is_seen_where_it_is(start: tuple[int, int], end: tuple[int, int], region: str) -> None:
    _, seen = see(ball(*start), ball(*end))
    assert seen.fields["region"] == region
    assert 0 < seen.fields["motion"] < 0.2


def test_noise_is_not_motion_and_not_frozen() -> None:
    rng = np.random.default_rng(1)
    noisy = [np.clip(ball(160, 120).astype(int) + rng.integers(-8, 9, (240, 320, 3)), 0, 255).astype(np.uint8)
             for _ in range(12)]  # fmt: skip
    for seen in see(*noisy)[1:]:
        assert seen.fields["motion"] == 0
        assert seen.fields["frozen"] is False
        assert "Nothing moves" in seen.fields["sentence"]


def test_a_frozen_feed_is_told_after_two_seconds_and_only_then() -> None:
    seen = see(*[ball(100, 100)] * 10, ball(200, 100))
    assert [s.fields["frozen"] for s in seen] == [False] * 8 + [True] * 2 + [False]
    assert "may be frozen" in seen[9].fields["sentence"]


def test_another_size_of_picture_is_no_error() -> None:
    odd = np.full((33, 57, 3), 90, np.uint8)
    assert len(see(ball(100, 100), odd, odd[:1, :1])) == 3
