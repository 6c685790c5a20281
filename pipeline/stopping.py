"""Ctrl-C, bounded: a command's orderly end gets a grace, then the process goes, whatever still waits."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Generator, Sequence
from types import FrameType
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

GRACE_S = 1.4  # of the two seconds that Ctrl-C may take; the rest is for a busy machine
TELL_S = 0.1  # for the log, which a pipe that nobody reads may hold up
SETTLE_S = 0.3  # for what waited for them
LONGEST_S = 10  # that files which are being completed may hold an exit up
INTERRUPTED = 130  # exit code, as of a shell: 128 + SIGINT
SHOW_CURSOR = "\x1b[?25h"

_files = threading.Condition()
_open_ends = 0  # files that are being completed


@contextlib.contextmanager
def completing() -> Generator[None]:
    """While a file gets its end, on any thread: until then the process exits only after LONGEST_S."""
    global _open_ends
    with _files:
        _open_ends += 1
    try:
        yield
    finally:
        with _files:
            _open_ends -= 1
            _files.notify_all()


@atexit.register  # the threads that write are daemons
def completed() -> bool:
    """Wait for the files that are being completed. False: there was none to wait for."""
    with _files:
        waits = _open_ends > 0
        _files.wait_for(lambda: not _open_ends, LONGEST_S)
    return waits


def run(
    work: Coroutine[Any, Any, None],
    *,
    orderly: Sequence[signal.Signals] = (),
    leave: Callable[[int], object] = os._exit,
    grace_s: float = GRACE_S,
    tell_s: float = TELL_S,
) -> None:
    """`asyncio.run`, that a signal ends in time: what has not ended `grace_s` after it is named and left, but
    files that are being completed.

    orderly: signals that end the work as Ctrl-C does, but with exit code 0: `run` returns. leave: exits at once.
    Raises: KeyboardInterrupt after Ctrl-C; what the work raises.
    """
    asked: list[int] = []
    ended = threading.Event()
    task: asyncio.Task[None] | None = None
    loop: asyncio.AbstractEventLoop | None = None

    async def held() -> None:
        nonlocal task, loop
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        await work

    def stop(number: int, _: FrameType | None) -> None:
        if asked or task is None or loop is None:  # asked twice, or nothing runs yet
            raise KeyboardInterrupt
        asked.append(number)
        code = INTERRUPTED if number == signal.SIGINT else 0
        threading.Thread(
            target=_bound, args=(ended, grace_s, tell_s, loop, code, leave), name="stop", daemon=True
        ).start()
        loop.call_soon_threadsafe(task.cancel)

    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, *orderly)}
    try:
        asyncio.run(held())
    except asyncio.CancelledError:
        if not asked:
            raise
    finally:
        ended.set()
        work.close()  # never begun, where a signal came first
        for number, handler in before.items():
            signal.signal(number, handler)
    if signal.SIGINT in asked:
        raise KeyboardInterrupt


def result(work: Coroutine[Any, Any, T]) -> T:
    """As `run`, for work that returns something."""
    found: list[T] = []

    async def kept() -> None:
        found.append(await work)

    try:
        run(kept())
    finally:
        work.close()
    return found[0]


def _bound(
    ended: threading.Event,
    grace_s: float,
    tell_s: float,
    loop: asyncio.AbstractEventLoop,
    code: int,
    leave: Callable[[int], object],
) -> None:
    if ended.wait(grace_s) or (completed() and ended.wait(SETTLE_S)):
        return
    telling = threading.Thread(target=_tell, args=(loop, grace_s), name="stop-tell", daemon=True)
    telling.start()
    telling.join(tell_s)
    if not ended.is_set():
        leave(code)


def _tell(loop: asyncio.AbstractEventLoop, grace_s: float) -> None:
    try:
        waits = sorted(task.get_name() for task in asyncio.all_tasks(loop))
    except RuntimeError:  # they changed while they were read
        waits = []
    what = ", ".join(waits[:8]) or "threads"
    log.warning("not ended %.1f s after the signal, and left: %s", grace_s, what)
    sys.stderr.flush()
    if sys.stdout.isatty():
        sys.stdout.write(SHOW_CURSOR)  # a live picture hides it
    sys.stdout.flush()
