"""Candidates that come after the offer: `application/trickle-ice-sdpfrag` (RFC 8840 section 9).

a=ice-ufrag:EsAw
a=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1
m=audio 9 UDP/TLS/RTP/SAVPF 0
a=mid:0
a=candidate:1387637174 1 udp 2122260223 192.0.2.1 61764 typ host
a=end-of-candidates
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from aiortc import RTCIceCandidate
from aiortc.sdp import candidate_from_sdp

from .offer import MAX_CANDIDATES, MAX_SECTIONS, OfferError

SDPFRAG = "application/trickle-ice-sdpfrag"
TYPES = ("host", "srflx", "relay", "prflx")


class RestartRefused(OfferError):
    """The fragment asks for an ICE restart."""


@dataclass(slots=True)
class Fragment:
    """ufrags: those it names. end: no more candidates will come, of any section."""

    ufrags: set[str] = field(default_factory=set[str])
    candidates: list[RTCIceCandidate] = field(default_factory=list[RTCIceCandidate])
    end: bool = False


def parse_fragment(text: str) -> Fragment:
    """Raises: OfferError in words."""
    found = Fragment()
    mid: str | None = None
    section = -1
    sections = set[str | int]()  # of candidates; a mid may come again, a section for each candidate
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        name, _, value = line.removeprefix("a=").partition(":")
        if not line:
            continue
        if line.startswith("m="):
            section += 1
            mid = None
        elif not line.startswith("a="):
            raise OfferError(f"line {number} of the fragment is no attribute (a=) and no section (m=)")
        elif name == "ice-ufrag":
            found.ufrags.add(value)
        elif name == "mid":
            mid = value
        elif name == "end-of-candidates":
            found.end = True
        elif name == "candidate":
            found.candidates.append(_candidate(value, mid, section, number))
            sections.add(section if mid is None else mid)
        # ice-pwd, ice-options, group and the like change nothing here
    if len(sections) > MAX_SECTIONS or len(found.candidates) > MAX_CANDIDATES:
        raise OfferError(
            f"the fragment has {len(sections)} sections and {len(found.candidates)} candidates; "
            f"at most {MAX_SECTIONS} and {MAX_CANDIDATES} are taken"
        )
    if not found.candidates and not found.end and not found.ufrags:
        raise OfferError("the fragment has no a=candidate and no a=end-of-candidates")
    return found


def _candidate(value: str, mid: str | None, section: int, number: int) -> RTCIceCandidate:
    try:
        candidate = candidate_from_sdp(value)
        host = candidate.ip
        # a name of mDNS is looked up on the local link; any other would be one for the DNS
        if not host.endswith(".local"):
            ipaddress.ip_address(host)
        if candidate.type not in TYPES or not 0 <= candidate.port <= 65535:
            raise ValueError
    except (ValueError, IndexError, AssertionError, AttributeError) as e:
        raise OfferError(f"line {number} of the fragment: the candidate {value[:80]!r} cannot be read") from e
    if mid is not None:
        candidate.sdpMid = mid
    else:
        candidate.sdpMLineIndex = max(section, 0)
    return candidate
