"""Datagrams that know when they reached this machine, not when a busy event loop came to read them.

The kernel stamps each on its way in (SO_TIMESTAMPNS, socket(7)); asyncio's own reader throws the stamp away, so ours
takes its place on aioice's sockets. Elsewhere than on Linux the time of reading stands in.
"""
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from typing import Any

from aioice import ice

from ..pipeline.clock import SECOND, MonotonicClock

SO_TIMESTAMPNS = 35  # asm-generic/socket.h; Python has no name for it
TIMESPEC = struct.Struct("@ll")
BATCH = 64  # datagrams in one go, before others on the loop have their turn
MAX_DATAGRAM = 4096  # WebRTC's are below 1500
RECEIVE_BUFFER = 1 << 20  # bytes: what comes while the loop is busy, 2 s at 4 Mb/s
MAX_AGE = SECOND  # an older stamp means that the wall clock was set

_clock = MonotonicClock()


class Datagram(bytes):
    """arrival: ns on the monotonic clock."""

    arrival: int


class StampingProtocol(ice.StunProtocol):
    """One of aioice's sockets, read by us."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        wrapped = transport.get_extra_info("socket")
        sock = getattr(wrapped, "_sock", None)
        if sock is None or not sys.platform.startswith("linux") or not hasattr(loop, "_add_reader"):
            return
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        # after asyncio has set its own; the transport removes ours as it would its own when it closes
        loop.call_soon(self._take_over, loop, transport, sock)

    def datagram_received(self, data: bytes | str, addr: tuple[Any, ...]) -> None:
        # anybody may send one without any bytes; aiortc would look at its first and close the connection
        if not data:
            return
        try:
            super().datagram_received(data, addr)
        except (struct.error, IndexError):
            return  # a STUN attribute of a wrong length

    def _take_over(self, loop: Any, transport: asyncio.BaseTransport, sock: socket.socket) -> None:
        if not transport.is_closing():
            loop._add_reader(sock.fileno(), self._readable, sock)

    def _readable(self, sock: socket.socket) -> None:
        for _ in range(BATCH):
            try:
                data, ancillary, flags, address = sock.recvmsg(MAX_DATAGRAM, 64)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as e:
                self.error_received(e)
                return
            if flags & socket.MSG_TRUNC:
                continue
            datagram = Datagram(data)
            datagram.arrival = _arrival(ancillary)
            self.datagram_received(datagram, address)
            if sock.fileno() < 0:  # closed by what it brought
                return


def _arrival(ancillary: list[tuple[int, int, bytes]]) -> int:
    now = _clock.now()
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS and len(data) >= TIMESPEC.size:
            seconds, ns = TIMESPEC.unpack_from(data)
            age = _clock.wall() - seconds * SECOND - ns
            return now - age if 0 <= age <= MAX_AGE else now
    return now


async def receive(self: ice.Connection) -> bytes:
    """Stands for the method `aioice.Connection.recv`; leaves the arrival of what it gives on the connection."""
    data, _ = await self.recvfrom()
    self.arrival = getattr(data, "arrival", None)  # type: ignore[attr-defined]
    return data


def latest_arrival(transport: Any, now: int) -> int:
    """When the datagram that this DTLS transport is handling arrived, ns; `now` where nobody knows."""
    connection = getattr(getattr(transport, "transport", None), "_connection", None)
    return getattr(connection, "arrival", None) or now
