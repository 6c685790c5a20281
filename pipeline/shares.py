"""Who has used how much of a device lately: fair shares when there is not enough for all."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

from .clock import SECOND

MEMORY = 2 * SECOND  # time constant: use from 2 s ago counts a third
CONTENDED = 0.85  # of the device's time; below it everybody gets what they ask
OVER = 1.2  # times its fair share before a flow stands behind the others: less is noise


@dataclass(slots=True)
class _Use:
    amount: float  # ns of device time, decayed to `at`
    at: int


class Shares:
    """Decayed use of device time by flow (one node of one session)."""

    def __init__(self, weights: Mapping[str, float] | None = None, workers: int = 1) -> None:
        self._weights = dict(weights or {})
        self._workers = workers
        self._used: dict[tuple[str, str], _Use] = {}

    def charge(self, flow: tuple[str, str], cost: float, now: int) -> None:
        use = self._used.get(flow)
        if use is None:
            self._used[flow] = _Use(cost, now)
        else:
            use.amount, use.at = self._decayed(use, now) + cost, now

    def forget(self, session: str) -> None:
        for flow in [f for f in self._used if f[0] == session]:
            del self._used[flow]

    def utilisation(self, now: int) -> float:
        """Share of the device's time that was used lately, 1.0 = all."""
        return sum(self._decayed(u, now) for u in self._used.values()) / MEMORY / self._workers

    def over(self, flows: Iterable[tuple[str, str]], now: int) -> set[Hashable]:
        """Those of `flows` (all that want the device now) which stand behind: they have had more than
        their weighted share of a device that is short."""
        if self.utilisation(now) < CONTENDED:
            return set()
        used = {f: self._decayed(u, now) for f, u in self._used.items()}
        total = sum(used.values())
        # flows that hardly used anything do not shrink the shares of the others
        active = {f for f, amount in used.items() if amount > 0.01 * total} | set(flows)
        weight = sum(self._weight(f) for f in active)
        return {f for f in active if used.get(f, 0.0) > OVER * total * self._weight(f) / weight}

    def _weight(self, flow: tuple[str, str]) -> float:
        return self._weights.get(flow[1], 1.0)

    def _decayed(self, use: _Use, now: int) -> float:
        return use.amount * math.exp((use.at - now) / MEMORY) if now > use.at else use.amount
