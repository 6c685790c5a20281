"""Regions really reach the encoders: quality moves to where the map says."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from penstock.pipeline.clock import SECOND
from penstock.transport.importance import ImportanceMap, grid_of
from penstock.transport.roi_encoder import MOST_REGIONS, RoiEncoder

W, H, FPS = 320, 240, 5


def noise(n: int) -> np.ndarray:
    """A texture that moves: expensive everywhere."""
    rng = np.random.default_rng(1)
    big = rng.integers(0, 255, (H // 4 + 40, W // 4 + 40)).astype(np.uint8)
    image = np.kron(big, np.ones((4, 4), np.uint8))
    return image[3 * n : 3 * n + H, 2 * n : 2 * n + W]


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / (np.mean((a.astype(float) - b) ** 2) + 1e-9)))


def coded(codec: str, found: ImportanceMap | None, kbps: int = 150) -> tuple[float, float, int]:
    """(PSNR inside the left third, PSNR of the right third, bytes)."""
    encoder = RoiEncoder(codec, kbps * 1000, lambda: found, FPS)
    decoder = av.CodecContext.create({"H264": "h264", "VP8": "libvpx"}[codec], "r")
    inside, outside, size = [], [], 0
    for n in range(12):
        y = noise(n)
        picture = av.VideoFrame.from_ndarray(
            np.concatenate([y, np.full((H // 2, W), 128, np.uint8)]), format="yuv420p"
        )
        picture.pts, picture.time_base = n * 90_000 // FPS, Fraction(1, 90_000)
        data, _ = encoder.encode(picture, n == 0, n * SECOND // FPS)
        size += len(data)
        if not data:
            continue
        for frame in decoder.decode(av.Packet(data)):  # type: ignore[attr-defined]
            got = frame.to_ndarray()[:H]
            inside.append(psnr(y[:, : W // 3], got[:, : W // 3]))
            outside.append(psnr(y[:, -W // 3 :], got[:, -W // 3 :]))
    return float(np.mean(inside[2:])), float(np.mean(outside[2:])), size


@pytest.mark.parametrize("codec", ["H264", "VP8"])
def test_quality_moves_into_the_region(codec: str) -> None:
    plain_in, plain_out, plain_size = coded(codec, None)
    found = ImportanceMap(grid_of([(0, 0, 1 / 3, 1)]), 1.0, 12 * SECOND)
    in_, out, size = coded(codec, found)
    assert in_ > plain_in + 2
    assert out < plain_out - 1
    assert size < 1.6 * plain_size  # rate control still holds, though these are twelve pictures only


def test_a_map_without_confidence_changes_no_byte() -> None:
    found = ImportanceMap(grid_of([(0, 0, 0.3, 1)]), 0.2, 12 * SECOND)
    assert coded("H264", found) == coded("H264", None)


def test_any_grid_fits_the_regions_that_there_are() -> None:
    checkers = np.zeros((9, 16), np.uint8)
    checkers[::2, ::2] = 255
    checkers[1::2, 1::2] = 128
    encoder = RoiEncoder("VP8", 100_000, lambda: ImportanceMap(checkers, 1.0, 0), FPS)
    picture = av.VideoFrame(W, H, "yuv420p")
    picture.pts, picture.time_base = 0, Fraction(1, 90_000)
    data, key = encoder.encode(picture, True, 0)
    assert key
    assert data
    assert MOST_REGIONS == 16


def test_another_size_or_rate_goes_on() -> None:
    found = ImportanceMap(grid_of([(0, 0, 0.3, 1)]), 1.0, 0)
    encoder = RoiEncoder("H264", 100_000, lambda: found, 2)
    for n, (w, h) in enumerate([(320, 240), (240, 180), (320, 240)]):
        picture = av.VideoFrame(w, h, "yuv420p")
        picture.pts, picture.time_base = n * 45_000, Fraction(1, 90_000)
        assert encoder.encode(picture, False, 0)[0]
    encoder.fps = 10
    picture = av.VideoFrame(320, 240, "yuv420p")
    picture.pts, picture.time_base = 200_000, Fraction(1, 90_000)
    assert encoder.encode(picture, False, 0)[1]  # a new encoder begins with a keyframe
    assert encoder.opened == 2


def test_an_unknown_codec_is_told() -> None:
    with pytest.raises(ValueError, match="there are H264 and VP8"):
        RoiEncoder("AV1", 1000, lambda: None)
