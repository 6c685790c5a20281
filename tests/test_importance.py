"""The grid, its strength over time, and the rectangles that encoders are given."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from penstock.pipeline.clock import SECOND
from penstock.transport.importance import (
    GRID_H,
    GRID_W,
    HALF_LIFE,
    LEVELS,
    TTL,
    ImportanceMap,
    Source,
    clip_box,
    grid_of,
    regions,
    smoothed,
)

grids = arrays(np.uint8, (GRID_H, GRID_W))
anything = st.floats(allow_nan=True, allow_infinity=True)


def corner(confidence: float, at: int = 0) -> ImportanceMap:
    return ImportanceMap(grid_of([(0, 0, 0.25, 0.25)]), confidence, at)


@pytest.mark.parametrize(
    ("confidence", "steps"), [(1.0, 24), (0.8, 24), (0.79, 12), (0.6, 12), (0.5, 5), (0.4, 5), (0.39, 0)]
)
def test_less_confidence_dares_fewer_steps(confidence: float, steps: float) -> None:
    assert corner(confidence).dqp(0) == steps


def test_a_stale_map_fades_into_uniform() -> None:
    found = corner(1.0)
    assert found.dqp(TTL) == 24
    assert found.dqp(TTL + HALF_LIFE) == 12
    assert found.dqp(TTL + 2 * HALF_LIFE) == 6
    assert found.dqp(TTL + 5 * HALF_LIFE) == 0


def test_a_flat_map_is_uniform() -> None:
    assert ImportanceMap(np.full((GRID_H, GRID_W), 200, np.uint8), 1.0, 0).dqp(0) == 0


@given(grids, st.integers(2, 2000), st.integers(2, 2000), st.integers(2, 16))
@settings(max_examples=60, deadline=None)
def test_regions_cover_the_picture_and_give_each_cell_its_step(
    grid: np.ndarray, width: int, height: int, most: int
) -> None:
    found = regions(grid, 24.0, width, height, most)
    assert len(found) <= most
    last = found[-1]
    assert (last.top, last.bottom, last.left, last.right, last.dqp) == (0, height, 0, width, 24.0)
    for r in found:
        assert 0 <= r.top <= r.bottom <= height
        assert 0 <= r.left <= r.right <= width
        assert 0 <= r.dqp <= 24


@given(grids)
@settings(max_examples=40, deadline=None)
def test_with_room_the_first_region_of_each_cell_has_its_own_step(grid: np.ndarray) -> None:
    width, height = GRID_W * 10, GRID_H * 10
    found = regions(grid, 24.0, width, height, GRID_W * GRID_H + 1)
    steps = np.rint(grid.astype(np.float32) * (LEVELS / 255))
    for row in range(GRID_H):
        for column in range(GRID_W):
            y, x = row * 10 + 5, column * 10 + 5
            first = next(r for r in found if r.top <= y < r.bottom and r.left <= x < r.right)
            assert first.dqp == pytest.approx(24 * (1 - steps[row, column] / LEVELS))


@given(st.tuples(anything, anything, anything, anything))
def test_any_box_is_clipped_or_refused(box: tuple[float, float, float, float]) -> None:
    inside = clip_box(box)
    if inside is not None:
        x, y, w, h = inside
        assert 0 <= x < x + w <= 1 + 1e-9
        assert 0 <= y < y + h <= 1 + 1e-9
        assert grid_of([inside]).any()


def test_boxes_become_all_cells_that_they_touch() -> None:
    grid = grid_of([(0.5 / GRID_W, 0, 1 / GRID_W, 1 / GRID_H)])
    assert grid[0].tolist()[:3] == [255, 255, 0]
    assert not grid[1:].any()
    assert grid_of([(0.5, 0.5, 0.01, 0.01)], soft=True)[4, 7] == 127


def test_attention_is_averaged_with_what_came_before() -> None:
    old = ImportanceMap(grid_of([(0, 0, 0.1, 0.1)]), 0.9, 0, source=Source.attention)
    new = ImportanceMap(grid_of([(0.9, 0.9, 0.1, 0.1)]), 0.9, SECOND // 2, source=Source.attention)
    mixed = smoothed(old, new)
    assert mixed.grid[0, 0] == mixed.grid[-1, -1] == 255
    long_after = ImportanceMap(new.grid, 0.9, 60 * SECOND, source=Source.attention)
    assert smoothed(old, long_after) is long_after
