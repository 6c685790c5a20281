"""STUN and TURN servers: what clients are told of them, with credentials that expire, and what we use ourselves.

A TURN server that shares a secret with us takes any user name that is a time followed by a name, with the
HMAC-SHA1 of it as the password (coturn's `use-auth-secret`; draft-uberti-behave-turn-rest-00 section 2.2). So a
credential that leaks is void after its time, and no account is kept anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import Any

from aiortc import RTCBundlePolicy, RTCConfiguration, RTCIceServer

from ..pipeline.clock import SECOND
from ..pipeline.stage import StageError

TTL = 3600 * SECOND
# RFC 7064 section 3.1, RFC 7065 section 3.1
_STUN = re.compile(r"stuns?:(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:(?P<port>\d{1,5}))?")
_TURN = re.compile(_STUN.pattern.replace("stuns?", "turns?") + r"(\?transport=(udp|tcp))?")


@dataclass(frozen=True, slots=True)
class Ice:
    """stun, turn: URLs. secret: shared with the TURN servers; or user and password that they know.

    public: addresses under which this machine is reached, where they are not its own (1:1 NAT of a cloud).
    """

    stun: tuple[str, ...] = ()
    turn: tuple[str, ...] = ()
    secret: str = ""
    user: str = ""
    password: str = ""
    ttl: int = TTL
    public: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"Ice(stun={self.stun}, turn={self.turn}, public={self.public})"  # no secrets in logs

    def credential(self, name: str, now: int) -> tuple[str, str]:
        """User and password for TURN. now: ns since 1970."""
        if not self.secret:
            return self.user, self.password
        user = f"{(now + self.ttl) // SECOND}:{name}"
        digest = hmac.new(self.secret.encode(), user.encode(), hashlib.sha1).digest()
        return user, base64.b64encode(digest).decode()

    def for_client(self, name: str, now: int) -> list[dict[str, Any]]:
        """`iceServers` as RTCPeerConnection takes them (W3C WebRTC, section 4.2.2)."""
        servers: list[dict[str, Any]] = []
        if self.stun:
            servers.append({"urls": list(self.stun)})
        if self.turn:
            user, password = self.credential(name, now)
            servers.append({"urls": list(self.turn), "username": user, "credential": password})
        return servers

    def links(self, name: str, now: int) -> list[str]:
        """Values of `Link` headers (RFC 9725 section 4.6)."""
        user, password = self.credential(name, now) if self.turn else ("", "")
        pass_on = f'; username="{user}"; credential="{password}"; credential-type="password"'
        urls = [(url, "") for url in self.stun] + [(url, pass_on) for url in self.turn]
        return [f'<{url}>; rel="ice-server"{more}' for url, more in urls]

    def ours(self) -> RTCConfiguration:
        """For our own connections. TURN is the client's to use: one relayed side is enough."""
        return RTCConfiguration(
            iceServers=[RTCIceServer(url) for url in self.stun[:1]],
            # else aiortc leaves a second section of one kind on a transport of its own when the far end bundles
            bundlePolicy=RTCBundlePolicy.MAX_COMPAT,
        )


NO_ICE = Ice()
_HOST = re.compile(
    r"a=candidate:(?P<foundation>\S+) (?P<component>\d) udp \d+ (?P<ip>[\d.]+) (?P<port>\d+) typ host\s*"
)
_SRFLX = (100 << 24) + (65535 << 8)  # RFC 8445 section 5.1.2.1


def with_public(sdp: str, public: tuple[str, ...]) -> str:
    """The description with each host candidate also under the public addresses."""
    if not public:
        return sdp
    lines: list[str] = []
    for line in sdp.splitlines():
        lines.append(line)
        if match := _HOST.fullmatch(line):
            lines += [
                f"a=candidate:{match['foundation']}p {match['component']} udp {_SRFLX + 256 - int(match['component'])} "
                f"{address} {match['port']} typ srflx raddr {match['ip']} rport {match['port']}"
                for address in public
            ]
    return "\r\n".join(lines) + "\r\n"


def read_ice(
    servers: list[str],
    *,
    secret: str = "",
    user: str = "",
    password: str = "",
    ttl: int = TTL,
    public: tuple[str, ...] = (),
) -> Ice:
    """Check the settings. Raises: StageError in words, never with a secret."""
    stun: list[str] = []
    turn: list[str] = []
    for url in servers:
        kind = stun if url.startswith("stun") else turn
        match = (_STUN if kind is stun else _TURN).fullmatch(url)
        if match is None or (match["port"] and not 0 < int(match["port"]) <= 65535):
            raise StageError(
                f"ICE server {url!r} is none; write stun:HOST[:PORT], turn:HOST[:PORT][?transport=udp|tcp] "
                "or turns:HOST[:PORT]"
            )
        kind.append(url)
    if turn and not secret and not (user and password):
        raise StageError(
            f"{turn[0]} needs credentials: give the secret that it shares with us (coturn: static-auth-secret) "
            "as --turn-secret env:NAME or file:PATH, or a user and a password"
        )
    if not 60 * SECOND <= ttl <= 24 * 3600 * SECOND:
        raise StageError(f"TURN credentials for {ttl // SECOND} s; 60 s to 24 h are accepted")
    for text in (user, password):
        if '"' in text or "\\" in text or not text.isprintable():
            raise StageError("the TURN user or password holds a quote, a backslash or a control character")
    return Ice(tuple(stun), tuple(turn), secret, user, password, ttl, public)
