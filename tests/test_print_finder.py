"""Print is found on plain surfaces, whatever the compression left of it, and texture is not taken for it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import skimage.data
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from penstock.pipeline.clock import SECOND
from penstock.stages import print_finder
from penstock.stages.print_finder import Box, Print, PrintMemory, common, find_print

Gray = NDArray[np.uint8]
CARD = (300, 160, 480, 290)  # left, top, right, bottom


def photograph(name: str) -> Gray:
    gray = np.asarray(cv2.cvtColor(getattr(skimage.data, name)(), cv2.COLOR_RGB2GRAY), np.uint8)
    return np.asarray(cv2.resize(gray, (640, 480), interpolation=cv2.INTER_AREA), np.uint8)


def with_card(paper: int, ink: int, lines: int = 4) -> Gray:
    """A card with lines of print on a photograph."""
    gray = photograph("astronaut")
    left, top, right, bottom = CARD
    gray[top:bottom, left:right] = paper
    for k in range(lines):
        place = left + 12, top + 30 + 26 * k
        cv2.putText(gray, "No 4711 EUR 12", place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, ink, 1, cv2.LINE_AA)
    return gray


def compressed(gray: Gray, quality: int) -> Gray:
    data = cv2.imencode(".jpg", gray, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE), np.uint8)


def card_box() -> Box:
    left, top, right, bottom = CARD
    return left / 640, top / 480, (right - left) / 640, (bottom - top) / 480


@pytest.mark.parametrize(("paper", "ink"), [(200, 60), (60, 200), (140, 70)])
@pytest.mark.parametrize("quality", [90, 20])
@pytest.mark.parametrize("zoom", [1, 2])
def test_a_card_with_print_is_found_whole(paper: int, ink: int, quality: int, zoom: int) -> None:
    gray = cv2.resize(compressed(with_card(paper, ink), quality), None, fx=zoom, fy=zoom)
    found = find_print(np.asarray(gray, np.uint8))
    assert len(found) == 1
    _, _, w, h = found[0].box
    assert common(found[0].box, card_box()) > 0.9
    assert w * h < 2 * card_box()[2] * card_box()[3]
    assert found[0].lines >= 3


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee"])
@pytest.mark.parametrize("quality", [90, 15])
def test_a_photograph_without_print_has_none(name: str, quality: int) -> None:
    assert find_print(compressed(photograph(name), quality)) == []


def test_noise_and_a_single_bar_are_no_print() -> None:
    assert find_print(np.random.default_rng(1).integers(0, 255, (480, 640)).astype(np.uint8)) == []
    bar = np.full((480, 640), 200, np.uint8)
    bar[200:212, 100:260] = 40
    assert find_print(bar) == []


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 90), st.integers(1, 120))))
@settings(max_examples=40, deadline=None)
def test_any_picture_gives_boxes_inside_it(gray: Gray) -> None:
    for one in find_print(gray):
        x, y, w, h = one.box
        assert min(x, y) >= 0
        assert min(w, h) > 0
        assert max(x + w, y + h) <= 1 + 1e-9


HERE, THERE = (0.25, 0.25, 0.25, 0.25), (0.75, 0.75, 0.125, 0.125)  # exact in binary


def test_trust_grows_with_looks_and_fades_without() -> None:
    memory = PrintMemory()
    told = [memory.look([Print(HERE, lines)], k * SECOND) for k, lines in enumerate((2, 2, 2, 2))]
    assert [t and t[1] for t in told] == [0.45, 0.45, 0.6, 0.6]
    faded = [memory.look([], (4 + k) * SECOND) for k in range(10)]
    assert [f and f[1] for f in faded if f] == sorted((f[1] for f in faded if f), reverse=True)
    assert faded[0] is not None
    assert faded[-1] is None


def test_a_weak_surface_is_marked_beside_a_strong_one_lest_it_is_starved() -> None:
    memory = PrintMemory()
    assert memory.look([Print(HERE, 5)], 0) == ([HERE], 0.6)
    assert memory.look([Print(HERE, 5), Print(THERE, 2)], SECOND) == ([HERE, THERE], 0.6)
    assert memory.look([Print(HERE, 5)], 3 * SECOND) == ([HERE], 0.6)  # seen once, it is soon forgotten


def test_a_box_grows_at_once_and_shrinks_slowly() -> None:
    memory = PrintMemory()
    memory.look([Print(HERE, 5)], 0)
    grown = memory.look([Print((0.125, 0.25, 0.5, 0.25), 5)], SECOND)
    assert grown is not None
    assert grown[0][0] == (0.125, 0.25, 0.5, 0.25)
    shrunk = memory.look([Print(HERE, 5)], 2 * SECOND)
    assert shrunk is not None
    assert 0.25 < shrunk[0][0][2] < 0.5


def test_print_all_over_is_nowhere() -> None:
    assert PrintMemory().look([Print((0.0, 0.0, 0.9, 0.9), 9)], 0) is None


def test_of_a_wall_of_lines_only_so_many_are_compared_with_each_other() -> None:
    wall = np.full((480, 640), 220, np.uint8)
    for y in range(6, 460, 18):
        for x in range(8, 600, 42):
            wall[y : y + 6, x : x + 18] = 40
    seen: list[int] = []
    groups = print_finder._groups  # pyright: ignore[reportPrivateUsage]

    def count(lines: NDArray[np.float64]) -> list[list[int]]:
        seen.append(len(lines))
        return groups(lines)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(print_finder, "_groups", count)
        found = find_print(wall)
    assert max(seen) == print_finder.MOST_LINES
    assert found
