"""`penstock serve` as a process of its own, as a user runs it."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field

READY_S = 90  # imports and models on a cold, busy machine
STOP_S = 15


@dataclass(slots=True)
class Served:
    """A running server: where it listens, its process, and all it has said."""

    url: str
    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list[str])


@contextmanager
def serving(*graphs: str, port: int = 0, token: str = "") -> Generator[Served]:
    """Serve `graphs` (names or paths; none: all) on `port` (0: a free one); the process is gone at the end, whatever happens."""
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock.pipeline", "serve", *graphs, "--port", str(port)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "PENSTOCK_TOKEN": token},
    )
    served = Served("", process)
    ready = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            served.lines.append(line.rstrip())
            if not served.url and (found := re.search(r"ready.*(http://127\.0\.0\.1:\d+)", line)):
                served.url = found[1] + "/"
                ready.set()
        ready.set()  # it has ended

    reader = threading.Thread(target=read, name="serve/stderr")
    reader.start()
    try:
        ready.wait(READY_S)
        assert served.url, "the server did not start:\n" + "\n".join(served.lines[-20:])
        yield served
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        if process.poll() is None:
            process.kill()
            process.wait()
        reader.join()
        if process.stderr is not None:
            process.stderr.close()
