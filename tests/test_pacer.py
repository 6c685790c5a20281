"""The leaky bucket and the picture's shape, on given times."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.clock import MS, SECOND
from penstock.transport.pacer import DRAIN, FAST, MAX_AGE, MAX_BYTES, MAX_WAIT, SLOW, Pacer
from penstock.transport.picture_rate import (
    BITS_PER_PIXEL,
    GROW_AFTER,
    LOWEST_FPS,
    SCALES,
    FrameGate,
    PictureRate,
)

SIZE = 1200


def drain(pacer: Pacer[int], now: int) -> list[tuple[int, int]]:
    """(when, packet) until nothing waits."""
    out = [(now, p) for p in pacer.pop(now)]
    while (wake := pacer.wake(now)) is not None:
        assert wake > now
        now = wake
        out += [(now, p) for p in pacer.pop(now)]
    return out


def test_a_usual_picture_leaves_at_once():
    pacer: Pacer[int] = Pacer(1_000_000)
    now = SECOND
    for picture in range(30):
        for k in range(4):
            pacer.push("video", k, 1000, now)
        assert [when for when, _ in drain(pacer, now)] == [now] * 4, picture
        now += SECOND // 30


def test_a_keyframe_is_spread_at_two_and_a_half_times_the_rate_slower_when_congested():
    for congested, factor in ((False, FAST), (True, SLOW)):
        pacer: Pacer[int] = Pacer(1_000_000)
        pacer.congested = congested
        for k in range(50):
            pacer.push("video", k, SIZE, 0)
        left = drain(pacer, 0)
        assert [p for _, p in left] == list(range(50))
        took = left[-1][0] / SECOND
        assert 0.7 < took / ((50 * SIZE * 8 - 40_000) / (factor * 1_000_000)) < 1.15


def test_repeats_leave_before_the_picture_and_audio_is_counted():
    pacer: Pacer[str] = Pacer(300_000)
    for _ in range(10):
        pacer.push("video", "v", SIZE, 0)
    assert len(pacer.pop(0)) == 3
    pacer.push("again", "r", SIZE, MS)
    assert pacer.pop(40 * MS)[0] == "r"
    before = pacer.delay(40 * MS)
    pacer.spent(2 * SIZE, 40 * MS)
    assert pacer.delay(40 * MS) > before


def test_what_waits_is_bounded_in_bytes_and_age():
    pacer: Pacer[int] = Pacer(100_000)
    for k in range(1000):
        pacer.push("video", k, SIZE, 0)
    assert pacer.waiting <= MAX_BYTES
    assert pacer.dropped == 1000 - MAX_BYTES // SIZE
    pacer.pop(MAX_AGE + 1)
    assert pacer.waiting == 0


def test_a_queue_on_the_way_is_drained_at_the_rate_itself():
    pacer: Pacer[int] = Pacer(1_000_000)
    pacer.congested = pacer.draining = True
    assert pacer.rate_bps == DRAIN * 1_000_000


def test_what_was_made_for_a_higher_rate_is_shed_as_a_whole():
    pacer: Pacer[int] = Pacer(2_000_000)
    for k in range(50):
        pacer.push("again" if k % 5 == 0 else "video", k, SIZE, 0)
    assert pacer.shed(0) == 0
    pacer.target_bps = 200_000
    assert pacer.delay(0) > MAX_WAIT
    assert pacer.shed(0) == 50
    assert (pacer.waiting, pacer.dropped) == (0, 50)
    # what has left at the higher rate is not held against the lower one for long
    assert pacer.delay(0) < 300 * MS


def test_with_patience_a_picture_may_take_longer():
    pacer: Pacer[int] = Pacer(200_000)
    for k in range(40):
        pacer.push("video", k, SIZE, 0)
    assert MAX_WAIT < pacer.delay(0) < 2 * MAX_WAIT
    pacer.patience = 2.0
    assert pacer.shed(0) == 0
    pacer.patience = 1.0
    assert pacer.shed(0) == 40


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 50), st.integers(1, 1500)), max_size=100),
    st.integers(50_000, 3_000_000),
)
def test_each_packet_leaves_or_is_counted_and_the_rate_holds(pushes: list[tuple[int, int]], bps: int) -> None:
    pacer: Pacer[int] = Pacer(bps)
    now = sent = left = 0
    for gap_ms, size in pushes:
        now += gap_ms * MS
        pacer.push("video", size, size, now)
        for p in pacer.pop(now):
            sent += p
            left += 1
    left += len(drain(pacer, now))
    assert left + pacer.dropped == len(pushes)
    assert pacer.waiting == 0
    assert sent <= now / SECOND * bps * FAST / 8 + max(3 * SIZE, bps / 8 * 0.04) + 1500


def test_less_rate_takes_pictures_first_then_size():
    rate = PictureRate()
    full = rate.shape(1_000_000, 640, 480, 0)
    assert (full.width, full.height, full.fps) == (640, 480, 30)
    fewer = rate.shape(100_000, 640, 480, 0)
    assert (fewer.width, fewer.fps) == (640, 100_000 / (640 * 480 * BITS_PER_PIXEL))
    assert 20 < fewer.fps < 30
    least = rate.shape(40_000, 640, 480, 0)
    assert least.width < 640
    assert least.fps >= 10
    huge = rate.shape(20_000, 1920, 1080, 0)
    assert huge.width == round(1920 * SCALES[-1])
    assert huge.fps == LOWEST_FPS


def test_size_comes_back_only_after_lasting_room():
    rate = PictureRate()
    rate.shape(40_000, 640, 480, 0)
    small = rate.shape(2_000_000, 640, 480, SECOND).width
    assert small < 640
    assert rate.shape(30_000, 640, 480, 2 * SECOND).width <= small
    now = 3 * SECOND
    widths = []
    for _ in range(20):
        widths.append(rate.shape(2_000_000, 640, 480, now).width)
        now += GROW_AFTER // 2
    assert widths[0] <= small
    assert widths[-1] == 640
    assert widths == sorted(widths)


def test_sizes_are_even():
    rate = PictureRate()
    for bps in range(20_000, 500_000, 7_000):
        shape = rate.shape(bps, 854, 480, 0)
        assert shape.width % 2 == shape.height % 2 == 0


def test_gate_thins_evenly():
    gate = FrameGate()
    passed = [k for k in range(300) if gate(SECOND + k * SECOND // 30, 15.0)]
    assert 145 <= len(passed) <= 155
    assert max(b - a for a, b in itertools.pairwise(passed)) <= 3
    gate = FrameGate()
    assert sum(gate(SECOND + k * SECOND // 30, 30.0) for k in range(300)) >= 295
