"""Who may use a pool: demands are let in up to 0.8 of its measured time, lower on their ladder if need be."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

from .clock import SECOND
from .cost_model import CostModel
from .degrade import Quality
from .rows import Admission, Demand

LIMIT = 0.8  # utilisation: above it queues, and with them latency, grow without bound


@dataclass(slots=True)
class _Lease:
    demand: Demand
    levels: Sequence[Quality]
    level: int

    def stepped(self, step: int) -> int:
        """Its level when all are at least on `step`: never down to doing nothing for the sake of others."""
        last = len(self.levels) - 1
        if last and self.levels[last].passthrough:
            last -= 1
        return max(self.level, min(step, last))


class Admissions:
    """The ledger of a pool. Loads are read from the cost model each time, so they follow the device.

    lock: guards the cost model; held by each call.
    """

    def __init__(
        self,
        costs: CostModel,
        max_rows: int,
        workers: int = 1,
        limit: float = LIMIT,
        lock: threading.Lock | None = None,
    ) -> None:
        self._lock = lock or threading.Lock()
        self._costs = costs
        self._max_rows = max_rows
        self._workers = workers
        self._limit = limit
        self._leases: dict[tuple[str, str], _Lease] = {}

    def admit(self, flow: tuple[str, str], demand: Demand, levels: Sequence[Quality]) -> Admission:
        """Let a flow (session, node) in; a new demand replaces its old one.

        When there is no room at full quality all step down evenly, the present flows as far as they still
        do work, until there is. What remains for the newcomer may be passthrough, where it declared that.
        """
        with self._lock:
            return self._admit(flow, demand, levels)

    def _admit(self, flow: tuple[str, str], demand: Demand, levels: Sequence[Quality]) -> Admission:
        mine = _Lease(demand, levels, 0)
        if not self._measured(demand):
            self._leases[flow] = mine
            reason = f"model {demand.model!r} has not run yet: nothing to reckon with"
            return Admission("unmeasured", 0, self._total(), reason)
        others = {f: lease for f, lease in self._leases.items() if f != flow}
        deepest = max(len(lease.levels) for lease in (mine, *others.values()))
        total = 0.0
        # nobody starts above those who have stepped down already
        for step in range(min((lease.level for lease in others.values()), default=0), deepest):
            steps = {f: lease.stepped(step) for f, lease in others.items()}
            level = min(step, len(levels) - 1)
            own = self._load(demand, levels[level])
            total = own + sum(self._load(lease.demand, lease.levels[steps[f]]) for f, lease in others.items())
            if total <= self._limit:
                for f, lease in others.items():
                    lease.level = steps[f]
                return self._grant(flow, mine, level, total)
        if levels[-1].passthrough:
            return self._grant(flow, mine, len(levels) - 1, self._total(without=flow))
        self._leases.pop(flow, None)
        reason = (
            f"it would take the pool to {total:.0%} at the lowest quality; the limit is {self._limit:.0%}"
        )
        return Admission("refused", len(levels) - 1, self._total(), reason)

    def _grant(self, flow: tuple[str, str], lease: _Lease, level: int, total: float) -> Admission:
        lease.level = level
        self._leases[flow] = lease
        if not level:
            return Admission("granted", 0, total)
        return Admission("degraded", level, total, f"full quality would take more than {self._limit:.0%}")

    def granted(self, flow: tuple[str, str]) -> int:
        """The level on which the flow stands now: others who came may have moved it down."""
        with self._lock:
            lease = self._leases.get(flow)
            return lease.level if lease else 0

    def fits(self, flow: tuple[str, str], level: int) -> bool:
        """May this flow stand on `level` now? True for one that declared no demand."""
        with self._lock:
            lease = self._leases.get(flow)
            if lease is None:
                return True
            return self._total(without=flow) + self._load(lease.demand, lease.levels[level]) <= self._limit

    def moved(self, flow: tuple[str, str], level: int) -> None:
        """The flow stands on another level of its ladder now."""
        with self._lock:
            if flow in self._leases:
                self._leases[flow].level = level

    def release(self, session: str) -> None:
        with self._lock:
            for flow in [f for f in self._leases if f[0] == session]:
                del self._leases[flow]

    def utilisation(self) -> float:
        """Share of the pool's time that the admitted demands need."""
        with self._lock:
            return self._total()

    def _total(self, without: tuple[str, str] | None = None) -> float:
        return sum(
            self._load(lease.demand, lease.levels[lease.level])
            for flow, lease in self._leases.items()
            if flow != without
        )

    def _measured(self, demand: Demand) -> bool:
        key = self._costs.costliest(demand.model) if demand.key is None else demand.key
        return self._costs.measured(demand.model, key)

    def _load(self, demand: Demand, quality: Quality) -> float:
        key = self._costs.costliest(demand.model) if demand.key is None else demand.key
        cost = self._costs.per_row(demand.model, key, self._max_rows, demand.forwards, demand.within)
        rows = demand.rate_hz * demand.forwards * quality.load(demand.forwards)
        return rows * cost / SECOND / self._workers
