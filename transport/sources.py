"""Which sources a caller of the API may name: an allow-list, so that nobody reads files or inner addresses through us.

A URL is compared as it is written, never resolved: FFmpeg looks names up later, and another answer then would lead past
any check (DNS rebinding). So a name in the list trusts its DNS, and a network takes literal addresses only.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from ..pipeline.secret import redacted
from ..pipeline.stage import StageError
from .access import Network

SCHEMES = {"rtsp": 554, "rtsps": 322, "rtmp": 1935, "rtmps": 443, "srt": 0, "http": 80, "https": 443}
_NETWORK = re.compile(r"(?P<scheme>[a-z]+)://(?P<network>\[[0-9a-fA-F:.]+\]|[0-9.]+)/(?P<bits>\d{1,3})")
LONGEST = 2048


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a URL may lead. network, or host by its name; port 0: any; path: that it begins with."""

    scheme: str
    network: Network | None
    host: str
    port: int
    path: str


class Sources:
    """allowed: `rtsp://10.1.0.0/16`, `https://cameras.example.org/live/`, a folder, or a device (`/dev/video0`)."""

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._places: list[_Place] = []
        self._folders: list[Path] = []
        self._devices: set[str] = set()
        for entry in allowed:
            self._read(entry)

    def check(self, source: str) -> str:
        """The source, when it is allowed. Raises: StageError in words, without its password."""
        if len(source) > LONGEST or not source.isprintable():
            raise StageError(f"a source has at most {LONGEST} characters, and none that cannot be printed")
        if "://" in source:
            if self._leads_to_a_place(source):
                return source
            raise StageError(
                f"the source {redacted(source)} is not allowed here; the server's allow_source names what is"
            )
        if source in self._devices:
            return source
        path = os.path.realpath(source)  # what a link points to counts
        if source.startswith("/") and any(Path(path).is_relative_to(folder) for folder in self._folders):
            return path
        raise StageError(
            f"the source {source[:200]!r} is not allowed here; the server's allow_source names what is"
        )

    def _read(self, entry: str) -> None:
        if match := _NETWORK.fullmatch(entry):
            try:
                network = ipaddress.ip_network(f"{match['network'].strip('[]')}/{match['bits']}")
            except ValueError as e:
                raise StageError(f"allowed source {entry!r}: {e}") from e
            self._add(entry, match["scheme"], network, "", 0, "/")
        elif "://" in entry:
            try:
                parts = urlsplit(entry)
                port = parts.port or 0
            except ValueError as e:
                raise StageError(f"allowed source {entry!r}: {e}") from e
            if not parts.hostname or parts.username is not None or parts.query or parts.fragment:
                raise StageError(
                    f"allowed source {redacted(entry)}: write SCHEME://HOST[:PORT]/PATH, without a user"
                )
            self._add(entry, parts.scheme, None, parts.hostname, port, parts.path or "/")
        elif entry.startswith("/dev/"):
            self._devices.add(entry)
        elif entry.startswith("/") and len(Path(entry).parts) > 1:
            self._folders.append(Path(os.path.realpath(entry)))
        else:
            raise StageError(
                f"allowed source {entry!r}: write a URL, a network as rtsp://10.1.0.0/16, a folder as /srv/media, "
                "or a device as /dev/video0"
            )

    def _add(self, entry: str, scheme: str, network: Network | None, host: str, port: int, path: str) -> None:
        if scheme not in SCHEMES:
            raise StageError(f"allowed source {entry!r}: scheme {scheme!r}; there are: {', '.join(SCHEMES)}")
        self._places.append(_Place(scheme, network, host, port, path))

    def _leads_to_a_place(self, source: str) -> bool:
        # what FFmpeg might read otherwise than we do
        if any(c in source for c in "\\|,\"'<>^`{} "):
            return False
        try:
            parts = urlsplit(source)
            port = parts.port
        except ValueError:
            return False
        if parts.scheme not in SCHEMES or not parts.hostname or source.count("@") > 1:
            return False
        return any(_leads(parts, port or SCHEMES[parts.scheme], place) for place in self._places)


def _leads(url: SplitResult, port: int, place: _Place) -> bool:
    if url.scheme != place.scheme or (place.port and port != place.port):
        return False
    host = url.hostname or ""
    if place.network is not None:
        try:
            return ipaddress.ip_address(host) in place.network
        except ValueError:
            return False
    path = url.path or "/"
    if "/.." in path or "%" in path:
        return False
    inside = path == place.path or path.startswith(place.path.rstrip("/") + "/")
    return host == place.host and inside
