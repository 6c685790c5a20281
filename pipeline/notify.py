"""Talk to systemd: readiness, status, watchdog, reload, and sockets that it opened for us.

Without systemd (NOTIFY_SOCKET is not set) every call does nothing. Source: sd_notify(3), sd_listen_fds(3).
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Mapping

from .clock import SECOND, Clock

log = logging.getLogger(__name__)

FIRST_FD = 3  # SD_LISTEN_FDS_START
US = 1000  # ns


class Notifier:
    """Sends to the service manager. environ: the process's, where the manager put its addresses."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._status = ""
        period_us = environ.get("WATCHDOG_USEC", "")
        ours = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        self.watchdog = int(period_us) * US if ours and period_us.isdigit() else 0  # ns; 0: not watched

    @property
    def wanted(self) -> bool:
        return bool(self._address)

    def send(self, *lines: str) -> None:
        """One datagram; a manager that does not listen is no reason to fail."""
        if not self._address:
            return
        # an address that begins with @ is in the abstract namespace
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as s:
            s.setblocking(False)
            try:
                s.sendto("\n".join(lines).encode(), address)
            except OSError as e:
                log.warning("cannot notify %s: %s", self._address, e.strerror or e)

    def ready(self, status: str) -> None:
        self._status = status
        self.send("READY=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        """Shown by `systemctl status`; sent only when it changed."""
        if text != self._status:
            self._status = text
            self.send(f"STATUS={text}")

    def reloading(self, clock: Clock) -> None:
        """Type=notify-reload wants the time at which the reload began."""
        self.send("RELOADING=1", f"MONOTONIC_USEC={clock.now() // US}")

    def stopping(self, status: str) -> None:
        self._status = status
        self.send("STOPPING=1", f"STATUS={status}")

    def extend(self, duration: int) -> None:
        """Ask for that much time (ns) before the manager gives up on a start or stop."""
        self.send(f"EXTEND_TIMEOUT_USEC={duration // US}")

    async def feed(self, clock: Clock, stuck: Callable[[], str], status: Callable[[], str]) -> None:
        """Until cancelled: say that we live, twice each watchdog period, while there is real progress.

        stuck: empty while work goes on, else what does not move: then nothing is said, and the manager
        restarts us when its period is over.
        """
        every = self.watchdog // 2 or 5 * SECOND
        told = ""
        while True:
            why = stuck()
            if not why and self.watchdog:
                self.send("WATCHDOG=1")
            if why and why != told:
                log.error("no progress: %s", why)
            told = why
            self.status(why or status())
            await clock.sleep(every)


def listen_sockets(environ: Mapping[str, str] = os.environ) -> list[socket.socket]:
    """The listening sockets that systemd opened for us (socket activation). Raises: ValueError in words."""
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return []
    count = environ.get("LISTEN_FDS", "0")
    if not count.isdigit():
        raise ValueError(f"LISTEN_FDS is {count!r}; a number is expected")
    sockets: list[socket.socket] = []
    for fd in range(FIRST_FD, FIRST_FD + int(count)):
        os.set_inheritable(fd, False)
        try:
            s = socket.socket(fileno=fd)
        except OSError as e:
            raise ValueError(f"file descriptor {fd} from LISTEN_FDS is no socket: {e.strerror}") from e
        if s.type != socket.SOCK_STREAM:
            raise ValueError(f"file descriptor {fd} from LISTEN_FDS is no stream socket")
        s.setblocking(False)
        sockets.append(s)
    return sockets
