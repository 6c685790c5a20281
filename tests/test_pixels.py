import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.frame import VideoFrame
from penstock.pipeline.pixels import (
    i420_from_rgb,
    i420_planes,
    pad_even,
    rgb_from_i420,
    to_i420,
    to_rgb,
    with_rgb,
)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 255))
@settings(max_examples=40, deadline=None)
def test_a_plain_colour_comes_back_within_rounding(height: int, width: int, level: int) -> None:
    image = np.full((height, width, 3), (level, 255 - level, 128), np.uint8)
    back = rgb_from_i420(i420_from_rgb(image))
    assert back.shape == (height + height % 2, width + width % 2, 3)
    assert int(np.abs(back.astype(int) - pad_even(image)).max()) <= 4


def test_black_and_white_are_limited_range() -> None:
    assert i420_from_rgb(np.zeros((2, 2, 3), np.uint8)).tolist() == [[16, 16], [16, 16], [128, 128]]
    assert i420_from_rgb(np.full((2, 2, 3), 255, np.uint8))[0, 0] == 235


def test_padding_repeats_the_edge_and_even_pictures_are_left_alone() -> None:
    odd = np.arange(9, dtype=np.uint8).reshape(3, 3)
    assert pad_even(odd).tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [6, 7, 8, 8], [6, 7, 8, 8]]
    even = np.zeros((4, 6, 3), np.uint8)
    assert pad_even(even) is even


def test_frames_keep_their_own_picture_where_no_conversion_is_needed() -> None:
    rgb = VideoFrame(pts=5, deadline=9, epoch=2, image=np.zeros((4, 6, 3), np.uint8))
    i420 = VideoFrame(pts=0, image=to_i420(rgb), format="i420")
    assert to_rgb(rgb) is rgb.image
    assert to_i420(i420) is i420.image
    assert (i420.width, i420.height) == (6, 4)
    again = with_rgb(i420, to_rgb(i420))
    assert (again.format, again.width, again.height) == ("rgb24", 6, 4)


def test_planes_are_views_of_the_picture() -> None:
    image = np.zeros((6, 4), np.uint8)
    for plane, value in zip(i420_planes(image), (1, 2, 3), strict=True):
        plane[:] = value
    assert image.reshape(-1).tolist() == [1] * 16 + [2] * 4 + [3] * 4


@pytest.mark.parametrize("shape", [(5, 4), (6, 3), (6, 4, 3)])
def test_a_shape_that_is_not_i420_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="is not i420"):
        rgb_from_i420(np.zeros(shape, np.uint8))
