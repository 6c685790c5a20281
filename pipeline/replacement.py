"""A new stage for a running node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .graph import NodePlan
from .stage import Stage


@dataclass(frozen=True, slots=True)
class Replace:
    """On the control lane: go on with this stage, which is set up already, on the same edges.

    make: what a restart after a failure calls from then on.
    """

    stage: Stage
    plan: NodePlan
    make: Callable[[], Stage]
