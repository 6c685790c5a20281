"""Which rung of a shared output does a viewer get?"""

from hypothesis import given
from hypothesis import strategies as st
from penstock.pipeline.clock import MS, SECOND
from penstock.transport.rung_choice import AGAIN, LEAST_BPS, RungChoice, fitting, rate_bps


def test_a_viewer_starts_on_the_highest_rung_that_fits():
    assert [RungChoice(bps, 0).rung for bps in (60e3, 300e3, 450e3, 5e6)] == [0, 1, 2, 3]


def test_it_falls_below_its_rungs_least_and_rises_above_the_next_with_room_between():
    choice = RungChoice(500e3, 0)
    assert choice.step(430e3, 430e3, SECOND) == 2
    assert choice.step(390e3, 450e3, 2 * SECOND) == 1
    assert choice.step(600e3, 450e3, 3 * SECOND) == 1, "not at once: it would swing"
    assert choice.step(500e3, 450e3, 20 * SECOND) == 1
    assert choice.step(520e3, 450e3, 21 * SECOND) == 2


def test_a_viewer_whom_others_hold_down_tries_the_next_rung_and_comes_back_when_it_is_too_much():
    choice = RungChoice(200e3, 0)
    now = 0
    while choice.rung == 1:
        choice.step(300e3, 180e3, now)
        now += 100 * MS
    assert (now, choice.is_trying) == (3100 * MS, True)
    assert choice.step(320e3, 450e3, now + SECOND) == 2
    assert choice.step(200e3, 450e3, now + 2 * SECOND) == 1, "its estimate was cut"
    back = now + 2 * SECOND
    tries = [t for t in range(back, back + 20 * SECOND, 100 * MS) if choice.step(300e3, 180e3, t) == 2]
    assert tries[0] - back >= AGAIN


def test_a_try_that_carries_stays():
    choice = RungChoice(200e3, 0)
    for now in range(0, 4 * SECOND, 100 * MS):
        choice.step(300e3, 180e3, now)
    assert choice.step(460e3, 450e3, 5 * SECOND) == 2
    assert not choice.is_trying
    assert choice.step(460e3, 450e3, 30 * SECOND) == 2


def test_one_who_asks_for_keyframes_again_and_again_falls():
    choice = RungChoice(2e6, 0)
    for k in range(5):
        choice.asked(k * SECOND)
    assert choice.rung == 2
    seldom = RungChoice(2e6, 0)
    for k in range(20):
        seldom.asked(k * 4 * SECOND)
    assert seldom.rung == 3


@given(st.lists(st.tuples(st.floats(0, 5e6), st.floats(0, 3e6), st.integers(0, SECOND)), max_size=200))
def test_whatever_comes_the_rung_exists_and_holds_others_down_by_less_than_its_bounds(
    steps: list[tuple[float, float, int]],
):
    choice, now = RungChoice(300e3, 0), 0
    for bps, brings, passed in steps:
        now += passed
        before = choice.rung
        rung = choice.step(bps, brings, now)
        assert 0 <= rung < len(LEAST_BPS)
        assert rung <= before + 1
        if not choice.is_trying:
            assert bps >= 0.9 * LEAST_BPS[rung]
        choice.failed(now)
        choice.asked(now)


def test_a_rung_is_encoded_at_its_slowest_viewers_rate_within_its_bounds():
    assert rate_bps(2, [2e6, 700e3], 3_000_000) == 700_000
    assert rate_bps(2, [100e3], 3_000_000) == 450_000
    assert rate_bps(1, [2e6], 3_000_000) == 450_000
    assert rate_bps(3, [9e6], 3_000_000) == 3_000_000
    assert fitting(-5) == 0
