"""A UDP relay between two WebRTC peers that treats datagrams as a bad network would. Needs no root.

Each peer is told, by a rewritten SDP, that the other's only candidate is the relay. Where the peers really
are, the relay learns from their first datagrams.
"""

from __future__ import annotations

import asyncio
from typing import Any

from ..pipeline.clock import MS, Clock
from .impairment import Link


def with_candidate(sdp: str, host: str, port: int) -> str:
    """The SDP with (host, port) as the only candidate of each section. An SDP of many lines, CRLF or LF."""
    newline = "\r\n" if "\r\n" in sdp else "\n"
    candidate = f"a=candidate:1 1 udp 2130706431 {host} {port} typ host"
    out: list[str] = []
    for line in sdp.split(newline):
        if line.startswith(("a=candidate:", "a=end-of-candidates", "a=ice-options:trickle")):
            continue
        out.append(line)
        if line.startswith("a=ice-pwd:"):  # RFC 8839: it stands where candidates may
            out += [candidate, "a=end-of-candidates"]
    return newline.join(out)


class _Side(asyncio.DatagramProtocol):
    """The socket that one peer talks to."""

    def __init__(self, relay: Relay, link: Link) -> None:
        self.relay = relay
        self.link = link  # what its datagrams go through
        self.peer: tuple[Any, ...] | None = None
        self.other: _Side | None = None
        self.transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.DatagramTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.peer = addr
        self.relay.heard = self.relay.clock.now()
        now_ms = (self.relay.heard - self.relay.started) / MS
        for at_ms in self.link.offer(now_ms, len(data)):
            if at_ms <= now_ms:
                self._deliver(data)
            else:
                self.relay.loop.call_later((at_ms - now_ms) / 1000, self._deliver, data)

    def error_received(self, exc: Exception) -> None:
        pass  # the far end's port is closed: it is gone, or not there yet

    def _deliver(self, data: bytes) -> None:
        other = self.other
        assert other is not None
        if other.peer is not None and other.transport is not None and not other.transport.is_closing():
            other.transport.sendto(data, other.peer)


class Relay:
    """Between a client and a server. Life: `start` → `to_server`, `to_client` for the SDPs → `close`.

    The links' time 0 is `started`: the start, or `restart_script`. heard: when the last datagram came, ns.
    """

    def __init__(self, clock: Clock, up: Link, down: Link, host: str = "127.0.0.1") -> None:
        self.clock = clock
        self.up = up
        self.down = down
        self.host = host
        self.started = self.heard = clock.now()
        self.loop = asyncio.get_running_loop()
        self._client = _Side(self, up)
        self._server = _Side(self, down)
        self._client.other, self._server.other = self._server, self._client

    async def start(self) -> Relay:
        for side in (self._client, self._server):
            await self.loop.create_datagram_endpoint(lambda s=side: s, local_addr=(self.host, 0))
        return self

    def restart_script(self) -> None:
        """Time 0 of the script is now."""
        now = self.clock.now()
        for link in (self.up, self.down):
            link.restart((now - self.started) / MS)
        self.started = now

    def to_server(self, sdp: str) -> str:
        """What the client said, as the server shall read it."""
        return with_candidate(sdp, *self._address(self._server))

    def to_client(self, sdp: str) -> str:
        """What the server said, as the client shall read it."""
        return with_candidate(sdp, *self._address(self._client))

    def is_idle(self, limit: int) -> bool:
        """Has no datagram come for `limit` ns?"""
        return self.clock.now() - self.heard > limit

    def close(self) -> None:
        for side in (self._client, self._server):
            if side.transport is not None:
                side.transport.close()

    def _address(self, side: _Side) -> tuple[str, int]:
        assert side.transport is not None, "start first"
        host, port = side.transport.get_extra_info("sockname")[:2]
        return host, port
