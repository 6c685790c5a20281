"""CircuitBreaker: a policy on given times."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.breaker import CircuitBreaker
from penstock.pipeline.clock import SECOND


def failing(breaker: CircuitBreaker, at: int) -> None:
    attempt = breaker.allow(at)
    assert attempt
    breaker.failed(at, attempt)


def opened(at: int = 0) -> CircuitBreaker:
    breaker = CircuitBreaker(failures=2, cooldown=SECOND, longest_cooldown=4 * SECOND)
    failing(breaker, at)
    failing(breaker, at)
    return breaker


def test_it_opens_after_failures_in_a_row_only() -> None:
    breaker = CircuitBreaker(failures=2, cooldown=SECOND)
    for _ in range(5):
        failing(breaker, 0)
        breaker.succeeded(breaker.allow(0))
    assert breaker.state(0) == "closed"
    assert opened().state(0) == "open"
    assert not opened().allow(SECOND - 1)


def test_half_open_lets_one_attempt_through() -> None:
    breaker = opened()
    assert breaker.state(SECOND) == "half_open"
    probe = breaker.allow(SECOND)
    assert probe
    assert not breaker.allow(SECOND)
    breaker.succeeded(probe)
    assert breaker.state(SECOND) == "closed"
    assert breaker.allow(SECOND)


def test_each_failed_probe_doubles_the_pause_up_to_the_longest() -> None:
    breaker, now, pauses = opened(), SECOND, list[int]()
    for _ in range(4):
        failing(breaker, now)
        start = now
        while breaker.state(now) != "half_open":
            now += SECOND
        pauses.append((now - start) // SECOND)
    assert pauses == [2, 4, 4, 4]


def test_an_abandoned_probe_frees_its_place() -> None:
    breaker = opened()
    breaker.abandoned(breaker.allow(SECOND))
    assert breaker.state(SECOND) == "half_open"
    assert breaker.allow(SECOND)


def test_many_attempts_that_fail_at_one_hiccup_are_one_opening() -> None:
    breaker = CircuitBreaker(failures=2, cooldown=SECOND, longest_cooldown=60 * SECOND)
    attempts = [breaker.allow(0) for _ in range(8)]
    for attempt in attempts:
        breaker.failed(0, attempt)
    assert not breaker.allow(SECOND - 1)
    assert breaker.allow(SECOND), "not left alone for a minute"


def test_what_began_before_the_outage_neither_ends_it_nor_frees_anothers_probe() -> None:
    breaker = CircuitBreaker(failures=1, cooldown=SECOND)
    old, other, late = (breaker.allow(0) for _ in range(3))
    failing(breaker, 0)
    breaker.succeeded(old)
    assert breaker.state(0) == "open"
    assert breaker.allow(SECOND)
    breaker.abandoned(other)
    assert not breaker.allow(SECOND), "one probe at a time"
    breaker.failed(SECOND, late, retry_after=9 * SECOND)
    assert breaker.state(9 * SECOND) == "open", "but the service's own wish counts"


def test_the_service_may_ask_for_a_pause_but_not_for_ever() -> None:
    breaker = CircuitBreaker(failures=9, cooldown=SECOND, longest_cooldown=10 * SECOND)
    breaker.failed(0, breaker.allow(0), retry_after=7 * SECOND)
    assert not breaker.allow(7 * SECOND - 1)
    breaker.failed(7 * SECOND, breaker.allow(7 * SECOND), retry_after=10**6 * SECOND)
    assert breaker.allow(17 * SECOND)


@given(
    st.lists(st.tuples(st.integers(0, 3 * SECOND), st.sampled_from("bsfa"), st.integers(0, 9)), max_size=60)
)
@settings(max_examples=60, deadline=None)
def test_it_never_stays_shut_for_longer_than_the_longest_pause(steps: list[tuple[int, str, int]]) -> None:
    """Attempts begin (b) and end in any order."""
    breaker, now, under_way = CircuitBreaker(2, SECOND, 4 * SECOND), 0, list[int]()
    for passed, what, which in steps:
        now += passed
        if what == "b":
            if attempt := breaker.allow(now):
                assert breaker.state(now) != "open"
                under_way.append(attempt)
        elif under_way:
            attempt = under_way.pop(which % len(under_way))
            match what:
                case "s":
                    breaker.succeeded(attempt)
                case "f":
                    breaker.failed(now, attempt)
                case _:
                    breaker.abandoned(attempt)
    while under_way:
        breaker.abandoned(under_way.pop())
    assert breaker.allow(now + 4 * SECOND)


def test_senseless_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one failure"):
        CircuitBreaker(failures=0)
    with pytest.raises(ValueError, match="0 < cooldown"):
        CircuitBreaker(cooldown=0)
