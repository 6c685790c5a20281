"""The `pools:` part of a graph: what each pool computes on, and how.

pools: {main: {device: auto, kind: thread, workers: 2, batch: {max: 8}, share: {restyle: 0.8}}}
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from .clock import SECOND
from .units import Device, Duration
from .yaml_marks import Path


class BatchPlan(BaseModel):
    """How rows are put together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max: int = Field(default=8, ge=1, le=256, description="rows in one forward")


class PoolPlan(BaseModel):
    """One pool. The models it runs come from the stages that use it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    device: Device = "auto"
    order: Literal["edf"] = "edf"
    kind: Literal["thread", "process"] = "thread"
    workers: int | None = Field(
        default=None, ge=1, le=64, description="threads, or processes; none: as the device"
    )
    batch: BatchPlan = BatchPlan()
    share: Mapping[str, Annotated[float, Field(gt=0, le=1)]] = Field(
        default_factory=dict[str, float], description="weight of a node where time is short; 1 otherwise"
    )
    hang: Annotated[Duration, Field(ge=SECOND)] = Field(
        default=10 * SECOND, description="a process silent for so long in one forward is killed"
    )

    @property
    def threads(self) -> int:
        """Threads for calls. More than cores: all sessions share them, and calls cannot be interrupted."""
        return self.workers if self.workers and self.kind == "thread" else max(8, 2 * (os.cpu_count() or 2))

    @property
    def row_workers(self) -> int:
        """Forwards at a time. One on an accelerator, where a larger batch beats a second queue."""
        if self.workers:
            return self.workers
        if self.kind == "process" or self.device.startswith(("cuda", "mps")):
            return 1
        return max(1, (os.cpu_count() or 2) // 2)


def pool_faults(
    pools: Mapping[str, PoolPlan],
    users: Mapping[str, str],
    names: Sequence[str],
    here: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[tuple[Path, str]]:
    """What is wrong between pools and nodes, with its place.

    pools: those without faults of their own; names: all; users: node → the pool it names; here: node → its stage, for
    those whose rows cannot leave this process.
    """
    known = ", ".join(sorted({*names, "main"}))
    for node, pool in users.items():
        if pool not in names and pool != "main":
            yield ("nodes", node, "pool"), f"unknown pool {pool!r}; declared: {known}"
        elif pool in pools and pools[pool].kind == "process" and node in here:
            yield (
                ("pools", pool, "kind"),
                f"pool {pool!r} computes in other processes, where the state of {here[node]} (node {node!r}) cannot "
                f"go; accepted for this node: kind: thread",
            )
    for name, plan in pools.items():
        its = sorted(node for node, pool in users.items() if pool == name)
        for node in plan.share:
            if node not in its:
                yield (
                    ("pools", name, "share", node),
                    f"no node {node!r} uses the pool {name!r}; accepted: {', '.join(its) or 'nothing'}",
                )
