"""What happened, when: a bounded, queryable log that stays right at any age.

The last so many events are kept whole. Of what falls out, its count, first and last time stay, by (what, thing),
so "when did it last leave" and "how often" are exact however long ago. A log that forgot says since when it is
complete. Times are ns on one clock.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Event:
    """One happening. `what` in snake_case ("left", "motion_started"), `thing` what it happened to, or ""."""

    at: int
    what: str
    thing: str = ""
    fields: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)


@dataclass(slots=True)
class _Tally:
    """All that is known of one (what, thing) for ever."""

    count: int
    last: Event


class EventLog:
    """At most `limit` whole events and `kinds` tallies."""

    def __init__(self, limit: int = 2048, kinds: int = 512) -> None:
        if limit < 1 or kinds < 1:
            raise ValueError(f"an event log of {limit} events and {kinds} kinds; both must be at least 1")
        self.limit, self.kinds = limit, kinds
        self.complete_since: int | None = None  # time of the newest event that was forgotten; None: none was
        self._events: list[Event] = []  # by time
        self._tallies: dict[tuple[str, str], _Tally] = {}
        self._untallied = 0  # events of kinds beyond the bound

    def __len__(self) -> int:
        return len(self._events)

    def add(self, event: Event) -> None:
        """Take in an event; one that comes late is put in its place."""
        at = bisect_right(self._events, event.at, key=_time)
        self._events.insert(at, event)
        key = (event.what, event.thing)
        tally = self._tallies.get(key)
        if tally is not None:
            tally.count += 1
            if event.at >= tally.last.at:
                tally.last = event
        elif len(self._tallies) < self.kinds:
            self._tallies[key] = _Tally(1, event)
        else:
            self._untallied += 1
        if len(self._events) > self.limit:
            # an eighth at a time: deleting from the front costs the whole list
            forgotten = max(1, self.limit // 8)
            newest = self._events[forgotten - 1].at
            self.complete_since = newest if self.complete_since is None else max(self.complete_since, newest)
            del self._events[:forgotten]

    def last(self, what: str | Iterable[str] | None = None, thing: str | None = None) -> Event | None:
        """The newest event of these kinds, and of this thing; None asks for any."""
        wanted = _set(what)
        best: Event | None = None
        for (w, t), tally in self._tallies.items():
            if (
                (wanted is None or w in wanted)
                and thing in (None, t)
                and (best is None or tally.last.at >= best.at)
            ):
                best = tally.last
        if self._untallied or best is None:
            for event in reversed(self._events):
                if best is not None and event.at <= best.at:
                    break
                if _matches(event, wanted, thing):
                    return event
        if best is not None:  # of two at one time the later one counts
            for event in reversed(self._events[: bisect_right(self._events, best.at, key=_time)]):
                if event.at < best.at:
                    break
                if _matches(event, wanted, thing):
                    return event
        return best

    def count(
        self, what: str | Iterable[str] | None = None, thing: str | None = None, since: int | None = None
    ) -> int | None:
        """How many there were, since a time or ever; None when the log no longer knows."""
        wanted = _set(what)
        if since is None:
            if self._untallied:
                return None
            return sum(
                t.count
                for (w, name), t in self._tallies.items()
                if (wanted is None or w in wanted) and thing in (None, name)
            )
        if self.complete_since is not None and since <= self.complete_since:
            return None
        return sum(
            _matches(e, wanted, thing) for e in self._events[bisect_left(self._events, since, key=_time) :]
        )

    def between(self, since: int, until: int) -> list[Event]:
        """Whole events in [since, until], oldest first; those before `complete_since` may be missing."""
        a, b = bisect_left(self._events, since, key=_time), bisect_right(self._events, until, key=_time)
        return self._events[a:b]


def _time(event: Event) -> int:
    return event.at


def _set(what: str | Iterable[str] | None) -> frozenset[str] | None:
    return None if what is None else frozenset((what,)) if isinstance(what, str) else frozenset(what)


def _matches(event: Event, wanted: frozenset[str] | None, thing: str | None) -> bool:
    return (wanted is None or event.what in wanted) and thing in (None, event.thing)
