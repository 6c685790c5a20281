"""Two watchdogs: one names the stage that blocks the event loop, one ends calls that never return.

A blocked loop stops every session of the process, and nothing inside it can say so: a thread looks from
outside. A stage that awaits something that never comes only freezes itself: the session restarts it.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from types import FrameType

from .clock import MS, SECOND
from .runner import Runner

log = logging.getLogger(__name__)

BEAT = 50 * MS  # how often the loop shows that it lives
LAG = 250 * MS  # longer than this without a beat is told


class LoopWatchdog:
    """Watches the running loop from a thread. Counts the blocks; logs each once, with the stage's name.

    Reads the real clock: it must see what the loop's own clock cannot.
    """

    def __init__(self, lag: int = LAG) -> None:
        self.blocks = 0
        self.longest = 0  # ns
        self.lag = 0  # ns: how late the last beat was
        self.last = ""  # "s-1/asr in …/asr.py:120 decode", the last culprit
        self._lag = lag
        self._beat = time.monotonic_ns()
        self._told = False
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._loop_thread = 0

    def start(self) -> None:
        """Watch the running loop until `stop`."""
        self._loop_thread = threading.get_ident()
        self._tick()
        self._thread = threading.Thread(target=self._watch, name="loop-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._handle is not None:
            self._handle.cancel()
        if self._thread is not None:
            self._thread.join(1)

    @property
    def silent(self) -> int:
        """ns since the loop's last beat."""
        return time.monotonic_ns() - self._beat

    def _tick(self) -> None:
        now = time.monotonic_ns()
        if self._told:
            self._told = False
            self.longest = max(self.longest, now - self._beat)
            log.warning("the event loop was blocked for %d ms by %s", (now - self._beat) // MS, self.last)
        self.lag = max(0, now - self._beat - BEAT)
        self._beat = now
        self._handle = asyncio.get_running_loop().call_later(BEAT / SECOND, self._tick)

    def _watch(self) -> None:
        while not self._stop.wait(BEAT / SECOND):
            if not self._told and time.monotonic_ns() - self._beat > self._lag + BEAT:
                self.blocks += 1
                self.last = culprit(sys._current_frames().get(self._loop_thread))  # pyright: ignore[reportPrivateUsage]
                self._told = True


def culprit(frame: FrameType | None) -> str:
    """Who is on the stack: the node, where the engine called a stage, and the innermost place."""
    if frame is None:
        return "an unknown caller"
    place = f"{frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}"
    at: FrameType | None = frame
    while at is not None:
        for name in ("self", "runner"):  # the latter in a fused hop
            owner = at.f_locals.get(name)
            if isinstance(owner, Runner):
                return f"{owner.session}/{owner.node} in {place}"
        at = at.f_back
    return place
