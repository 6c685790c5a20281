"""Addresses of STUN servers, looked up once for all connections.

aioice looks a name up for each connection, on a thread of the loop's few, and waits without a bound: a name server
that is dead would soon have them all.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket

log = logging.getLogger(__name__)

FRESH_S = 300.0  # names may move
RETRY_S = 10.0  # after a failure


class StunNames:
    """`address` of a name, IPv4, or None while it is not known."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[str | None, float]] = {}  # address, until when (loop time)
        self._asking: dict[str, asyncio.Task[str | None]] = {}

    async def address(self, host: str, within_s: float) -> str | None:
        """Wait at most that long; the lookup goes on for those who come later."""
        try:
            return str(ipaddress.IPv4Address(host))
        except ValueError:
            pass
        loop = asyncio.get_running_loop()
        task = self._asking.get(host)
        if task is None or task.get_loop() is not loop:  # another loop's times mean nothing here
            self._known.pop(host, None)
        elif not task.done():
            await asyncio.wait([task], timeout=within_s)
        known = self._known.get(host)
        if known is not None and loop.time() < known[1]:
            return known[0]
        if task is None or task.done() or task.get_loop() is not loop:
            task = self._asking[host] = loop.create_task(self._ask(host), name=f"stun/{host}")
            await asyncio.wait([task], timeout=within_s)
        known = self._known.get(host)
        return known[0] if known is not None else None

    async def _ask(self, host: str) -> str | None:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, None, family=socket.AF_INET, type=socket.SOCK_DGRAM)
            address = str(found[0][4][0])
        except (OSError, IndexError, UnicodeError) as e:
            log.warning("the STUN server %s was not found: %s", host, e)
            self._known[host] = (None, loop.time() + RETRY_S)
            return None
        self._known[host] = (address, loop.time() + FRESH_S)
        return address
