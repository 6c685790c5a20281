"""An event loop whose clock jumps: an hour of dialogue simulated in seconds, in the same order each time.

When nothing is ready, time moves to the next timer at once. There are no sockets and no threads in a
simulation: waiting for something that no timer will bring is a bug, told as `SimulationDeadlock`.

Source: the autojump clock of trio (docs, "Time and timeouts").
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class SimulationDeadlock(RuntimeError):
    """Every task waits, and no timer is set that could wake one."""


class _JumpingSelector(selectors.SelectSelector):
    """Never sleeps: tells the loop how long it would have slept."""

    def __init__(self) -> None:
        super().__init__()
        self.loop: VirtualLoop | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or self.loop is None:
            return ready
        if timeout is None:
            if self.loop.outside_work:
                return super().select(None)
            raise SimulationDeadlock("every task waits and no timer is set: time cannot move")
        if timeout > 0:
            self.loop.advance(timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """`asyncio` on virtual time. `time()` starts at 0 s."""

    def __init__(self) -> None:
        self._virtual_s = 0.0
        self.outside_work = 0  # > 0 while a real thread may still call back
        selector = _JumpingSelector()
        super().__init__(selector)
        selector.loop = self

    def time(self) -> float:
        return self._virtual_s

    def advance(self, seconds: float) -> None:
        self._virtual_s += seconds


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` to its end on a fresh virtual loop.

    Raises: SimulationDeadlock when all tasks wait for something that cannot happen.
    """
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)
