"""EventStreamParser: the same events whatever the packets."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.stages.sse import EventStreamParser, EventTooLong, ServerEvent


def parsed(*pieces: bytes) -> list[ServerEvent]:
    parser = EventStreamParser()
    return [event for piece in pieces for event in parser.feed(piece)]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [("a", "message")]),
        (b"data:a\r\n\r\n", [("a", "message")]),
        (b"data:  a\r\r", [(" a", "message")]),
        (b"\xef\xbb\xbfdata: a\n\n", [("a", "message")]),
        (b"data: a\ndata: b\n\n", [("a\nb", "message")]),
        (b"data\n\n", [("", "message")]),
        (b"data\ndata\n\n", [("\n", "message")]),
        (b": ping\n\n\n\ndata: a\n\n", [("a", "message")]),
        (b"event: error\nid: 7\nretry: 10\ndata: a\n\ndata: b\n\n", [("a", "error"), ("b", "message")]),
        (b"event: lonely\n\ndata: b\n\n", [("b", "message")]),
        (b"data: cut off", []),
        (b"data: no blank line\n", []),
        ("data: h\u2028é\x0b\x85☃\n\n".encode(), [("h\u2028é\x0b\x85☃", "message")]),
        (b"data: \xff\n\n", [("\ufffd", "message")]),
        (b"datax: a\n data: b\n\n", []),
    ],
)
def test_events_are_as_the_specification_says(stream: bytes, events: list[tuple[str, str]]) -> None:
    assert [(e.data, e.name) for e in parsed(stream)] == events
    assert [(e.data, e.name) for e in parsed(*(stream[i : i + 1] for i in range(len(stream))))] == events


STREAMS = st.lists(
    st.sampled_from(
        ["data: é☃", "data:", "data", "event: x", ": c", "\n", "\r\n", "\r", "\n\n", "\ufeff", "{}"]
    ),
    max_size=40,
).map(lambda parts: "".join(parts).encode())


@given(STREAMS, st.lists(st.integers(0, 200), max_size=12))
@settings(max_examples=200, deadline=None)
def test_any_chunking_gives_the_same_events(stream: bytes, cuts: list[int]) -> None:
    ends = sorted({min(cut, len(stream)) for cut in cuts} | {len(stream)})
    pieces = [stream[a:b] for a, b in zip([0, *ends], ends, strict=False)]
    assert b"".join(pieces) == stream
    assert parsed(*pieces) == parsed(stream)


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8")), min_size=1, max_size=5))
@settings(max_examples=100, deadline=None)
def test_what_is_written_is_read(lines: list[str]) -> None:
    stream = "".join(f"data: {line}\n" for line in lines) + "\n"
    assert parsed(stream.encode()) == [ServerEvent("\n".join(lines))]


def test_an_endless_line_or_event_is_refused() -> None:
    with pytest.raises(EventTooLong, match="line"):
        EventStreamParser(100).feed(b"x" * 101)
    parser = EventStreamParser(100)
    with pytest.raises(EventTooLong, match="line"):
        deque((parser.feed(b"x") for _ in range(101)), maxlen=0)
    with pytest.raises(EventTooLong, match="event"):
        EventStreamParser(100).feed(b"data: 123456789\n" * 11)
    parser = EventStreamParser(100)
    assert len([e for _ in range(50) for e in parser.feed(b"data: 123456789\n\n")]) == 50
