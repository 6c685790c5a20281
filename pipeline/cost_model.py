"""How long a forward takes, measured: L(model, batch key, rows) in ns.

Each batch size keeps a moving mean and spread. The curve through them is made isotonic (more rows never
cost less) and continued by the best affine fit. Nothing is assumed before the first measurement.

Source: pool adjacent violators, Barlow et al., Statistical Inference under Order Restrictions (1972).
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

RATE = 0.15  # weight of a new observation: half the memory is gone after 4
REFIT = (
    0.005  # a smaller change of a mean leaves the curve as it is: fitting costs more than a forward's share
)
MARGIN = 2.0  # mean absolute deviations added for scheduling: about the 95th percentile of a normal spread
MAX_CURVES = 256  # models × shapes remembered; the oldest goes first


@dataclass(slots=True)
class _Point:
    mean: float
    spread: float = 0.0  # mean absolute deviation
    count: int = 1
    fitted: float = 0.0  # the mean that the curve was last fitted to


@dataclass(slots=True)
class Curve:
    """L over the number of rows, of one model and batch key."""

    points: dict[int, _Point] = field(default_factory=dict[int, _Point])
    _fitted: list[float] = field(default_factory=list[float])  # by rows; [0] unused

    def observe(self, rows: int, cost: int) -> float:
        """→ how much faster the device has become: 1.0, or less where it took far less than it used to."""
        point, ratio = self.points.get(rows), 1.0
        if point is None:
            self.points[rows] = _Point(float(cost))
        elif point.count == 1:
            # the first run of a shape pays for compilation and cold caches: it is only a bound
            point.mean, point.count = min(point.mean, float(cost)), 2
        elif cost < point.mean - 3 * max(point.spread, 0.1 * point.mean):
            # nothing runs faster than it can: the device is free again, for all sizes
            ratio = (point.mean + cost) / 2 / point.mean
            self.faster(ratio)
            point.count += 1
        else:
            off = cost - point.mean
            point.mean += RATE * off
            point.spread += RATE * (abs(off) - point.spread)
            point.count += 1
        if point is None or abs(point.mean - point.fitted) > REFIT * point.fitted:
            self._fitted.clear()
        return ratio

    def faster(self, ratio: float) -> None:
        """All sizes cost less by that ratio."""
        for point in self.points.values():
            point.mean *= ratio
            point.spread *= ratio
        self._fitted.clear()

    def expected(self, rows: int) -> float:
        """Mean L(rows), ns. Only where something was observed."""
        while len(self._fitted) <= rows:
            self._fit(max(rows, 8))
        return self._fitted[rows]

    def safe(self, rows: int) -> float:
        """L(rows) that is rarely exceeded."""
        point = self.points.get(rows)
        if point is None:  # the nearest measured size lends its spread
            point = self.points[min(self.points, key=lambda n: (abs(n - rows), n))]
        return self.expected(rows) + MARGIN * point.spread

    def _fit(self, upto: int) -> None:
        sizes = sorted(self.points)
        weights = [float(min(self.points[n].count, 8)) for n in sizes]
        levels = _isotonic([self.points[n].mean for n in sizes], weights)
        base, slope = _affine(sizes, levels, weights)
        known = dict(zip(sizes, levels, strict=True))
        for point in self.points.values():
            point.fitted = point.mean
        fitted, below = [0.0], 0.0
        for n in range(1, upto + 1):
            below = known.get(n, below)  # measurements win over the affine fit between them
            above = next((known[m] for m in sizes if m >= n), float("inf"))
            fitted.append(min(max(base + slope * n, below), above))
        self._fitted = fitted


class CostModel:
    """All curves of a pool."""

    def __init__(self) -> None:
        self.curves: dict[tuple[str, Hashable], Curve] = {}

    def observe(self, model: str, key: Hashable, rows: int, cost: int) -> None:
        """One forward of `rows` rows took `cost` ns."""
        curve = self.curves.get((model, key))
        if curve is None:
            if len(self.curves) >= MAX_CURVES:
                del self.curves[next(iter(self.curves))]
            curve = self.curves[model, key] = Curve()
        ratio = curve.observe(rows, cost)
        if ratio < 1:
            # shapes that do not run now, as full quality on a lower rung: measured while the device was slow,
            # they would keep that rung from ever being left; what is believed too cheap is measured on its next run
            for (name, _), other in self.curves.items():
                if name == model and other is not curve:
                    other.faster(ratio)

    def measured(self, model: str, key: Hashable) -> bool:
        return (model, key) in self.curves

    def safe(self, model: str, key: Hashable, rows: int) -> float:
        """ns that a forward will rarely exceed; 0 where nothing was measured."""
        curve = self.curves.get((model, key))
        return curve.safe(rows) if curve else 0.0

    def best(self, model: str, key: Hashable, rooms: list[float]) -> int:
        """The batch size of the highest throughput; rooms[n - 1]: ns that a forward of n rows may take.

        At least 1, and 1 where nothing was measured: the first forward measures.
        """
        curve = self.curves.get((model, key))
        if curve is None:
            return 1
        best, rate = 1, 1 / max(curve.expected(1), 1.0)
        for n, room in enumerate(rooms[1:], 2):
            if curve.safe(n) > room:
                break
            if n / max(curve.expected(n), 1.0) >= rate * 0.999:  # ties: the larger batch empties the queue
                best, rate = n, n / max(curve.expected(n), 1.0)
        return best

    def costliest(self, model: str) -> Hashable:
        """The batch key of `model` with the longest forward of one row; None when none was measured."""
        keys = [key for name, key in self.curves if name == model]
        return max(keys, key=lambda k: self.curves[model, k].expected(1), default=None)

    def per_row(self, model: str, key: Hashable, rows: int, forwards: int, within: float) -> float:
        """Device time of one row, ns, in the largest batch (≤ rows) that keeps a frame `within` ns.

        A frame waits for the forward that runs when it comes, then takes part in `forwards` of them.
        """
        curve = self.curves.get((model, key))
        if curve is None:
            return 0.0
        best = curve.expected(1)
        for n in range(2, rows + 1):
            if (forwards + 1) * curve.safe(n) > within:
                break
            best = min(best, curve.expected(n) / n)
        return best


def _isotonic(values: list[float], weights: list[float]) -> list[float]:
    """The nearest non-decreasing sequence (weighted least squares)."""
    blocks: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values, weights, strict=True):
        mean, mass, length = value, weight, 1
        while blocks and blocks[-1][0] > mean:
            left, left_mass, left_length = blocks.pop()
            mean = (left * left_mass + mean * mass) / (left_mass + mass)
            mass, length = left_mass + mass, left_length + length
        blocks.append((mean, mass, length))
    return [mean for mean, _, length in blocks for _ in range(length)]


def _affine(sizes: list[int], costs: list[float], weights: list[float]) -> tuple[float, float]:
    """base, slope ≥ 0 of cost ≈ base + slope·n. One size alone is taken as proportional: no gain assumed."""
    mass = sum(weights)
    mean_n = sum(w * n for w, n in zip(weights, sizes, strict=True)) / mass
    mean_c = sum(w * c for w, c in zip(weights, costs, strict=True)) / mass
    var = sum(w * (n - mean_n) ** 2 for w, n in zip(weights, sizes, strict=True))
    if var == 0:
        return 0.0, mean_c / mean_n
    cov = sum(w * (n - mean_n) * (c - mean_c) for w, n, c in zip(weights, sizes, costs, strict=True))
    slope = max(cov / var, 0.0)
    base = mean_c - slope * mean_n
    return (base, slope) if base >= 0 else (0.0, mean_c / mean_n)
