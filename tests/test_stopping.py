"""Ctrl-C ends a command in order, and in time whatever it waits for."""

from __future__ import annotations

import asyncio
import io
import logging
import os
import signal
import subprocess
import sys
import threading

import pytest
from penstock.pipeline import stopping


def test_ctrl_c_ends_the_work_in_order() -> None:
    ended: list[str] = []

    async def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("in order")

    with pytest.raises(KeyboardInterrupt):
        stopping.run(work())
    assert ended == ["in order"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_orderly_signal_returns() -> None:
    async def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(60)

    stopping.run(work(), orderly=(signal.SIGTERM,))


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_does_not_end_is_named_and_left(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    left = threading.Event()
    codes: list[int] = []

    def leave(code: int) -> None:
        codes.append(code)
        left.set()

    async def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            await asyncio.sleep(60)
        finally:
            never = asyncio.create_task(asyncio.Event().wait(), name="s-1/stuck")
            while not left.is_set():  # what the real `leave` would not come back from
                await asyncio.wait([never], timeout=0.01)

    with caplog.at_level(logging.WARNING), pytest.raises(KeyboardInterrupt):
        stopping.run(work(), leave=leave, grace_s=0.05, tell_s=20)
    assert codes == [130]
    assert "s-1/stuck" in caplog.text
    assert screen.getvalue() == stopping.SHOW_CURSOR


def test_a_file_that_gets_its_end_is_waited_for() -> None:
    """Whatever else does not end."""
    order: list[object] = []
    begun, waited = threading.Event(), threading.Event()

    def end_the_file() -> None:
        with stopping.completing():
            begun.set()
            waited.wait(20)
            order.append("whole")

    class Ended(threading.Event):
        """The work never ends."""

        def wait(self, timeout: float | None = None) -> bool:
            waits.append(timeout)
            if len(waits) == 1:  # the grace is over
                threading.Timer(0.05, waited.set).start()
            return False

    waits: list[float | None] = []
    writer = threading.Thread(target=end_the_file)
    writer.start()
    begun.wait()
    loop = asyncio.new_event_loop()
    stopping._bound(Ended(), 1.4, 20, loop, 130, order.append)  # pyright: ignore[reportPrivateUsage]
    loop.close()
    writer.join()
    assert order == ["whole", 130]
    assert waits[0] == 1.4


def test_an_exit_waits_for_the_files_that_daemon_threads_complete() -> None:
    program = (
        "import sys, threading, time\n"
        "from penstock.pipeline import stopping\n"
        "begun = threading.Event()\n"
        "def end():\n"
        "    with stopping.completing():\n"
        "        begun.set(); time.sleep(.2); sys.stderr.write('whole')\n"
        "threading.Thread(target=end, daemon=True).start(); begun.wait()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stderr == "whole"


def test_a_command_that_a_script_starts_in_the_background_hears_sigint() -> None:
    """`command &` in a script begins with SIGINT ignored."""
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); sys.argv = ['penstock', '--version']\n"
        "from penstock.pipeline.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "True", done.stderr


def test_what_the_work_returns_or_raises_comes_back() -> None:
    async def work(fails: bool) -> int:
        if fails:
            raise ValueError("no")
        return 7

    assert stopping.result(work(fails=False)) == 7
    with pytest.raises(ValueError, match="no"):
        stopping.result(work(fails=True))
