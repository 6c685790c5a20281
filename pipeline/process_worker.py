"""The worker process of a pool: loads models and runs rows as it is told, over one message channel.

Messages are JSON. Requests: `load` {model, factory, args}, `run` {model, rows, specs, request, response},
`response` {name} after a reply `grow` {nbytes}. Replies: `ok`, `error` {words}, `lasting` {words}, `done` {rows, specs},
`grow`; between them `beat`, from a thread of its own, twice a second. States come and go by value: when
this process dies, nothing is lost but the rows it ran.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Hashable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any, Protocol

from .errors import LastingError
from .pool_threads import make_model
from .row_pool import error_words
from .rows import Again, ModelSpec, Row, RowModel
from .shared_arrays import Array, attach, flatten, layout, release, restore, views, write

BEAT_S = 0.5


class Channel(Protocol):
    """Whole messages in order, both ways. Here a local socket; a network one would do."""

    def send_bytes(self, buf: bytes) -> None: ...

    def recv_bytes(self) -> bytes:
        """Raises: EOFError when the other side is gone."""
        ...

    def close(self) -> None: ...


class Worker:
    """Serves one channel until it ends."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._sending = threading.Lock()
        self._models: dict[str, RowModel] = {}
        self._blocks: dict[str, tuple[str, SharedMemory]] = {}  # request and response

    def serve(self) -> None:
        threading.Thread(target=self._beat, name="beat", daemon=True).start()
        self._send({"is": "ok"})
        while True:
            try:
                message = json.loads(self._channel.recv_bytes())
            except (EOFError, OSError):
                return
            try:
                reply = self._load(message) if message["do"] == "load" else self._run(message)
            except Exception as e:  # noqa: BLE001 - the boundary: a model's error is told, not died of
                reply = {"is": "error", "words": error_words(e)}
                if isinstance(e, LastingError):
                    reply = {"is": "lasting", "words": str(e)}
            self._send(reply)

    def _load(self, message: dict[str, Any]) -> dict[str, Any]:
        spec = ModelSpec(message["model"], message["factory"], message["args"])
        self._models[spec.name] = make_model(spec)
        return {"is": "ok"}

    def _run(self, message: dict[str, Any]) -> dict[str, Any]:
        model = self._models[message["model"]]
        inputs = views(self._block("request", message["request"]), message["specs"])
        for array in inputs:
            array.flags.writeable = False  # a model that wrote into its input would change another row's
        rows = [Row(**restore(flat, inputs)) for flat in message["rows"]]
        outputs: list[Array] = []
        flat = [_flat_end(end, outputs) for end in self._ends(model, rows)]
        specs, nbytes = layout(outputs)
        block = self._block("response", message["response"])
        if nbytes > block.size:
            self._send({"is": "grow", "nbytes": nbytes})
            block = self._block("response", json.loads(self._channel.recv_bytes())["name"])
        write(block, outputs, specs)
        return {"is": "done", "rows": flat, "specs": specs}

    def _ends(self, model: RowModel, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """Run and commit. The pool groups rows by shapes; the model's own keys are finer."""
        ends: list[dict[str, Any]] = [{} for _ in rows]
        groups: dict[Hashable, list[int]] = {}
        for i, row in enumerate(rows):
            groups.setdefault(model.batch_key(row), []).append(i)
        for members in groups.values():
            results = model.forward([rows[i] for i in members])
            for i, result in zip(members, results, strict=True):
                try:
                    output = model.commit(rows[i], result)
                except Exception as e:  # noqa: BLE001 - only this row's
                    ends[i] = {"error": error_words(e)}
                    continue
                if isinstance(output, Again):
                    ends[i] = {"again": output.payload, "lane": output.lane, "state": rows[i].state}
                else:
                    ends[i] = {"output": output, "state": rows[i].state}
        return ends

    def _block(self, role: str, name: str) -> SharedMemory:
        known = self._blocks.get(role)
        if known is None or known[0] != name:
            if known is not None:
                release(known[1], unlink=False)
            self._blocks[role] = known = (name, attach(name))
        return known[1]

    def _send(self, message: dict[str, Any]) -> None:
        with self._sending:
            self._channel.send_bytes(json.dumps(message).encode())

    def _beat(self) -> None:
        pause = threading.Event()
        while not pause.wait(BEAT_S):
            try:
                self._send({"is": "beat"})
            except OSError:
                os._exit(0)  # the daemon is gone; whatever runs here has nobody left


def _flat_end(end: dict[str, Any], arrays: list[Array]) -> dict[str, Any]:
    """The JSON form; an output that cannot be sent fails its own row only."""
    mark = len(arrays)
    try:
        return flatten(end, arrays, "what the model gave")
    except TypeError as e:
        del arrays[mark:]
        return {"error": str(e)}


def main() -> None:
    """Serve the socket whose number is the last argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the daemon, which ends us
    Worker(Connection(int(sys.argv[-1]))).serve()
    os._exit(0)  # threads of native libraries must not hold up the end


if __name__ == "__main__":
    main()
