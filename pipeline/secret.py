"""Values that must not stand in a graph file: `env:NAME`, `file:PATH` and `cred:NAME` (a credential of
systemd's, LoadCredential=) name where they are."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from .stage import StageError


def resolve(value: str, environ: Mapping[str, str] = os.environ) -> str:
    """The secret itself; `value` as it is when it names no place. Raises: StageError, never with the secret."""
    kind, _, where = value.partition(":")
    if kind == "env":
        if not (found := environ.get(where, "").strip()):
            raise StageError(f"{value}: the environment variable {where!r} is not set")
        return found
    if kind == "cred":
        folder = environ.get("CREDENTIALS_DIRECTORY", "")
        if not folder or not where or Path(where).name != where or where.startswith("."):
            raise StageError(
                f"{value}: no credential of that name was given to this service (LoadCredential=)"
            )
        kind, where = "file", f"{folder}/{where}"
    if kind == "file":
        try:
            found = Path(where).read_text(encoding="utf-8").strip().partition("\n")[0]
        except (OSError, UnicodeDecodeError) as e:
            raise StageError(f"{value}: cannot be read: {e}") from e
        if not found:
            raise StageError(f"{value}: the file is empty")
        return found
    return value


def redacted(url: str) -> str:
    """A URL for logs: without user, password and query."""
    try:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
    except ValueError:
        return "<not a URL>"
    return f"{parts.scheme}://{parts.hostname or ''}{port}{parts.path}"


def shown(source: str) -> str:
    """A file's path as it is; a URL as `redacted`, and of RTMP without its stream key, the last part of the path."""
    if "://" not in source:
        return source
    url = redacted(source)
    base, slash, _ = url.rpartition("/")
    return f"{base}/…" if url.startswith("rtmp") and slash and base.count("/") > 2 else url
