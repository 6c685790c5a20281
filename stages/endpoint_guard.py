"""When an endpoint is asked, and when it is left alone: a breaker of the session's own, and one that all sessions share.

What is the service's fault (nobody there, no answer in time, 5xx, too many requests, a refused key) opens both: the other
sessions need not find it out one by one, each after its own time limit. What one request brought about (too long,
not accepted, garbage in its answer) opens only its session's: nobody silences the others.
"""

from __future__ import annotations

from weakref import WeakKeyDictionary

from ..pipeline.breaker import CircuitBreaker, State
from ..pipeline.clock import Clock
from .endpoint_http import EndpointFailed

# by the clock, which the sessions of one process share, then by endpoint: as many as the graphs name
_shared: WeakKeyDictionary[Clock, dict[tuple[str, ...], CircuitBreaker]] = WeakKeyDictionary()


class EndpointGuard:
    """Used as a `CircuitBreaker` is: each `allow` that gives True is followed by one of the other three."""

    def __init__(self, clock: Clock, *endpoint: str, failures: int, cooldown: int) -> None:
        """endpoint: what makes it one service: address, model, where its key is. failures in a row, cooldown in ns."""
        self._clock = clock
        self._own = CircuitBreaker(failures, cooldown)
        services = _shared.setdefault(clock, {})
        self._all = services.setdefault(
            (*endpoint, str(failures), str(cooldown)), CircuitBreaker(failures, cooldown)
        )

    @property
    def state(self) -> State:
        now = self._clock.now()
        states = {self._own.state(now), self._all.state(now)}
        return "open" if "open" in states else "half_open" if "half_open" in states else "closed"

    def allow(self) -> bool:
        now = self._clock.now()
        if not self._own.allow(now):
            return False
        if not self._all.allow(now):
            self._own.abandoned()
            return False
        return True

    def succeeded(self) -> None:
        self._own.succeeded()
        self._all.succeeded()

    def failed(self, how: EndpointFailed) -> None:
        now = self._clock.now()
        self._own.failed(now, how.retry_after)
        if how.for_all:
            self._all.failed(now, how.retry_after)
        else:
            self._all.abandoned()

    def abandoned(self) -> None:
        """The attempt was given up by its caller: it tells nothing about the service."""
        self._own.abandoned()
        self._all.abandoned()
