"""The similarity filter and the motion-aware noise controller."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.models.motion_noise import LAMBDA, MotionNoise
from penstock.models.similarity import MAX_SKIPS, SimilarityFilter, thumbnail, worst_change

RNG = np.random.default_rng(0)
SCENE = RNG.integers(60, 200, (480, 640, 3), np.uint8)


def test_a_still_scene_with_a_webcams_noise_is_skipped() -> None:
    filter = SimilarityFilter()
    assert not filter.skip(thumbnail(SCENE))
    for _ in range(5):
        noisy = np.clip(SCENE + RNG.normal(0, 6, SCENE.shape), 0, 255).astype(np.uint8)
        assert filter.skip(thumbnail(noisy))


def test_a_mouth_that_moves_is_not_skipped() -> None:
    mouth = SCENE.copy()
    mouth[300:330, 290:350] = 20  # 0.6 % of the picture
    a, b = thumbnail(SCENE), thumbnail(mouth)
    cosine = float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
    assert cosine > 0.98  # StreamDiffusion's filter would skip it
    filter = SimilarityFilter()
    filter.skip(a)
    assert not filter.skip(b)


def test_slow_drift_adds_up() -> None:
    filter = SimilarityFilter()
    flat = np.full((48, 64), 100, np.float32)
    assert not filter.skip(flat)
    drawn = [not filter.skip(flat + i) for i in range(1, 10)]  # one level a picture
    assert sum(drawn) == 3


def test_at_most_ten_are_skipped_in_a_row() -> None:
    filter = SimilarityFilter()
    seen = thumbnail(SCENE)
    drawn = [not filter.skip(seen) for _ in range(3 * (MAX_SKIPS + 1))]
    assert [i for i, d in enumerate(drawn) if d] == [0, MAX_SKIPS + 1, 2 * (MAX_SKIPS + 1)]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300))
def test_thumbnails_of_any_size_are_alike(height: int, width: int) -> None:
    seen = thumbnail(np.full((height, width, 3), 77, np.uint8))
    assert seen.shape == (48, 64)
    assert worst_change(seen, np.full((48, 64), 77, np.float32)) < 1


def test_noise_falls_with_motion_and_comes_back() -> None:
    motion = MotionNoise(0.0, 0.5)
    still = np.zeros((48, 64), np.float32)
    assert [motion.update(still) for _ in range(3)] == [0.5] * 3
    moved = motion.update(still + 127.5 * 0.2)  # a change of exactly sigma
    assert moved == pytest.approx((1 - LAMBDA) * 0.5)
    levels = [motion.update(still + 127.5 * 0.2) for _ in range(12)]
    assert levels[-1] == pytest.approx(0.5, abs=1e-3)
    motion.reset()
    assert motion.update(still) == 0.5  # a cut is no motion
