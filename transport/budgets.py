"""What all clients of a server share of its link, up and down, divided among them once a second.

Up: by what the bits are worth to the models (`allocator.py`). Down: sound and text first, then pictures, evenly by
priority; a picture that gets less is sent less often, then smaller (`picture_rate.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from ..pipeline.clock import SECOND, Clock
from .allocator import AUDIO_KBPS, Grant, Stream, allocate

EVERY = SECOND
DOWN_SHARE = 0.9  # of the way down that is given out: one sender paces it all
UNSTEERED_KBPS = 800.0  # set aside for a client that cannot be told its rate
TEXT_KBPS = 8.0  # of captions and events, kept free for each client
LEAST_PICTURES_KBPS = 20.0


class Sender(Protocol):
    """A session's `Focus`."""

    @property
    def is_new(self) -> bool:
        """It may yet say that it can be told its rate."""
        ...

    def streams(self, now: int) -> Sequence[Stream]: ...
    def grants(self, granted: Mapping[str, Grant]) -> None: ...


class UplinkBudget:
    """members: of now. capacity_bps: of the link that they share, 0: only each path limits."""

    def __init__(self, members: Callable[[], Iterable[Sender]], capacity_bps: int = 0) -> None:
        self.members = members
        self.capacity_bps = capacity_bps
        self.unsteered = 0
        self.granted: dict[str, Grant] = {}

    def step(self, now: int) -> None:
        members = list(self.members())
        told = [(m, streams) for m in members if (streams := m.streams(now))]
        steered = [m for m, _ in told]
        self.unsteered = sum(not m.is_new for m in members if m not in steered)
        capacity = self.capacity_bps / 1000 if self.capacity_bps else math.inf
        if self.unsteered:  # never more than their even share: the others would get nothing
            capacity -= min(
                self.unsteered * (UNSTEERED_KBPS + AUDIO_KBPS), capacity * self.unsteered / len(members)
            )
        self.granted = allocate([s for _, streams in told for s in streams], max(0.0, capacity))
        for member, streams in told:
            member.grants({s.key: self.granted[s.key] for s in streams})


@dataclass(frozen=True, slots=True)
class Pictures:
    """One client's way down. path_bps: what its path carries. limit: takes the rate of its pictures, bits/s."""

    path_bps: float
    limit: Callable[[int], None]
    weight: float = 1.0
    audio: bool = False


class DownlinkBudget:
    """clients: those that are sent pictures, now. others: how many more are sent sound or text only."""

    def __init__(
        self,
        clients: Callable[[], Sequence[Pictures]],
        others: Callable[[], int] = lambda: 0,
        capacity_bps: int = 0,
    ) -> None:
        self.clients = clients
        self.others = others
        self.capacity_bps = capacity_bps

    def step(self) -> None:
        """Without a capacity nothing is limited: each connection's own estimate does it."""
        if not self.capacity_bps:
            return
        clients = self.clients()
        kbps = self.capacity_bps / 1000 * DOWN_SHARE - self.others() * (AUDIO_KBPS + TEXT_KBPS)
        kbps -= sum(TEXT_KBPS + AUDIO_KBPS * c.audio for c in clients)
        rates = fair([c.path_bps / 1000 for c in clients], [c.weight for c in clients], kbps)
        for client, rate in zip(clients, rates, strict=True):
            client.limit(round(1000 * max(LEAST_PICTURES_KBPS, rate)))


def fair(most: Sequence[float], weights: Sequence[float], total: float) -> list[float]:
    """`total` divided by weight, none above its `most`; what one leaves the others share."""
    rates = [0.0] * len(most)
    waiting = set(range(len(most)))
    while waiting and total > 1e-9:
        unit = total / sum(weights[i] for i in waiting)
        full = {i for i in waiting if most[i] <= unit * weights[i]}
        for i in full or waiting:
            rates[i] = most[i] if full else unit * weights[i]
            total -= rates[i]
        waiting -= full or waiting
    return rates


class Budgets:
    """Both, on the clock."""

    def __init__(self, up: UplinkBudget, down: DownlinkBudget, clock: Clock) -> None:
        self.up = up
        self.down = down
        self.clock = clock

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self.clock.sleep(EVERY)
            self.up.step(self.clock.now())
            self.down.step()
