"""IMP, RATE, CAPS, STILL, LOOK and FETCH: what is packed is read again, and anything else is refused in words."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from penstock.transport.importance import GRID_H, GRID_W, Source, grid_of
from penstock.transport.rt_messages import (
    Caps,
    Fetch,
    Imp,
    Look,
    NoStill,
    Rate,
    Roi,
    Still,
    parse,
    parse_fetch,
)

u16, u32 = st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)


@given(arrays(np.uint8, (GRID_H, GRID_W)), u16, u32, st.integers(0, 60_000), st.sampled_from(Source))
@settings(max_examples=30, deadline=None)
def test_imp_comes_back(grid: Any, seq: int, at: int, ttl: int, source: Source) -> None:
    data = Imp(grid, 0.8, seq, at, ttl, 24, source).pack()
    assert len(data) == 160
    back = parse(data)
    assert isinstance(back, Imp)
    assert (back.grid == grid).all()
    assert back.confidence == pytest.approx(0.8, abs=0.002)
    assert (back.seq, back.capture_ms, back.ttl_ms, back.dqp_max, back.source) == (seq, at, ttl, 24, source)


@pytest.mark.parametrize(
    "message",
    [
        Rate(7, 300, 2.5, 2000),
        Caps(Roi.x264, 3, 123456, True, True, 3000, 640, 480, 9, 24),
        Caps(Roi.canvas, 3, 123456, True, True, 3000, 640, 480, 9, 24, 300, 60, True),
        Rate(7, 80, 2.0, 0, 12, 1.0),
        Still(4, 99, (0.25, 0.5, 0.25, 0.5), 160, 240, b"RIFF"),
        NoStill(4, "nothing is there"),
        Look(None, 0),
    ],
)
def test_the_others_come_back(message: Any) -> None:
    back = parse(message.pack())
    if isinstance(back, Still):
        assert back.box == pytest.approx(message.box, abs=2e-5)
        assert back.data == message.data
    else:
        assert back == message


@given(st.binary(max_size=400))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse(data)


@given(st.integers(1, 6), st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_body_of_a_known_type_is_read_or_refused(kind: int, body: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse(bytes([1, kind]) + body)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "version and type are missing"),
        (b"\2\1", "version 2; 1 is taken"),
        (b"\1\x63", "unknown type 99; known: 1 IMP"),
        (Imp(grid_of([]), 0.5).pack()[:-1], "IMP of 159 bytes; it has 160"),
        (Imp(grid_of([]), 0.5, dqp_max=52).pack(), "dqp_max 52; at most 51"),
        (Rate(fps=30).pack()[:8] + b"\0\0\0\0" + b"\0\0", "RATE"),
        (Look((1.0, 0.0, 1.0, 1.0)).pack(), "LOOK at an empty box"),
        (Still(1, 0, (0, 0, 1, 1), 9000, 10, b"x").pack(), "9000x10 pixels"),
    ],
)
def test_what_is_wrong_is_told(data: bytes, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse(data)


def test_fetch_comes_back() -> None:
    fetch = Fetch(3, (0.1, 0.2, 0.3, 0.4), 12345, 9000, 800)
    back = parse_fetch(fetch.fields())
    assert back.box == pytest.approx(fetch.box)
    assert (back.id, back.capture_ms, back.max_bytes, back.deadline_ms) == (3, 12345, 9000, 800)
    assert parse_fetch(Fetch(3, (0, 0, 1, 1)).fields()) == Fetch(3, (0, 0, 1, 1))


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=5),
    max_leaves=8,
)


@given(
    json
    | st.fixed_dictionaries(
        {}, optional={key: json for key in ("id", "box", "capture_ms", "max_bytes", "deadline_ms")}
    )
)
@settings(max_examples=200, deadline=None)
def test_any_fetch_is_read_or_refused(message: Any) -> None:
    with contextlib.suppress(ValueError):
        fetch = parse_fetch(message)
        assert 500 <= fetch.max_bytes <= 60_000


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"box": [2, 0, 1, 1]}, "has nothing of the picture"),
        ({"box": "all"}, "box must be"),
        ({"max_bytes": 10**9}, "max_bytes is 1000000000; an integer from 500 to 60000"),
        ({"id": True}, "id is True"),
        ({"deadline_ms": 0}, "deadline_ms is 0"),
    ],
)
def test_a_wrong_fetch_names_its_field(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_fetch({"id": 1, "box": [0, 0, 1, 1]} | change)
