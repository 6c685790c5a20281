"""Keeps what ended sessions used from staying: their objects, and their memory in the C allocator.

Each connection starts threads that decode and end with it. glibc gives threads allocation arenas of their own,
which fragment: after 150 sessions the process held 236 MB, with one arena 162 MB, the objects alive
being the same.

A session's objects refer to each other in circles, so they go when Python's collector finds them; what they weigh lies in
C (a recogniser 8 MB, a connection's DTLS and codecs), which the collector does not count. It looks at everything only when a
quarter has been added to what is there, and a started server holds a quarter of a million objects: forty ended
sessions of the voice agent held 640 MB that way. So what is there once the server is ready is set aside
(`gc.freeze`), which also takes 40 ms out of each full look (3 to 10 ms are left), and each session that ends has one.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys
from collections.abc import Callable

ARENAS = 1  # the lock they share is held for less than a microsecond at a time
AFTER_S = 0.5  # a session's last tasks end within this; those that end together are tidied together
_M_ARENA_MAX = -8  # malloc.h


def limit_arenas() -> None:
    """Let threads share arenas from now on. Nothing happens where the C library is not glibc."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Return free memory to the system. Takes some ms: not for the event loop."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


class Tidier:
    """Collects what ended sessions leave. busy: is any session left, whom a pause of 40 ms would hurt?"""

    def __init__(self, busy: Callable[[], bool]) -> None:
        self._busy = busy
        self._due: asyncio.TimerHandle | None = None
        self._begun = False

    def begin(self) -> None:
        """The server is ready: what is there now stays."""
        self._begun = True
        gc.collect()
        gc.freeze()
        gc.collect()  # so that the collector's idea of how much is there is what came since

    def end(self) -> None:
        if self._due is not None:
            self._due.cancel()
        if self._begun:
            self._begun = False
            gc.unfreeze()

    def ended(self) -> None:
        """A session has ended."""
        if self._begun and self._due is None:
            self._due = asyncio.get_running_loop().call_later(AFTER_S, self._tidy)

    def _tidy(self) -> None:
        # on the loop's thread: what is collected may belong to the loop
        self._due = None
        if self._busy():
            gc.collect()
        else:  # what was set aside may have become garbage too: a graph that a reload took away
            gc.unfreeze()
            self.begin()
        asyncio.get_running_loop().run_in_executor(None, give_back)
