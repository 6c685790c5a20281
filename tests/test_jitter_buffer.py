"""Whatever the network does to packets: frames in order, each at most once, each packet accounted for."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.clock import MS
from penstock.transport.jitter_buffer import (
    CAPACITY,
    HOLD,
    LIMIT,
    PATIENCE,
    REORDER,
    EncodedFrame,
    Packet,
    VideoBuffer,
    begins_keyframe,
)

FRAME = 3000  # ticks of 90 kHz


def frame_of(
    index: int, first: int, size: int, *, key: bool = False
) -> list[tuple[int, int, bytes, bool, bool]]:
    """(seq, timestamp, data, marker, key) of a frame's packets."""
    return [
        (first + k, index * FRAME, b"%d.%d;" % (index, k), k == size - 1, key and k == 0) for k in range(size)
    ]


def packet(made: tuple[int, int, bytes, bool, bool], arrival: int) -> Packet:
    seq, timestamp, data, marker, key = made
    return Packet(seq, timestamp, data, arrival, marker, key)


def feed(buffer: VideoBuffer, packets: list[Packet]) -> list[EncodedFrame]:
    out: list[EncodedFrame] = []
    for p in packets:
        buffer.insert(p)
        out += buffer.pop(p.arrival)
    return out


def test_a_frame_leaves_with_its_marker_and_not_with_the_next_frame():
    buffer = VideoBuffer()
    made = frame_of(0, 0, 3, key=True)
    assert feed(buffer, [packet(made[0], 0), packet(made[2], 0)]) == []
    assert feed(buffer, [packet(made[1], 1)]) == [EncodedFrame(b"0.0;0.1;0.2;", 0)]
    assert buffer.deadline() is None


def test_a_sender_without_markers_ends_a_frame_by_the_next():
    buffer = VideoBuffer()
    assert feed(buffer, [Packet(0, 0, b"a", 0, key=True), Packet(1, 0, b"b", 0)]) == []
    assert feed(buffer, [Packet(2, FRAME, b"c", 0)]) == [EncodedFrame(b"ab", 0)]


def test_a_filled_hole_lets_all_that_waited_go_at_once():
    buffer = VideoBuffer()
    key, hole, *rest = [frame_of(k, k, 1, key=k == 0)[0] for k in range(10)]
    assert len(feed(buffer, [packet(key, 0)])) == 1
    assert feed(buffer, [packet(p, 10 * MS) for p in rest]) == []
    assert buffer.deadline() == 10 * MS + HOLD
    assert len(feed(buffer, [packet(hole, 60 * MS)])) == 9


def test_a_hole_past_its_deadline_is_skipped_to_the_next_keyframe():
    buffer = VideoBuffer()
    made = [frame_of(k, k, 1, key=k in (0, 8))[0] for k in range(10)]
    feed(buffer, [packet(made[0], 0)])
    assert feed(buffer, [packet(p, 10 * MS) for p in made[2:5]]) == []
    assert buffer.pop(10 * MS + HOLD) == []
    assert buffer.needs_keyframe
    assert buffer.deadline() == 10 * MS + LIMIT
    assert len(buffer) == 3
    assert buffer.pop(10 * MS + LIMIT) == []
    assert len(buffer) == 0
    assert feed(buffer, [packet(p, 700 * MS) for p in made[5:8]]) == []
    after = feed(buffer, [packet(p, 720 * MS) for p in made[8:]])
    assert [f.timestamp // FRAME for f in after] == [8, 9]
    assert not buffer.needs_keyframe
    assert buffer.counts == Counter(delivered=3, dropped=6, lost=1)


def test_a_repeat_that_overtakes_the_keyframe_asked_for_brings_the_picture_back():
    buffer = VideoBuffer()
    made = [frame_of(k, k, 1, key=k == 0)[0] for k in range(10)]
    feed(buffer, [packet(made[0], 0)])
    feed(buffer, [packet(p, 10 * MS) for p in made[2:]])
    assert buffer.pop(10 * MS + HOLD) == []
    assert buffer.needs_keyframe
    assert len(feed(buffer, [packet(made[1], 20 * MS + HOLD)])) == 9
    assert not buffer.needs_keyframe
    assert buffer.counts == Counter(delivered=10)


def test_a_whole_keyframe_behind_a_hole_ends_the_waiting():
    buffer = VideoBuffer()
    made = [frame_of(k, k, 1, key=k in (0, 3))[0] for k in range(5)]
    feed(buffer, [packet(made[0], 0)])
    assert feed(buffer, [packet(p, 0) for p in made[2:4]]) == []
    assert buffer.deadline() == REORDER
    assert [f.timestamp // FRAME for f in buffer.pop(REORDER)] == [3]


def test_padding_is_no_frame():
    buffer = VideoBuffer()
    key, *_ = frame_of(0, 0, 1, key=True)
    padding = [Packet(k, 0, b"", 0) for k in (1, 2)]
    follower = packet(frame_of(1, 3, 1)[0], 0)
    out = feed(buffer, [packet(key, 0), *padding, follower])
    assert [f.timestamp // FRAME for f in out] == [0, 1]
    assert buffer.counts["delivered"] == 4


def test_without_any_keyframe_patience_ends():
    buffer = VideoBuffer()
    made = [frame_of(k, k, 1)[0] for k in range(200)]
    out = [(p[0], f) for p in made for f in feed(buffer, [packet(p, p[0] * 33 * MS)])]
    assert out
    assert out[0][0] * 33 * MS >= PATIENCE
    assert out[0][0] * 33 * MS < PATIENCE + 70 * MS


@pytest.mark.parametrize("jump", [-5000, 5000, 30_000])
def test_a_sender_that_starts_its_numbers_afresh_is_followed(jump: int):
    buffer = VideoBuffer()
    feed(buffer, [packet(frame_of(k, 50_000 + k, 1, key=k == 0)[0], k * MS) for k in range(10)])
    afresh = [packet(frame_of(k, 50_000 + jump + k, 1, key=k == 11)[0], k * MS) for k in range(11, 20)]
    assert len(feed(buffer, afresh)) == 9


def test_keyframes_begin_where_a_decoder_can_begin():
    assert begins_keyframe("VP8", b"\x10\x02\x00\x9d\x01\x2a\x80\x02")
    assert not begins_keyframe("VP8", b"\x11\x02\x00\x9d\x01\x2a")
    assert not begins_keyframe("VP8", b"\x10\x02\x00\x00\x00\x00 a later packet")
    assert not begins_keyframe("VP8", b"")
    assert begins_keyframe("H264", b"\0\0\0\1\x67sps\0\0\0\1\x68pps")
    assert not begins_keyframe("H264", b"\0\0\0\1\x65idr")


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=40),
    keys=st.sets(st.integers(0, 39)),
    fates=st.lists(st.sampled_from(["ok", "ok", "ok", "lost", "twice", "late", "later"]), max_size=60),
    step=st.integers(0, 60),
    start=st.sampled_from([0, 65_530, 2**40]),
)
def test_any_network_gives_whole_frames_in_order_at_most_once(
    sizes: list[int], keys: set[int], fates: list[str], step: int, start: int
):
    sent: list[tuple[int, int, bytes, bool, bool]] = []
    whole: dict[int, bytes] = {}
    for k, size in enumerate(sizes):
        made = frame_of(k, start + len(sent), size, key=k == 0 or k in keys)
        whole[k * FRAME] = b"".join(p[2] for p in made)
        sent += made
    arrivals: list[Packet] = []
    for k, p in enumerate(sent):
        fate = fates[k] if k < len(fates) else "ok"
        delays = {"ok": [0], "lost": [], "twice": [0, 30], "late": [90], "later": [700]}[fate]
        arrivals += [packet(p, (k * step + delay) * MS) for delay in delays]
    arrivals.sort(key=lambda p: p.arrival)
    buffer = VideoBuffer()
    out: list[EncodedFrame] = []
    for p in arrivals:
        while (due := buffer.deadline()) is not None and due <= p.arrival:
            out += buffer.pop(due)
        buffer.insert(p)
        out += buffer.pop(p.arrival)
        counts = buffer.counts
        assert len(buffer) <= CAPACITY
    times = [f.timestamp for f in out]
    assert times == sorted(set(times)), "in order, at most once"
    assert all(f.data == whole[f.timestamp] for f in out), "whole"
    counts = buffer.counts
    fates_of_packets = counts["delivered"] + counts["late"] + counts["duplicate"] + counts["dropped"]
    assert fates_of_packets + len(buffer) == len(arrivals)
    if not set(fates) - {"ok", "twice"} and arrivals and step:
        assert len(out) == len(sizes)
    # with time every packet is delivered or given up
    for _ in range(100):
        if (due := buffer.deadline()) is None:
            break
        buffer.pop(due)
    else:
        raise AssertionError("a deadline that pop does not move")


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 5), st.booleans(), st.booleans()), max_size=300)
)
def test_garbage_numbers_neither_raise_nor_grow(made: list[tuple[int, int, bool, bool]]):
    buffer = VideoBuffer()
    for k, (seq, timestamp, marker, key) in enumerate(made):
        buffer.insert(Packet(seq, timestamp, b"x" * (seq % 3), k * MS, marker, key))
        buffer.pop(k * MS)
        counts = buffer.counts
        assert (
            counts["delivered"] + counts["late"] + counts["duplicate"] + counts["dropped"] + len(buffer)
            == k + 1
        )
        assert len(buffer) <= CAPACITY


def test_more_than_the_capacity_is_given_up():
    buffer = VideoBuffer()
    feed(buffer, [packet(frame_of(0, 0, 1, key=True)[0], 0)])
    feed(buffer, [Packet(2 + k, 9, b"x" * 1200, 1) for k in range(5000)])
    assert len(buffer) <= CAPACITY
    assert buffer.needs_keyframe
