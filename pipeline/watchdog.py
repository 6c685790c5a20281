"""Two watchdogs: one names the stage that blocks the event loop, one ends calls that never return.

A blocked loop stops every session of the process, and nothing inside it can say so: a thread looks from
outside. A loop that is late because the machine is too busy blames nobody: the kernel says how long a thread waited
for a processor. A stage that awaits something that never comes only freezes itself: the session restarts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import sys
import threading
import time
from collections.abc import Mapping
from types import FrameType

from .clock import MS, SECOND
from .runner import Runner

log = logging.getLogger(__name__)

BEAT = 50 * MS  # how often the loop shows that it lives
LAG = 250 * MS  # longer than this without a beat is told
NOBODY = ("select", "poll")  # where a loop stands that waits for its turn
OWN = (__file__, "weakref.py", "_weakrefset.py")  # called from anywhere: whoever called them is looked at


class LoopWatchdog:
    """Watches the running loop from a thread. Counts the blocks; logs each once, with the stage's name.

    Reads the real clock: it must see what the loop's own clock cannot.
    """

    def __init__(self, lag: int = LAG) -> None:
        self.blocks = 0
        self.starved = 0  # times the loop was late and nothing on it was to blame
        self.longest = 0  # ns
        self.lag = 0  # ns: how late the last beat was
        self.last = ""  # "s-1/asr in …/asr.py:120 decode", the last culprit
        self._found = (0, "")  # a beat that was late, and what was on the stack then
        self._lag = lag
        self._beat = time.monotonic_ns()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._handle: asyncio.TimerHandle | None = None
        self._loop_thread = 0
        self._native = 0
        self._seen = 0  # the beat at which `_waited` was read
        self._waited = 0
        self._collected = 0  # ns in full garbage collections, so far
        self._collects_since = 0
        self._collected_before = 0  # at the last beat

    def start(self) -> None:
        """Watch the running loop until `stop`."""
        self._loop_thread = threading.get_ident()
        self._native = threading.get_native_id()
        gc.callbacks.append(self._collects)
        self._tick()
        self._thread = threading.Thread(target=self._watch, name="loop-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        with contextlib.suppress(ValueError):
            gc.callbacks.remove(self._collects)
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
        late, (beat, found) = now - self._beat, self._found
        told = beat == self._beat  # what is found of an older beat, after its end, says nothing of this one
        self.lag = max(0, late - BEAT)
        starved = processor_wait(self._native) - self._waited if told else 0
        collected, self._collected_before = self._collected - self._collected_before, self._collected
        self._beat = time.monotonic_ns()  # before it is told: what that takes is no other block
        if told:
            self._tell(found, late, starved, collected)
        self._handle = asyncio.get_running_loop().call_later(BEAT / SECOND, self._tick)

    def _collects(self, phase: str, info: Mapping[str, int]) -> None:
        """gc's callback: while one thread collects, none runs."""
        if info["generation"] < 2:
            return
        if phase == "start":
            self._collects_since = time.monotonic_ns()
        else:
            self._collected += time.monotonic_ns() - self._collects_since

    def _tell(self, found: str, late: int, starved: int, collected: int) -> None:
        self.longest = max(self.longest, late)
        if starved > late // 2:
            self.starved += 1
            words = "the event loop came %d ms late: it waited %d ms for a processor; the machine is too busy"
            log.warning(words, late // MS, starved // MS)
        elif collected > late // 2:
            self.starved += 1
            words = "the event loop came %d ms late: garbage collection took %d ms"
            log.warning(words, late // MS, collected // MS)
        elif found.rpartition(" ")[2] in NOBODY:
            self.starved += 1
            words = "the event loop came %d ms late: another thread held the interpreter, or the process was stopped"
            log.warning(words, late // MS)
        else:
            self.blocks += 1
            self.last = found
            log.warning("the event loop was blocked for %d ms by %s", late // MS, self.last)

    def _watch(self) -> None:
        while not self._stop.wait(BEAT / SECOND):
            beat = self._beat
            if beat != self._seen:
                self._seen, self._waited = beat, processor_wait(self._native)
            if beat != self._found[0] and time.monotonic_ns() - beat > self._lag + BEAT:
                found = culprit(sys._current_frames().get(self._loop_thread))  # pyright: ignore[reportPrivateUsage]
                self._found = beat, found


def processor_wait(native_id: int) -> int:
    """ns for which a thread of this process could run and had no processor, so far; 0 where that is not told.

    Source: Linux, Documentation/scheduler/sched-stats.rst: /proc/<pid>/task/<tid>/schedstat, second field.
    """
    try:
        with open(f"/proc/self/task/{native_id}/schedstat") as told:
            return int(told.read().split()[1])
    except (OSError, IndexError, ValueError):
        return 0


def culprit(frame: FrameType | None) -> str:
    """Who is on the stack: the node, where the engine called a stage, and the innermost place."""
    while frame is not None and frame.f_code.co_filename.endswith(OWN):
        frame = frame.f_back
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
