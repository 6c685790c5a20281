"""Entry point of `penstock` and `python -m penstock.pipeline`. Imports nothing heavy before Ctrl-C is handled."""

from __future__ import annotations

import os
import sys
import threading


def main() -> None:
    """Run the command line and leave with its exit code; 130 after Ctrl-C, also while modules still load."""
    code: object = 0
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
    """Exit, at once where a pool's thread is still inside native code: the interpreter's own end would
    unwind it through C++ frames that forbid that, and abort."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BrokenPipeError:  # `penstock graph x | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    if threading.active_count() > 1:
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
