"""Crops and contexts: the stamp survives the codec, a picture comes together again, and what is no crop changes nothing."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction
from typing import Any, Literal

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.clock import MS, SECOND
from penstock.pipeline.units import VideoFormat
from penstock.transport.crop_track import (
    FRESH,
    STRIP,
    Cells,
    Composer,
    Image,
    Part,
    PartFit,
    Stamp,
    pasted,
    pixels_of,
    read_stamp,
    stamped,
)
from penstock.transport.importance import GRID_H, GRID_W

W, H = 320, 240


def photo(width: int = W, height: int = H, seed: int = 0) -> Image:
    rough = np.random.default_rng(seed).integers(0, 255, (height // 4, width // 4, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(rough, (width, height), interpolation=cv2.INTER_NEAREST), np.uint8)


def coded(image: Image, codec: str = "libx264", bitrate_bps: int = 60_000) -> av.VideoFrame:
    """The picture after an encoder that has few bits for it, the fifth of a still."""
    encoder: Any = av.CodecContext.create(codec, "w")
    encoder.width, encoder.height, encoder.pix_fmt = image.shape[1], image.shape[0], "yuv420p"
    encoder.time_base, encoder.bit_rate = Fraction(1, 10), bitrate_bps
    encoder.options = {"preset": "veryfast"} if codec == "libx264" else {"deadline": "realtime"}
    decoder: Any = av.CodecContext.create("h264" if codec == "libx264" else "vp8", "r")
    shown: list[av.VideoFrame] = []
    for n in range(5):
        frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
        frame.pts = n
        for packet in encoder.encode(frame):
            shown += decoder.decode(packet)
    for packet in encoder.encode(None):
        shown += decoder.decode(packet)
    return shown[-1]


def frame_of(image: Image, pts: int = 0) -> av.VideoFrame:
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
    frame.pts, frame.time_base = pts, Fraction(1, 1000)
    return frame


def luma(frame: av.VideoFrame) -> Image:
    return np.asarray(frame.to_ndarray(format="yuv420p")[: frame.height], np.uint8)


@st.composite
def places(draw: st.DrawFn) -> Cells:
    w, h = draw(st.integers(7, GRID_W)), draw(st.integers(2, GRID_H))
    return draw(st.integers(0, GRID_W - w)), draw(st.integers(0, GRID_H - h)), w, h


@given(places())
@settings(max_examples=40, deadline=None)
def test_a_stamp_says_where_its_crop_belongs(cells: Cells) -> None:
    left, top, right, bottom = pixels_of(cells, W, H)
    crop = photo()[top:bottom, left:right]
    assert read_stamp(luma(frame_of(stamped(crop, cells)))) == Stamp(cells, bottom - top)


@pytest.mark.parametrize("codec", ["libx264", "libvpx"])
@pytest.mark.parametrize("scale", [1.0, 0.75, 0.5])
def test_it_survives_few_bits_and_a_smaller_size(codec: str, scale: float) -> None:
    crop = stamped(photo(224, 144), (3, 2, 6, 3))
    small = cv2.resize(crop, (round(224 * scale), round(160 * scale)), interpolation=cv2.INTER_AREA)
    found = read_stamp(luma(coded(np.asarray(small, np.uint8), codec)))
    assert found is not None
    assert found.cells == (3, 2, 6, 3)
    assert found.rows == round(144 * scale)


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_a_camera_s_picture_has_no_stamp(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 2, (H, W)).astype(np.uint8) * 255
    assert read_stamp(noise) is None
    assert read_stamp(np.kron(noise[: H // 8, : W // 8], np.ones((8, 8), np.uint8)).astype(np.uint8)) is None
    assert read_stamp(np.zeros((rng.integers(1, 64), rng.integers(1, 256)), np.uint8)) is None


@pytest.mark.parametrize("pixels", ["rgb24", "i420"])
def test_a_whole_picture_comes_together(pixels: Literal["rgb24", "i420"]) -> None:
    whole, cells = photo(), (4, 3, 8, 4)
    left, top, right, bottom = pixels_of(cells, W, H)
    small = np.asarray(cv2.resize(whole, (160, 120), interpolation=cv2.INTER_AREA), np.uint8)
    form = VideoFormat(W, H, 30)
    counts = Counter[str]()
    main, crops = PartFit(form, pixels, counts), PartFit(form, pixels, counts, only_crops=True)
    composer = Composer(pixels, 500 * MS)
    context = main(frame_of(stamped(small, None)))
    crop = crops(frame_of(stamped(whole[top:bottom, left:right], cells), 40))
    assert context is not None
    assert crop is not None
    assert (context.stamp, crop.at) == (Stamp(None, 120), 40 * MS)
    alone = composer(context, SECOND)
    assert alone is not None
    assert alone.sharp is None
    frame = composer(crop, SECOND + 40 * MS)
    assert frame is not None
    assert (frame.width, frame.height, frame.format) == (W, H, pixels)
    assert frame.sharp == (4 / GRID_W, 3 / GRID_H, 8 / GRID_W, 4 / GRID_H)
    assert frame.deadline == frame.pts + 500 * MS
    shown = luma(frame_of(frame.image)) if pixels == "rgb24" else frame.image[:H]
    true = luma(frame_of(whole))
    error = np.abs(shown.astype(int) - true)
    assert error[top + 4 : bottom - 4, left + 4 : right - 4].mean() < 3  # what matters is as it was
    assert error[: top - 4].mean() > 8  # … and the rest is not
    # a context while crops come is told with the next of them
    assert composer(context, SECOND + 50 * MS) is None
    assert composer(context, SECOND + 40 * MS + FRESH) is not None


def test_whole_pictures_pass_as_they_are_and_end_the_crops() -> None:
    main, composer = PartFit(VideoFormat(W, H), "rgb24", Counter()), Composer("rgb24", 500 * MS)
    whole = main(frame_of(photo()))
    assert whole is not None
    assert whole.stamp is None
    first = composer(whole, 0)
    assert first is not None
    assert first.sharp is None
    crop = Part(0, photo(160, 80), Stamp((0, 0, 8, 3), 80))
    assert composer(crop, 100 * MS) is not None
    assert composer(crop, 90 * MS) is None  # time does not run back
    again = composer(whole, 200 * MS)
    assert again is not None
    assert np.array_equal(again.image, whole.image)


def test_a_crop_without_a_place_or_a_context_changes_nothing() -> None:
    counts, others = Counter[str](), Counter[str]()
    crops, main = PartFit(None, "rgb24", counts, only_crops=True), PartFit(None, "rgb24", others)
    assert crops(frame_of(photo())) is None  # a second camera, or a hostile sender
    assert crops(frame_of(stamped(photo(160, 120), None))) is None
    assert main(frame_of(stamped(photo(160, 120), (0, 0, 8, 4)))) is None
    assert counts == {"misplaced": 2}
    assert others == {"misplaced": 1}
    assert Composer("rgb24", SECOND)(Part(0, photo(160, 80), Stamp((0, 0, 8, 3), 80)), 0) is None


@given(places(), st.integers(2, 400), st.integers(2, 400), st.integers(1, 300), st.integers(1, 300))
@settings(max_examples=40, deadline=None)
def test_a_crop_of_any_size_fits_its_place(cells: Cells, w: int, h: int, width: int, height: int) -> None:
    base = np.zeros((height * 2, width * 2, 3), np.uint8)
    out = pasted(base, np.full((h, w, 3), 200, np.uint8), cells, "rgb24")
    left, top, right, bottom = pixels_of(cells, width * 2, height * 2)
    assert out.shape == base.shape
    assert (out[top:bottom, left:right] == 200).all()
    assert out.sum() == 600 * (bottom - top) * (right - left)


def test_the_strip_is_as_the_protocol_says() -> None:
    image = stamped(np.zeros((40, 128, 3), np.uint8), (3, 2, 6, 3))
    blocks = (image[40::8, ::8, 0] > 0).astype(int)
    assert STRIP == 16
    assert "".join(map(str, blocks.ravel())) == "10110110" + "00110010" + "01010010" + "11111101"
