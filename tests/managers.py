"""The service manager's end of a daemon's socket, and a daemon that tells it."""

from __future__ import annotations

import socket
from pathlib import Path

from client import GRAPHS
from penstock.pipeline.clock import SECOND
from penstock.pipeline.compiler import load
from penstock.pipeline.notify import Notifier
from penstock.transport.daemon import Daemon


class Manager:
    """The far end of NOTIFY_SOCKET."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "notify")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(self.path)
        self.socket.setblocking(False)
        self.lines: list[str] = []

    def notifier(self, **more: str) -> Notifier:
        return Notifier({"NOTIFY_SOCKET": self.path} | more)

    def read(self) -> list[str]:
        while True:
            try:
                self.lines += self.socket.recv(4096).decode().splitlines()
            except BlockingIOError:
                return self.lines

    def close(self) -> None:
        self.socket.close()


def daemon(manager: Manager, graphs: dict[str, object] | None = None, drain: int = SECOND) -> Daemon:
    plans = graphs or {"loopback": load(GRAPHS / "loopback.yaml")}
    return Daemon(plans, port=0, drain=drain, notifier=manager.notifier())  # type: ignore[arg-type]
