"""CircuitBreaker: a policy on given times."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.breaker import CircuitBreaker
from penstock.pipeline.clock import SECOND


def opened(at: int = 0) -> CircuitBreaker:
    breaker = CircuitBreaker(failures=2, cooldown=SECOND, longest_cooldown=4 * SECOND)
    for _ in range(2):
        assert breaker.allow(at)
        breaker.failed(at)
    return breaker


def test_it_opens_after_failures_in_a_row_only() -> None:
    breaker = CircuitBreaker(failures=2, cooldown=SECOND)
    for _ in range(5):
        assert breaker.allow(0)
        breaker.failed(0)
        assert breaker.allow(0)
        breaker.succeeded()
    assert breaker.state(0) == "closed"
    assert opened().state(0) == "open"
    assert not opened().allow(SECOND - 1)


def test_half_open_lets_one_attempt_through() -> None:
    breaker = opened()
    assert breaker.state(SECOND) == "half_open"
    assert breaker.allow(SECOND)
    assert not breaker.allow(SECOND)
    breaker.succeeded()
    assert breaker.state(SECOND) == "closed"
    assert breaker.allow(SECOND)


def test_each_failed_probe_doubles_the_pause_up_to_the_longest() -> None:
    breaker, now, pauses = opened(), SECOND, list[int]()
    for _ in range(4):
        assert breaker.allow(now)
        breaker.failed(now)
        start = now
        while breaker.state(now) != "half_open":
            now += SECOND
        pauses.append((now - start) // SECOND)
    assert pauses == [2, 4, 4, 4]


def test_an_abandoned_probe_frees_its_place() -> None:
    breaker = opened()
    assert breaker.allow(SECOND)
    breaker.abandoned()
    assert breaker.state(SECOND) == "half_open"
    assert breaker.allow(SECOND)


def test_the_service_may_ask_for_a_pause_but_not_for_ever() -> None:
    breaker = CircuitBreaker(failures=9, cooldown=SECOND, longest_cooldown=10 * SECOND)
    breaker.failed(0, retry_after=7 * SECOND)
    assert not breaker.allow(7 * SECOND - 1)
    assert breaker.allow(7 * SECOND)
    breaker.failed(7 * SECOND, retry_after=10**6 * SECOND)
    assert breaker.allow(17 * SECOND)


@given(st.lists(st.tuples(st.integers(0, 3 * SECOND), st.sampled_from("sfa")), max_size=60))
@settings(max_examples=60, deadline=None)
def test_it_never_stays_shut_for_longer_than_the_longest_pause(steps: list[tuple[int, str]]) -> None:
    breaker, now = CircuitBreaker(2, SECOND, 4 * SECOND), 0
    for passed, outcome in steps:
        now += passed
        if breaker.allow(now):
            assert breaker.state(now) != "open"
            match outcome:
                case "s":
                    breaker.succeeded()
                case "f":
                    breaker.failed(now)
                case _:
                    breaker.abandoned()
    assert breaker.allow(now + 4 * SECOND)


def test_senseless_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one failure"):
        CircuitBreaker(failures=0)
    with pytest.raises(ValueError, match="0 < cooldown"):
        CircuitBreaker(cooldown=0)
