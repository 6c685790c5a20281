"""What a bad network does to datagrams, as a policy: when does each arrive, if at all? No sockets, no clock.

Source of the burst model: E. N. Gilbert, "Capacity of a Burst-Noise Channel", 1960; in the bad state every
packet is lost.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ..pipeline.clock import MS
from ..pipeline.faults import Faults, first_in_words
from ..pipeline.stage import StageError
from ..pipeline.units import parse_duration, parse_rate

REORDER_MS = 20.0  # how much later a packet out of order arrives
NEXT_MS = 0.001  # between two packets in order: timers for one and the same time fire in any order
HEADERS = 28  # bytes of IPv4 and UDP that travel with each datagram


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """One direction of a network. Shares are in [0, 1].

    burst: mean length of a run of lost packets; up to 1: losses are independent. queue_ms: what may wait where
    rate_bps is the limit. blackout: all is lost. hold: all waits, and arrives at once when the hold ends.
    """

    loss: float = 0.0
    burst: float = 1.0
    delay_ms: float = 0.0
    jitter_ms: float = 0.0  # uniform in [0, jitter_ms], order kept
    rate_bps: int = 0  # 0: no limit
    queue_ms: float = 200.0
    reorder: float = 0.0
    duplicate: float = 0.0
    blackout: bool = False
    hold: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """From `at_ms` on, the named fields of `Conditions` have these values."""

    at_ms: float
    changes: Mapping[str, Any]


@dataclass(slots=True)
class Link:
    """One direction. `offer` each datagram in order of time; the same seed gives the same fates.

    counts: offered, delivered, lost, blackout, queue (too full), reordered, duplicated.
    """

    conditions: Conditions = field(default_factory=Conditions)
    script: Sequence[Step] = ()
    seed: int = 0
    counts: Counter[str] = field(default_factory=Counter[str])
    _random: random.Random = field(init=False)
    _plan: list[tuple[float, Conditions]] = field(init=False)  # (from ms, what holds then)
    _at: int = 0
    _bad: bool = False  # state of the Gilbert model
    _free: float = 0.0  # ms when the last bit of the queue has left
    _last: float = float("-inf")  # ms when the latest in-order packet arrives

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        now = self.conditions
        self._plan = [(float("-inf"), now)]
        for step in sorted(self.script, key=lambda s: s.at_ms):
            now = replace(now, **step.changes)
            self._plan.append((step.at_ms, now))

    def offer(self, now_ms: float, size: int) -> list[float]:
        """A datagram of `size` bytes enters. Returns when it arrives, ms: [] when lost, twice when doubled."""
        self.counts["offered"] += 1
        while self._at + 1 < len(self._plan) and self._plan[self._at + 1][0] <= now_ms:
            self._at += 1
        c = self._plan[self._at][1]
        if c.blackout:
            self.counts["blackout"] += 1
            return []
        if self._is_lost(c):
            self.counts["lost"] += 1
            return []
        at = now_ms
        if c.rate_bps:
            if self._free - now_ms > c.queue_ms:
                self.counts["queue"] += 1
                return []
            at = self._free = max(now_ms, self._free) + (size + HEADERS) * 8e3 / c.rate_bps
        at += c.delay_ms + self._random.random() * c.jitter_ms
        if c.hold:
            at = max(at, self._hold_end())
        if self._random.random() < c.reorder:
            self.counts["reordered"] += 1
            at += REORDER_MS
        else:
            at = self._last = max(at, self._last + NEXT_MS)
        self.counts["delivered"] += 1
        if self._random.random() < c.duplicate:
            self.counts["duplicated"] += 1
            return [at, at]
        return [at]

    def restart(self, now_ms: float) -> None:
        """What was `now_ms` is 0 from now on: the script begins anew, and what is underway keeps its place."""
        self._at = 0
        self._last -= now_ms
        self._free -= now_ms

    def _is_lost(self, c: Conditions) -> bool:
        if c.burst <= 1:
            return self._random.random() < c.loss
        leave = 1 / c.burst
        enter = min(1.0, leave * c.loss / max(1 - c.loss, 1e-9))  # so that the stationary share is c.loss
        self._bad = self._random.random() < (1 - leave if self._bad else enter)
        return self._bad

    def _hold_end(self) -> float:
        """When the present hold ends; a hold without an end is one of 1 s."""
        later = self._plan[self._at + 1 :]
        return next((at for at, c in later if not c.hold), self._plan[self._at][0] + 1000)


# ---------------------------------------------------------------- as people write it


class _Written(BaseModel):
    """One direction in a file: `{loss: 5%, delay: 25ms, rate: 500k}`."""

    model_config = ConfigDict(extra="forbid")

    loss: str | float | None = None
    burst: float | None = Field(default=None, ge=1)
    delay: str | None = None
    jitter: str | None = None
    rate: str | int | None = None
    queue: str | None = None
    reorder: str | float | None = None
    duplicate: str | float | None = None
    blackout: bool | None = None
    hold: bool | None = None

    def changes(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in self:
            if value is None:
                continue
            if name in ("delay", "jitter", "queue"):
                found[f"{name}_ms"] = parse_duration(value) / MS
            elif name == "rate":
                found["rate_bps"] = 0 if value == 0 else parse_rate(value)
            elif name in ("loss", "reorder", "duplicate"):
                found[name] = parse_share(value)
            else:
                found[name] = value
        return found


class _WrittenStep(BaseModel):
    model_config = ConfigDict(extra="forbid")

    at: str
    up: _Written = Field(default_factory=_Written)
    down: _Written = Field(default_factory=_Written)


class _WrittenScript(BaseModel):
    model_config = ConfigDict(extra="forbid")

    up: _Written = Field(default_factory=_Written)
    down: _Written = Field(default_factory=_Written)
    script: list[_WrittenStep] = Field(default_factory=list[_WrittenStep])


def parse_share(value: str | float) -> float:
    """`5%`, `0.05` → 0.05. Raises: ValueError."""
    try:
        share = float(value[:-1]) / 100 if isinstance(value, str) and value.endswith("%") else float(value)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise ValueError(f"{value!r} is not a share; write 5% or 0.05")
    return share


def check(written: Mapping[str, Any], faults: Faults) -> None:
    """Every fault of a description, each with its place."""
    faults.keys(written, (), ("up", "down", "script"), "a network")
    _check_ways(written, (), faults)
    steps = written.get("script") or []
    if not isinstance(steps, list):
        faults.fault(("script",), f"'script' must be a list of steps, not {steps!r:.80}")
        return
    for n, given in enumerate(cast("list[Any]", steps)):
        step = faults.mapping(given, ("script", n), "a step")
        faults.keys(step, ("script", n), ("at", "up", "down"), "a step")
        if "at" in step:
            faults.duration(step["at"], ("script", n, "at"))
        else:
            faults.fault(("script", n), "a step says when: at: 10s")
        _check_ways(step, ("script", n), faults)


def _check_ways(written: Mapping[str, Any], where: tuple[str | int, ...], faults: Faults) -> None:
    for name in ("up", "down"):
        here = (*where, name)
        for key, value in faults.mapping(written.get(name), here, f"{name!r}").items():
            read = faults.model(_Written, {key: value}, here, f"{name!r}")
            if not isinstance(read, _Written):
                continue
            try:
                read.changes()
            except ValueError as e:
                faults.fault((*here, key), f"{name}.{key}: {e}")


def read(written: Mapping[str, Any], seed: int = 0) -> tuple[Link, Link]:
    """`{up: {…}, down: {…}, script: [{at: 10s, up: {…}}]}` → the links up and down.

    Raises: StageError.
    """
    try:
        whole = TypeAdapter(_WrittenScript).validate_python(dict(written))
        links: list[Link] = []
        for k, name in enumerate(("up", "down")):
            steps = [
                Step(parse_duration(s.at) / MS, changes)
                for s in whole.script
                if (changes := getattr(s, name).changes())
            ]
            links.append(Link(Conditions(**getattr(whole, name).changes()), steps, seed * 2 + k))
    except ValidationError as e:
        raise StageError(f"network: {first_in_words(e)}") from e
    except ValueError as e:
        raise StageError(f"network: {e}") from e
    return links[0], links[1]
