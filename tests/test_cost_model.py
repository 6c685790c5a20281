from __future__ import annotations

import itertools
import random

from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.clock import MS
from penstock.pipeline.cost_model import CostModel, Curve

observations = st.lists(st.tuples(st.integers(1, 16), st.integers(1, 10**9)), min_size=1, max_size=60)


@given(observations)
@settings(max_examples=60, deadline=None)
def test_more_rows_never_cost_less(seen: list[tuple[int, int]]) -> None:
    curve = Curve()
    for rows, cost in seen:
        curve.observe(rows, cost)
    costs = [curve.expected(n) for n in range(1, 33)]
    assert all(a <= b + 1e-6 for a, b in itertools.pairwise(costs))
    assert all(curve.safe(n) >= curve.expected(n) for n in range(1, 33))


def test_an_affine_device_is_known_from_two_sizes() -> None:
    curve = Curve()
    for rows in (1, 1, 4, 4):
        curve.observe(rows, round((5 + 5.65 * rows) * MS))
    for n in (2, 3, 6, 12):
        assert abs(curve.expected(n) - (5 + 5.65 * n) * MS) < 0.01 * MS


def test_one_size_alone_promises_no_gain_from_batching() -> None:
    curve = Curve()
    curve.observe(2, 20 * MS)
    assert curve.expected(1) == 10 * MS
    assert curve.expected(8) == 80 * MS


def test_the_first_run_of_a_shape_is_only_a_bound() -> None:
    curve = Curve()
    curve.observe(1, 3000 * MS)  # compilation
    curve.observe(1, 10 * MS)
    assert curve.expected(1) == 10 * MS


def test_the_safe_cost_is_rarely_exceeded() -> None:
    rng, curve, over = random.Random(1), Curve(), 0
    for i in range(2000):
        cost = round(max(1.0, rng.gauss(20, 2)) * MS)
        if i > 100:
            over += cost > curve.safe(1)
        curve.observe(1, cost)
    assert over / 1900 < 0.12


def test_it_follows_a_device_that_slows_down() -> None:
    curve = Curve()
    for _ in range(20):
        curve.observe(1, 10 * MS)
    for _ in range(20):
        curve.observe(1, 25 * MS)
    assert 24 * MS < curve.expected(1) < 25 * MS


def test_a_device_that_is_free_again_is_believed_for_all_sizes() -> None:
    curve = Curve()
    for rows in (1, 1, 4, 4):
        curve.observe(rows, rows * 100 * MS)  # while something else used it
    for _ in range(6):
        curve.observe(1, 10 * MS)
    assert curve.expected(1) < 14 * MS
    assert curve.expected(4) < 56 * MS


def test_a_device_that_is_free_again_is_believed_for_shapes_that_do_not_run_now() -> None:
    """Full quality, on a lower rung, would be reckoned at the slow device's price for ever."""
    costs = CostModel()
    for _ in range(8):
        costs.observe("m", "whole", 1, 400 * MS)
        costs.observe("other", "whole", 1, 400 * MS)
    for cost in (200, 200, 200, 20, 20, 20, 20, 20):
        costs.observe("m", "half", 1, cost * MS)
    assert costs.safe("m", "half", 1) < 40 * MS
    assert costs.safe("m", "whole", 1) < 80 * MS
    assert costs.safe("other", "whole", 1) >= 400 * MS, "another model says nothing"


def test_the_best_batch_is_the_largest_in_time() -> None:
    costs = CostModel()
    assert costs.best("m", None, [1e9] * 8) == 1, "nothing is known yet"
    for rows in (1, 1, 8, 8):
        costs.observe("m", None, rows, (5 + 5 * rows) * MS)
    assert costs.best("m", None, [100.0 * MS] * 8) == 8
    assert costs.best("m", None, [26.0 * MS] * 8) == 4
    assert costs.best("m", None, [100.0 * MS, 100.0 * MS, 19.0 * MS, 19.0 * MS]) == 2
    assert costs.best("m", None, [1.0 * MS] * 8) == 1


def test_a_knee_stops_the_batch() -> None:
    costs = CostModel()
    for rows, cost in ((1, 10), (2, 12), (4, 16), (8, 64)):
        for _ in range(3):
            costs.observe("m", None, rows, cost * MS)
    assert costs.best("m", None, [1000.0 * MS] * 8) == 4


def test_curves_are_bounded() -> None:
    costs = CostModel()
    for i in range(1000):
        costs.observe("m", i, 1, MS)
    assert len(costs.curves) == 256
    assert costs.costliest("m") is not None
