"""What one session meets at an endpoint, others need not meet again; what it brought about itself is its own."""

from __future__ import annotations

import pytest
from penstock.pipeline.clock import SECOND, ManualClock
from penstock.stages.endpoint_guard import EndpointGuard
from penstock.stages.endpoint_http import EndpointFailed

DOWN = EndpointFailed("HTTP 503", for_all=True)
REFUSED = EndpointFailed("HTTP 400")


def guards(count: int, clock: ManualClock, *endpoint: str) -> list[EndpointGuard]:
    where = endpoint or ("http://x/v1", "m", "")
    return [EndpointGuard(clock, *where, failures=2, cooldown=SECOND) for _ in range(count)]


def fail(guard: EndpointGuard, how: EndpointFailed) -> None:
    attempt = guard.allow()
    assert attempt
    with pytest.raises(EndpointFailed), attempt:
        raise how


def test_a_service_that_is_down_is_found_out_once_for_all() -> None:
    clock = ManualClock()
    one, two, three = guards(3, clock)
    fail(one, DOWN)
    fail(two, DOWN)
    assert not three.allow()
    assert three.state == "open"
    clock.time = SECOND
    attempt = three.allow()  # one of them tries
    assert attempt
    assert not two.allow()
    attempt.succeeded()
    assert one.allow()
    assert two.allow()
    assert one.state == two.state == "closed"


def test_a_request_that_is_refused_silences_nobody_else() -> None:
    one, two = guards(2, ManualClock())
    fail(one, REFUSED)
    fail(one, REFUSED)
    assert not one.allow()
    assert two.allow()


def test_a_refused_probe_lets_others_probe() -> None:
    clock = ManualClock()
    one, two = guards(2, clock)
    fail(one, DOWN)
    fail(one, DOWN)
    clock.time = SECOND
    fail(one, REFUSED)
    attempt = two.allow()
    assert attempt
    with pytest.raises(KeyboardInterrupt), attempt:
        raise KeyboardInterrupt  # given up, as by a cancellation
    assert two.allow()


def test_other_endpoints_other_keys_and_other_processes_are_apart() -> None:
    clock = ManualClock()
    (one,) = guards(1, clock)
    fail(one, DOWN)
    fail(one, DOWN)
    others = [*guards(1, clock, "http://x/v1", "m", "env:OTHER"), *guards(1, clock, "http://y/v1", "m", "")]
    assert all(g.allow() for g in [*others, *guards(1, ManualClock())])
