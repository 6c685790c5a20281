"""What a question needs, and where in the picture the detectors find it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from penstock.pipeline.clock import SECOND
from penstock.pipeline.frame import VideoFrame
from penstock.stages.focus_detect import Detectors, FocusDetect
from penstock.stages.importance import COLUMNS, ROWS
from penstock.stages.question_rules import need


@pytest.mark.parametrize(
    ("question", "what"),
    [
        ("What does the sign say?", "text"),
        ("Read me the serial number", "text"),
        ("which price is on the label", "text"),
        ("Is anything moving?", "motion"),
        ("What is he doing?", "motion"),
        ("How many people are in the room?", "whole"),
        ("Describe the scene", "whole"),
        ("Hello there", "unknown"),
        ("", "unknown"),
    ],
)
def test_a_question_tells_what_it_needs(question: str, what: str) -> None:
    assert need(question) == what


def desk() -> np.ndarray:
    return np.full((480, 640), 120, np.uint8)


def with_code() -> np.ndarray:
    gray = desk()
    code = cv2.QRCodeEncoder.create().encode("penstock")
    code = cv2.resize(code, None, fx=6, fy=6, interpolation=cv2.INTER_NEAREST)
    h, w = code.shape
    gray[24 : 56 + h, 44 : 76 + w] = 250  # its quiet zone
    gray[40 : 40 + h, 60 : 60 + w] = code
    return gray


def test_a_code_is_found_where_it_is() -> None:
    cells = Detectors().codes(with_code())
    assert cells is not None
    assert cells[1, 2] == 1
    assert not cells[5:].any()
    assert Detectors().codes(desk()) is None


def test_print_is_found_before_codes() -> None:
    gray = with_code()
    for row in range(3):
        cv2.putText(gray, "SERIAL 4711-0815", (380, 360 + 30 * row), cv2.FONT_HERSHEY_SIMPLEX, 0.7, 20, 2)
    detectors = Detectors()
    found = [detectors.text(gray, k * SECOND) for k in range(3)]
    assert [f and (f["confidence"], f["found"]) for f in found] == [(0.6, True)] * 3
    assert found[0] is not None
    x, y, w, h = found[0]["boxes"][0]
    assert x * 640 <= 385
    assert (x + w) * 640 >= 550
    assert y * 480 <= 350
    assert (y + h) * 480 >= 415
    assert Detectors().text(desk(), 0) is None


def test_motion_is_found_though_the_camera_pans() -> None:
    rng = np.random.default_rng(3)
    wall = cv2.resize(
        rng.integers(60, 180, (60, 90)).astype(np.uint8), (720, 480), interpolation=cv2.INTER_CUBIC
    ).astype(np.uint8)
    found = Detectors()
    first, second = wall[:, :640].copy(), wall[:, 8:648].copy()
    first[300:380, 400:480] = 250
    second[300:380, 480:560] = 250
    assert found.motion(first) is None  # nothing to compare with
    cells = found.motion(second)
    assert cells is not None
    y, x = np.unravel_index(int(cells.argmax()), cells.shape)
    assert 5 <= y <= 7
    assert 9 <= x <= 14


def test_the_hint_says_how_little_it_is_worth() -> None:
    stage = FocusDetect()
    stage._detectors = Detectors()  # pyright: ignore[reportPrivateUsage]
    frame = VideoFrame(pts=0, image=np.repeat(with_code()[..., None], 3, axis=2))
    found = stage._find(frame, "text")  # pyright: ignore[reportPrivateUsage]
    assert found is not None
    assert (found["confidence"], found["source"], found["found"]) == (0.6, "detector", True)
    assert len(found["grid"]) == ROWS * COLUMNS
