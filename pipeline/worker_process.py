"""The daemon's side of one worker process: starts it, talks to it, notices that it died or hangs."""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

from .clock import SECOND, Clock
from .errors import LastingError
from .pool_seams import Rejected
from .rows import ModelSpec, Row
from .shared_arrays import Array, create, flatten, layout, release, restore, views, write

_PACKAGE = __name__.rpartition(".")[0]

SILENCE = 5 * SECOND  # without a beat: stopped, or stuck in native code that holds the interpreter
START_LIMIT = 60 * SECOND
LOAD_LIMIT = 300 * SECOND
LOOK = SECOND // 4  # how often a request looks whether the process still beats
FIRST_RUN = 6  # times the hang limit for a model's first forwards: compilation


class WorkerLost(Exception):
    """The process died, or was killed because it hung."""


class WorkerProcess:
    """One request at a time; blocking. on_death is called once, from a thread, unless `close` came first.

    Raises: WorkerLost when it does not start.
    """

    def __init__(self, name: str, clock: Clock, on_death: Callable[[WorkerProcess], None]) -> None:
        self.alive = True
        self.broken: dict[str, str] = {}  # models that it has not, though others of its pool may → why
        self.started = clock.now()
        self._name = name
        self._clock = clock
        self._on_death = on_death
        self._replies: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._last_beat = clock.now()
        self._closing = False
        self._runs: dict[str, int] = {}
        self._request_lock = threading.Lock()
        self._blocks = {"request": create(0), "response": create(0)}
        ours, theirs = socket.socketpair()
        # no -m: the parent's import path is the child's, whatever it was started with
        command = [sys.executable, "-c", f"from {_PACKAGE}.process_worker import main; main()"]
        paths = os.pathsep.join(p or os.getcwd() for p in sys.path)
        self.process = subprocess.Popen(
            [*command, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=os.environ | {"PYTHONPATH": paths},
        )
        theirs.close()
        self._channel = Connection(ours.detach())
        threading.Thread(target=self._read, name=f"pool-{name}-reader", daemon=True).start()
        try:
            self._reply(START_LIMIT, silence=START_LIMIT)
        except WorkerLost:
            self.close()
            raise

    def load(self, spec: ModelSpec) -> None:
        """Raises: LastingError, Rejected with the model's error, WorkerLost."""
        message = {"do": "load", "model": spec.name, "factory": spec.factory, "args": dict(spec.args)}
        with self._request_lock:
            self._send(message)
            # imports of native libraries hold the interpreter for long: no beats are expected
            self._reply(LOAD_LIMIT, silence=LOAD_LIMIT)

    def run(self, model: str, rows: Sequence[Row], limit: int) -> list[dict[str, Any]]:
        """The ends of rows, with arrays of their own. Raises: LastingError, Rejected, WorkerLost, TypeError."""
        arrays: list[Array] = []
        flat = [
            flatten(
                {
                    "payload": row.payload,
                    "state": row.state,
                    "lane": row.lane,
                    "further": row.further,
                    "session": row.session,
                    "node": row.node,
                },
                arrays,
                "the row",
            )
            for row in rows
        ]
        specs, nbytes = layout(arrays)
        with self._request_lock:
            self._grow("request", nbytes)
            write(self._blocks["request"], arrays, specs)
            runs = self._runs[model] = self._runs.get(model, 0) + 1
            self._send(
                {
                    "do": "run",
                    "model": model,
                    "rows": flat,
                    "specs": specs,
                    "request": self._blocks["request"].name,
                    "response": self._blocks["response"].name,
                }
            )
            limit = limit * FIRST_RUN if runs <= 2 else limit
            reply = self._reply(limit, silence=min(limit, SILENCE) if runs > 2 else limit)
            if reply["is"] == "grow":
                self._grow("response", reply["nbytes"])
                self._send({"name": self._blocks["response"].name})
                reply = self._reply(limit, silence=SILENCE)
            results = [array.copy() for array in views(self._blocks["response"], reply["specs"])]
        return [restore(end, results) for end in reply["rows"]]

    def close(self) -> None:
        """Kill it: nothing in it is worth keeping. Idempotent, and quick."""
        if self._closing:
            return
        self._closing = True
        self.alive = False
        self.process.kill()
        self.process.wait()
        for block in self._blocks.values():
            release(block, unlink=True)
        self._replies.put(None)

    # ------------------------------------------------------------ inside

    def _grow(self, role: str, nbytes: int) -> None:
        if nbytes > self._blocks[role].size:
            release(self._blocks[role], unlink=True)
            self._blocks[role] = create(nbytes)

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._channel.send_bytes(json.dumps(message).encode())
        except OSError as e:
            raise WorkerLost(f"the process of pool {self._name!r} is gone") from e

    def _reply(self, limit: int, silence: int) -> dict[str, Any]:
        begin = self._clock.now()
        while True:
            try:
                reply = self._replies.get(timeout=LOOK / SECOND)
            except queue.Empty:
                now = self._clock.now()
                if now - begin > limit or now - max(begin, self._last_beat) > silence:
                    self.alive = False
                    self.process.kill()
                    waited = (now - begin) / SECOND
                    raise WorkerLost(
                        f"the process of pool {self._name!r} hung ({waited:.0f} s): killed"
                    ) from None
                continue
            if reply is None:
                code = self.process.poll()
                raise WorkerLost(f"the process of pool {self._name!r} died (exit status {code})")
            if reply["is"] == "lasting":
                raise LastingError(reply["words"])
            if reply["is"] == "error":
                raise Rejected(reply["words"])
            return reply

    def _read(self) -> None:
        while True:
            try:
                message = json.loads(self._channel.recv_bytes())
            except (EOFError, OSError):
                break
            if message["is"] == "beat":
                self._last_beat = self._clock.now()
            else:
                self._replies.put(message)
        self.alive = False
        self._replies.put(None)
        self.process.wait()
        self._channel.close()
        if not self._closing:
            self._on_death(self)
