"""When an endpoint is asked, and when it is left alone: a breaker of the session's own, and one that all sessions share.

What is the service's fault (nobody there, no answer in time, 5xx, too many requests, a refused key) opens both: the other
sessions need not find it out one by one, each after its own time limit. What one request brought about (too long,
not accepted, garbage in its answer) opens only its session's: nobody silences the others.
"""

from __future__ import annotations

from types import TracebackType
from weakref import WeakKeyDictionary

from ..pipeline.breaker import CircuitBreaker, State
from ..pipeline.clock import Clock
from .endpoint_http import EndpointFailed

# by the clock, which the sessions of one process share, then by endpoint: as many as the graphs name
_shared: WeakKeyDictionary[Clock, dict[tuple[str, ...], CircuitBreaker]] = WeakKeyDictionary()


class Attempt:
    """One request that was allowed, to be made inside of it as a context: what leaves it is how the request came out.

    Nothing: it succeeded. `EndpointFailed`: it failed, also where it had succeeded at first. Anything else: it was given up by
    its caller, which tells nothing about the service.
    """

    def __init__(self, guard: EndpointGuard, own: int, shared: int) -> None:
        self._guard = guard
        self._own = own
        self._shared = shared

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is None:
            self.succeeded()
        elif isinstance(error, EndpointFailed):
            self._failed(error)
        else:  # a no-op where it has succeeded: that closed the circuit, or another failure opened it since
            self._guard.own.abandoned(self._own)
            self._guard.shared.abandoned(self._shared)

    def succeeded(self) -> None:
        """Known before its end: the service answers."""
        self._guard.own.succeeded(self._own)
        self._guard.shared.succeeded(self._shared)

    def _failed(self, how: EndpointFailed) -> None:
        now = self._guard.clock.now()
        self._guard.own.failed(now, self._own, how.retry_after)
        if how.for_all:
            self._guard.shared.failed(now, self._shared, how.retry_after)
        else:
            self._guard.shared.abandoned(self._shared)


class EndpointGuard:
    """Asked before each request."""

    def __init__(self, clock: Clock, *endpoint: str, failures: int, cooldown: int) -> None:
        """endpoint: what makes it one service: address, model, where its key is. failures in a row, cooldown in ns."""
        self.clock = clock
        self.own = CircuitBreaker(failures, cooldown)
        services = _shared.setdefault(clock, {})
        self.shared = services.setdefault(
            (*endpoint, str(failures), str(cooldown)), CircuitBreaker(failures, cooldown)
        )

    @property
    def state(self) -> State:
        now = self.clock.now()
        states = {self.own.state(now), self.shared.state(now)}
        return "open" if "open" in states else "half_open" if "half_open" in states else "closed"

    def allow(self) -> Attempt | None:
        """None: leave it alone now."""
        now = self.clock.now()
        if not (own := self.own.allow(now)):
            return None
        if not (shared := self.shared.allow(now)):
            self.own.abandoned(own)
            return None
        return Attempt(self, own, shared)
