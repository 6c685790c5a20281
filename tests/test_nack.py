"""Lost packets are asked for at once, again after a round trip, and not when they can no longer help."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.clock import MS
from penstock.transport.nack import FIRST_RTT, MAX_HOLD, MAX_MISSING, MIN_HOLD, Nacks
from penstock.transport.sequence import Unwrap


def test_a_gap_is_asked_for_at_once_and_again_until_its_budget_ends():
    nacks = Nacks()
    nacks.received(10, 0)
    nacks.received(13, 0)
    asked: list[int] = []
    now = 0
    while (due := nacks.next_due()) is not None:
        now = due
        if nacks.due(now) == [11, 12]:
            asked.append(now)
    assert asked[0] == 0
    assert len(asked) == 6
    assert all(FIRST_RTT < b - a < 2 * FIRST_RTT for a, b in itertools.pairwise(asked))
    assert now == nacks.limit
    assert nacks.asked == 12
    assert len(nacks) == 0


def test_what_comes_is_not_asked_for_again_and_tells_the_round_trip():
    nacks = Nacks()
    nacks.received(0, 0)
    for k in range(1, 200):
        nacks.received(2 * k, k * 100 * MS)
        assert nacks.due(k * 100 * MS) == [2 * k - 1]
        nacks.received(2 * k - 1, k * 100 * MS + 30 * MS)
        assert nacks.next_due() is None
    assert abs(nacks.rtt - 30 * MS) < 2 * MS
    assert nacks.hold == MIN_HOLD


def test_a_long_round_trip_is_learned_though_it_is_asked_twice():
    nacks = Nacks()
    nacks.received(0, 0)
    for k in range(1, 60):
        start = k * 1000 * MS
        nacks.received(2 * k, start)
        while (due := nacks.next_due()) is not None and due < start + 300 * MS:
            nacks.due(due)
        nacks.received(2 * k - 1, start + 300 * MS)
    assert 200 * MS < nacks.rtt <= 300 * MS
    assert nacks.hold == MAX_HOLD


def test_an_outage_is_not_asked_for():
    nacks = Nacks()
    assert nacks.received(0, 0)
    assert not nacks.received(MAX_MISSING + 2, 0)
    assert nacks.next_due() is None


def test_what_was_given_up_is_forgotten():
    nacks = Nacks()
    nacks.received(0, 0)
    nacks.received(5, 0)
    nacks.forget(4)
    assert nacks.due(0) == [4]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 600), st.integers(0, 50)), max_size=200))
def test_any_arrivals_keep_it_bounded_and_ask_only_for_what_is_missing(arrivals: list[tuple[int, int]]):
    nacks = Nacks()
    seen: set[int] = set()
    now = 0
    for seq, wait in arrivals:
        now += wait * MS
        seen.add(seq)
        nacks.received(seq, now)
        assert not seen & set(nacks.due(now))
        assert len(nacks) <= MAX_MISSING
        assert MIN_HOLD <= nacks.hold <= MAX_HOLD


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 65535), st.lists(st.integers(-3000, 3000), max_size=100))
def test_extended_numbers_follow_any_walk(first: int, steps: list[int]):
    unwrap = Unwrap(16)
    true, newest = first, first
    origin = unwrap(first) - first
    for step in steps:
        true = max(newest - 3000, true + step)
        assert unwrap.peek(true & 0xFFFF) == true + origin
        assert unwrap(true & 0xFFFF) == true + origin
        newest = max(newest, true)
