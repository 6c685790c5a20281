"""Time, in integer nanoseconds, injected everywhere. Only this module reads a real clock, and the loop's watchdog, which must
see what the loop's own clock cannot."""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

NEVER = 2**63 - 1  # a deadline that no clock reaches
MS = 1_000_000  # ns
SECOND = 1_000_000_000  # ns


class Clock(Protocol):
    """Monotonic time. `now` is in ns from an arbitrary origin; `sleep` takes ns."""

    def now(self) -> int: ...

    def wall(self) -> int:
        """Unix time in ns, for logs and file names only."""
        ...

    async def sleep(self, duration: int) -> None: ...


class MonotonicClock:
    """The machine's monotonic clock."""

    now = staticmethod(time.monotonic_ns)
    wall = staticmethod(time.time_ns)

    async def sleep(self, duration: int) -> None:
        await asyncio.sleep(duration / SECOND)


class LoopClock:
    """Time as the running event loop tells it: virtual on a `VirtualLoop`, else monotonic."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def now(self) -> int:
        return round(self._loop.time() * SECOND)

    wall = now

    async def sleep(self, duration: int) -> None:
        await asyncio.sleep(duration / SECOND)


class ManualClock:
    """A clock that moves only when told to: for policies tested without any loop."""

    def __init__(self, now: int = 0) -> None:
        self.time = now

    def now(self) -> int:
        return self.time

    wall = now

    async def sleep(self, duration: int) -> None:
        self.time += duration
        await asyncio.sleep(0)
