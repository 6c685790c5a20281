"""Simulated dialogue on the virtual clock. The whole hour is `make bench AREA=engine`; here some minutes of it."""

from __future__ import annotations

from dialogue import dialogue
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.clock import SECOND


def test_the_same_seed_gives_the_same_trace_and_another_another() -> None:
    first, second, other = dialogue(120 * SECOND, 7), dialogue(120 * SECOND, 7), dialogue(120 * SECOND, 8)
    assert first == second
    assert first.digest != other.digest
    assert first.interruptions > 15
    assert first.events > 25_000


@settings(max_examples=4, deadline=None)
@given(st.integers(0, 10_000))
def test_nothing_of_an_old_epoch_is_played_after_a_flush(seed: int) -> None:
    told = dialogue(40 * SECOND, seed)
    assert told.stale == 0
    assert told.unaccounted == 0
    assert told.played > 0


def test_interruptions_void_what_is_under_way() -> None:
    assert dialogue(60 * SECOND, 3).flushed > 20
