"""How a stage names an endpoint of somebody else's service and its key, without ever showing the key."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..pipeline.clock import SECOND
from ..pipeline.stage import Context, StageError
from ..pipeline.units import Duration

_MAX_KEY = 16 * 1024  # bytes; tokens of cloud services have up to some kilobytes


def check_url(value: str) -> str:
    """Raises: ValueError for what is no plain http(s) base address."""
    parts = urlsplit(value)  # a ValueError of its own for a bad port or address
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ValueError("not an endpoint; write http(s)://HOST[:PORT]/PATH, as http://localhost:8000/v1")
    if parts.username is not None or parts.password is not None:
        raise ValueError("holds a user name or password; write the key as key: env:NAME or file:PATH")
    _ = parts.port
    return value


def check_reference(value: str) -> str:
    """Raises: ValueError for what is no reference to a key."""
    kind, _, where = value.partition(":")
    if value and (kind not in ("env", "file") or not where):
        # the value may be the key itself: it is not repeated, here or by whoever prints this
        raise ValueError("not a reference to a key; write env:NAME or file:PATH")
    return value


def read_key(reference: str) -> str:
    """The key that `env:NAME` or `file:PATH` names; "" for none. Raises: ValueError, never showing it."""
    kind, _, where = reference.partition(":")
    if kind == "env":
        key = os.environ.get(where, "")
    elif kind == "file":
        try:
            with Path(where).expanduser().open("rb") as file:
                key = file.read(_MAX_KEY).decode("ascii", errors="replace")
        except OSError as e:
            raise ValueError(f"key {reference!r} cannot be read: {e.strerror}") from None
    else:
        return ""
    key = key.strip()
    if not key or not (key.isascii() and key.isprintable()):
        raise ValueError(f"key {reference!r} is empty or not one line of printable ASCII")
    return key


async def key_of(ctx: Context, reference: str) -> str:
    """The key, read off the loop. Raises: StageError, never showing it."""
    try:
        return await ctx.pool().call(read_key, reference)
    except ValueError as e:
        raise StageError(f"node {ctx.node!r}: {e}") from e


def is_local(url: str) -> bool:
    """Does it stay on this machine?"""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class EndpointOptions(BaseModel):
    """What every endpoint is told by in YAML."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_url: str = Field(description="As http://localhost:8000/v1")
    model: str = Field(min_length=1, description="As the endpoint names it")
    key: str = Field(default="", description="Where its key is: env:NAME or file:PATH; empty for none")
    connect: Duration = Field(default=3 * SECOND, gt=0, description="Time to connect in")
    failures: int = Field(default=3, ge=1, le=100, description="In a row, then it is left alone for a while")
    cooldown: Duration = Field(default=5 * SECOND, gt=0, le=60 * SECOND, description="That while, at first")

    @field_validator("base_url")
    @classmethod
    def _http(cls, value: str) -> str:
        return check_url(value)

    @field_validator("key")
    @classmethod
    def _reference(cls, value: str) -> str:
        return check_reference(value)
