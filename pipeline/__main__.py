"""Entry point of `penstock` and `python -m penstock.pipeline`. Imports nothing heavy before Ctrl-C is handled."""

from __future__ import annotations

import os
import signal
import sys
import threading


def main() -> None:
    """Run the command line and leave with its exit code; 130 after Ctrl-C, also while modules still load."""
    code: object = 0
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a script that starts it with & has it ignored
    try:
        from .cli import cli

        cli()
    except SystemExit as e:
        code = e.code
    except KeyboardInterrupt:
        code = 130
    if isinstance(code, str):  # sys.exit("words")
        print(code, file=sys.stderr)
        code = 1
    _leave(code if isinstance(code, int) else 0)


def _leave(code: int) -> None:
    """Exit, at once after Ctrl-C, and where a pool's thread is still inside native code: the interpreter's own end
    takes a second on a busy machine, and would unwind the thread through C++ frames that forbid that, and abort."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:  # `penstock graph x | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if code == 130 or threading.active_count() > 1:
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
