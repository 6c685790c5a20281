"""Quantities and wrong values as people write them: a bare number is no duration, and a fault says what is expected."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline import registry
from penstock.pipeline.clock import MS, SECOND
from penstock.pipeline.faults import Faults, in_words
from penstock.pipeline.node_params import changed
from penstock.pipeline.pool_plan import PoolPlan
from penstock.pipeline.stage import StageError
from penstock.pipeline.units import ByteCount, Bytes, Duration, Nanoseconds, parse_bytes, parse_duration
from pydantic import AfterValidator, BaseModel, Field, ValidationError


def _refused(value: str) -> str:
    if value:
        raise ValueError("a secret does not stand here itself")
    return value


class Fields(BaseModel):
    hold: Duration = Field(default=3 * SECOND, ge=100 * MS, le=SECOND * 60)
    until: Duration | None = None
    room: Bytes = Field(default=0, le=2**20)
    names: tuple[str, ...] = ()
    text: str = ""
    on: bool = False
    count: int = 0
    share: float = 0.0
    map: dict[str, int] = {}
    key: Annotated[str, AfterValidator(_refused)] = ""


def told(**values: Any) -> str:
    """The faults of a graph's options."""
    faults = Faults({})
    faults.model(Fields, values, (), "stage 'x'")
    return "\n".join(fault.message for fault in faults.faults)


@pytest.mark.parametrize("bare", [2, 400, True, False, 1.5, "400", None])
def test_a_bare_number_is_neither_a_duration_nor_a_size(bare: Any) -> None:
    assert f"hold: {bare!r} is not a duration; write a number and a unit, as 40ms" in told(hold=bare)
    assert f"room: {bare!r} is not a size; write a number and a unit, as 64MiB" in told(room=bare)
    if bare is not None:
        assert f"until: {bare!r} is not a duration" in told(until=bare)


def test_nothing_needs_no_unit_and_code_may_say_which_it_means() -> None:
    read = Fields.model_validate({"until": 0, "room": 0})
    assert (read.until, read.room) == (0, 0)
    set_by_code = Fields(hold=Nanoseconds(400 * MS), room=ByteCount(512))
    assert (set_by_code.hold, set_by_code.room) == (400 * MS, 512)
    with pytest.raises(ValidationError):
        Fields(hold=ByteCount(SECOND))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**50))
def test_what_is_dumped_is_read_again_as_the_same(value: int) -> None:
    assert parse_duration(str(Nanoseconds(value))) == value
    assert parse_bytes(str(ByteCount(value))) == value


def test_a_live_change_keeps_what_it_does_not_name_and_takes_no_bare_number() -> None:
    old = Fields(hold=Nanoseconds(1500 * MS))
    assert old.model_dump(mode="json")["hold"] == "1500ms"
    new = changed(Fields, old, {"count": 3}, "n")
    assert isinstance(new, Fields)
    assert (new.hold, new.until, new.count) == (1500 * MS, None, 3)
    with pytest.raises(StageError, match=r"n\.hold: 400000000 is not a duration"):
        changed(Fields, old, {"hold": 400 * MS}, "n")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"hold": "50ms"}, "stage 'x': hold: it must be at least 100ms (got 50ms)"),
        ({"hold": "2min"}, "hold: it must be at most 1min (got 2min)"),
        ({"room": "2MiB"}, "room: it must be at most 1MiB (got 2MiB)"),
        ({"names": "640x480"}, "names: a list is expected, as [640x480] (got '640x480')"),
        ({"names": "something moves"}, "names: a list is expected, as [something moves]"),
        ({"names": "a: {b"}, "names: a list is expected, as [a, b] (got 'a: {b')"),
        ({"names": [5]}, "names.0: text is expected; put it in quotes (got 5)"),
        ({"text": ["a"]}, "text: text is expected (got ['a'])"),
        ({"on": "perhaps"}, "on: true or false is expected (got 'perhaps')"),
        ({"count": 1.5}, "count: a whole number is expected (got 1.5)"),
        ({"share": "much"}, "share: a number is expected (got 'much')"),
        ({"map": 5}, "map: a mapping is expected, as {name: value} (got 5)"),
    ],
)
def test_what_is_expected_stands_in_plain_words(values: dict[str, Any], words: str) -> None:
    assert words in told(**values)


def test_a_value_that_its_reader_refused_is_not_repeated() -> None:
    assert told(key="hunter2") == "stage 'x': key: a secret does not stand here itself"


def test_no_fault_of_any_stages_options_speaks_of_patterns_or_classes() -> None:
    models = [PoolPlan, *(m for use in registry.catalog() for m in _models_of(use))]
    wrong: tuple[Any, ...] = (
        "a b",
        "",
        "x" * 40_000,
        -1,
        10**12,
        1.5,
        float("nan"),
        None,
        True,
        [],
        [{}],
        {"a": "b"},
    )
    seen: set[str] = set()
    for model in models:
        for name in model.model_fields:
            for value in wrong:
                try:
                    model.model_validate({name: value})
                except ValidationError as e:
                    seen.update(in_words(error) for error in e.errors())
    assert len(seen) > 100
    assert not [
        words for words in seen if any(x in words for x in ("^", "<class", "should", "Input", "valid"))
    ]
    assert max(map(len, seen)) < 300


def _models_of(use: str) -> list[type[BaseModel]]:
    cls = registry.load(use)
    return [cls.Options, cls.Params]
