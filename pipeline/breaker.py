"""Leaves a failing service alone for a while, then tries it once.

    closed ──n failures in a row──▶ open ──cooldown over──▶ half-open ──success──▶ closed
                                     ▲                          │
                                     └────failure: twice as long┘

Source: M. Nygard, "Release It!", the circuit breaker.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

from .clock import SECOND

State: TypeAlias = Literal["closed", "open", "half_open"]


class CircuitBreaker:
    """A pure policy: the caller tells the time (ns) and how each attempt that was allowed came out.

    Many attempts may be under way. `allow` gives each the number of the opening it belongs to, which is told back with its
    outcome: one that began before the last opening says nothing new, so it neither lengthens the pause nor ends it.
    """

    def __init__(
        self, failures: int = 3, cooldown: int = 5 * SECOND, longest_cooldown: int = 60 * SECOND
    ) -> None:
        if failures < 1 or not 0 < cooldown <= longest_cooldown:
            raise ValueError(
                f"failures {failures}, cooldown {cooldown}, longest_cooldown {longest_cooldown}: "
                "at least one failure and 0 < cooldown <= longest_cooldown (ns) are accepted"
            )
        self._limit = failures
        self._cooldown = cooldown
        self._longest = longest_cooldown
        self._failures = 0  # in a row
        self._opened = 0  # times in a row that it opened: the exponent of the cooldown
        self._openings = 1  # all so far, from 1: what attempts belong to
        self._until: int | None = None  # when an attempt is allowed again; None while closed
        self._probing = False

    def state(self, now: int) -> State:
        if self._until is None:
            return "closed"
        return "open" if now < self._until else "half_open"

    def allow(self, now: int) -> int:
        """May one attempt be made now? 0: no; else its number. While half-open one at a time is let through."""
        if self._until is not None:
            if now < self._until or self._probing:
                return 0
            self._probing = True
        return self._openings

    def succeeded(self, attempt: int) -> None:
        if attempt != self._openings:
            return
        self._failures = self._opened = 0
        self._until = None
        self._probing = False

    def failed(self, now: int, attempt: int, retry_after: int = 0) -> None:
        """retry_after: ns for which the service itself asks to be left alone; it opens at once.

        No service can close itself for longer than `longest_cooldown`.
        """
        if attempt != self._openings:
            if self._until is not None and retry_after > 0:
                self._until = max(self._until, now + min(retry_after, self._longest))
            return
        self._failures += 1
        if self._probing or self._failures >= self._limit or retry_after > 0:
            doubled = self._cooldown << min(self._opened, 32)
            self._until = now + min(max(doubled, retry_after), self._longest)
            self._opened += 1
            self._openings += 1
        self._probing = False

    def abandoned(self, attempt: int) -> None:
        """The attempt was given up by its caller: it tells nothing about the service."""
        if attempt == self._openings:
            self._probing = False
