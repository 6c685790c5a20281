"""Who is let in: tokens, addresses behind proxies, origins, and how often one may ask."""

from __future__ import annotations

import hmac
import ipaddress
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import urlsplit

from ..pipeline.clock import SECOND, Clock
from ..pipeline.stage import StageError
from ..pipeline.tokens import TokenFile
from .caller import SCOPES, Caller

Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

MAIN = "MAIN"  # the name of the one token that PENSTOCK_TOKEN gives; names in a file are lower case
REMEMBERED = 4096  # who asks; the one longest silent is forgotten
RATE = 100.0  # requests a second of one address, or token
BURST_S = 4.0  # of them may come at once


def is_loopback(host: str) -> bool:
    """Is this name or address this machine only?"""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_networks(values: Iterable[str]) -> tuple[Network, ...]:
    """Raises: StageError."""
    found: list[Network] = []
    for value in values:
        try:
            found.append(ipaddress.ip_network(value))
        except ValueError as e:
            raise StageError(
                f"trusted proxy {value!r} is no network: write 10.0.0.5 or 10.0.0.0/8 ({e})"
            ) from e
    return tuple(found)


def read_origins(values: Iterable[str]) -> frozenset[str]:
    """Raises: StageError."""
    for value in values:
        parts = urlsplit(value)
        if (
            parts.scheme not in ("http", "https")
            or not parts.netloc
            or value != f"{parts.scheme}://{parts.netloc}"
        ):
            raise StageError(
                f"origin {value!r} is none: write it as a browser sends it, https://app.example.org; '*' is not taken"
            )
    return frozenset(values)


class Rates:
    """A bucket of requests for each who asks, refilled as time goes by."""

    def __init__(self, clock: Clock, per_s: float = RATE) -> None:
        self.per_s = per_s
        self._clock = clock
        self._left: OrderedDict[str, tuple[float, int]] = OrderedDict()  # (requests, when)

    def take(self, who: str, per_s: float = 0) -> float:
        """One request. 0 when it is taken; else s until the next one is."""
        per_s = per_s or self.per_s
        now = self._clock.now()
        left, at = self._left.pop(who, (per_s * BURST_S, now))
        left = min(per_s * BURST_S, left + (now - at) / SECOND * per_s)
        allowed = left >= 1
        self._left[who] = (left - 1 if allowed else left, now)
        if len(self._left) > REMEMBERED:
            self._left.popitem(last=False)
        return 0.0 if allowed else (1 - left) / per_s


@dataclass(frozen=True, slots=True)
class Access:
    """token: one secret with all scopes. tokens: a file of them. Neither: nobody is asked, which only a server
    that other machines cannot reach may do.

    origins: foreign pages that may call. hosts: names under which a proxy makes us public. proxies: whose
    X-Forwarded-For is believed.
    """

    token: str = ""
    tokens: TokenFile | None = None
    origins: frozenset[str] = frozenset()
    hosts: frozenset[str] = frozenset()
    proxies: tuple[Network, ...] = ()
    rate: float = RATE

    def __repr__(self) -> str:
        return f"Access(closed={self.closed}, origins={sorted(self.origins)}, hosts={sorted(self.hosts)})"

    @property
    def closed(self) -> bool:
        """Is a token asked for?"""
        return bool(self.token) or self.tokens is not None

    def identify(self, secret: str, address: str) -> tuple[Caller, float] | None:
        """Whose token that is, and its requests a second (0: as all); None when it is nobody's."""
        if self.token and hmac.compare_digest(secret.encode(errors="replace"), self.token.encode()):
            return Caller(address, MAIN), 0.0
        token = self.tokens.find(secret) if self.tokens is not None else None
        if token is None:
            return None
        longest = token.longest_s * SECOND
        caller = Caller(address, token.name, SCOPES & frozenset(token.scopes), token.sessions, longest)
        return caller, float(token.rate)

    def is_known(self, name: str) -> bool:
        """May a session of that token go on?"""
        if not self.closed or (name == MAIN and self.token):
            return True
        return self.tokens is not None and self.tokens.is_known(name)

    def address(self, remote: str, forwarded: Iterable[str]) -> str:
        """The client's address. forwarded: X-Forwarded-For headers, believed as far as proxies of ours wrote
        them: from the right, the first that is none of them."""
        if not self._is_proxy(remote):
            return remote
        hops = [hop.strip() for header in forwarded for hop in header.split(",")]
        for hop in reversed(hops[-32:]):
            bare = _bare(hop)
            if bare is None:
                break  # nobody's address: what stands left of it is not to be believed either
            remote = bare
            if not self._is_proxy(bare):
                break
        return remote

    def _is_proxy(self, address: str) -> bool:
        if not self.proxies:
            return False
        try:
            found = ipaddress.ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in self.proxies)


def _bare(hop: str) -> str | None:
    """192.0.2.1, 192.0.2.1:99, [2001:db8::1]:99 → the address."""
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    try:
        return str(ipaddress.ip_address(hop))
    except ValueError:
        return None


OPEN = Access()
