from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.models.event_log import Event, EventLog

EVENTS = st.lists(
    st.builds(
        Event,
        at=st.integers(0, 50),
        what=st.sampled_from(["came", "left", "dark"]),
        thing=st.sampled_from(["", "cat", "dog"]),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(
    EVENTS,
    st.integers(1, 12),
    st.sampled_from([None, "left", ("came", "dark")]),
    st.sampled_from([None, "cat"]),
)
def test_last_and_count_are_right_at_any_age_whatever_was_forgotten(
    events: list[Event], limit: int, what: str | tuple[str, ...] | None, thing: str | None
) -> None:
    log = EventLog(limit)
    for event in events:
        log.add(event)
    kinds = (what,) if isinstance(what, str) else what
    fitting = [e for e in events if (kinds is None or e.what in kinds) and thing in (None, e.thing)]
    assert len(log) <= limit
    assert log.count(what, thing) == len(fitting)
    last = log.last(what, thing)
    assert (last.at if last else None) == max((e.at for e in fitting), default=None)
    since = 25
    count = log.count(what, thing, since=since)
    if count is None:
        assert log.complete_since is not None
        assert log.complete_since >= since
    else:
        assert count == sum(e.at >= since for e in fitting)
    assert [e.at for e in log.between(0, 50)] == sorted(e.at for e in log.between(0, 50))


def test_of_two_events_at_one_time_the_later_one_is_last() -> None:
    log = EventLog()
    log.add(Event(5, "came", "cat"))
    log.add(Event(5, "left", "cat"))
    log.add(Event(5, "came", "dog"))
    last = log.last()
    assert last is not None
    assert (last.what, last.thing) == ("came", "dog")


def test_memory_is_bounded_also_in_kinds() -> None:
    log = EventLog(limit=100, kinds=10)
    for i in range(5_000):
        log.add(Event(i, "came", f"thing {i}"))
    assert len(log) <= 100
    assert log.count("came") is None, "it does not know any more, and says so"
    assert log.count(thing="thing 0") is None
    assert log.last(thing="thing 0") is not None
    assert log.last(thing="thing 10") is None, "one of too many kinds, and forgotten"
    assert log.last(thing="thing 4999") is not None
