"""Keeps the C allocator from holding memory that nobody uses.

Each connection starts threads that decode and end with it. glibc gives threads allocation arenas of their own,
which fragment: after 150 sessions the process held 236 MB, with one arena 162 MB, the objects alive
being the same.
"""

from __future__ import annotations

import ctypes
import sys

ARENAS = 1  # the lock they share is held for less than a microsecond at a time
_M_ARENA_MAX = -8  # malloc.h


def limit_arenas() -> None:
    """Let threads share arenas from now on. Nothing happens where the C library is not glibc."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Return free memory to the system. Takes some ms: not for the event loop."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
