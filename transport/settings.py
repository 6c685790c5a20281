"""Settings of a server that are no graph's: who is let in, limits, ICE. From a YAML file and the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from ..pipeline.clock import SECOND
from ..pipeline.compiler import near
from ..pipeline.errors import Fault, GraphError
from ..pipeline.faults import in_words
from ..pipeline.secret import resolve
from ..pipeline.stage import StageError
from ..pipeline.tokens import TokenFile
from ..pipeline.units import Duration, parse_rate
from ..pipeline.yaml_marks import parse
from .access import RATE, Access, read_networks, read_origins
from .ice import Ice, read_ice
from .live_session import RESUME
from .sessions import Limits


def _rate(value: Any) -> int:
    return 0 if value in (0, "0") else parse_rate(value)


class Settings(BaseModel):
    """As they stand in `--config FILE`; a flag of the command line has the same name with dashes."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: Path | None = Field(default=None, description="file of `penstock token create`")
    allow_origin: tuple[str, ...] = Field(default=(), description="pages of these origins may call (CORS)")
    public_host: tuple[str, ...] = Field(default=(), description="names under which a proxy makes us public")
    trusted_proxy: tuple[str, ...] = Field(
        default=(), description="networks whose X-Forwarded-For is believed"
    )
    max_sessions: int = Field(default=16, ge=1, le=1000)
    per_client: int = Field(default=8, ge=1, le=1000, description="sessions, and viewers, from one address")
    max_viewers: int = Field(
        default=64, ge=0, le=10_000, description="who watch running sessions by WHEP, in all"
    )
    longest: Duration = Field(default=0, ge=0, description="that a session may last; 0s: any time")
    resume: Duration = Field(
        default=RESUME, ge=0, le=600 * SECOND, description="that a lost client may be away"
    )
    rate: float = Field(
        default=RATE, ge=1, le=100_000, description="requests a second of one address or token"
    )
    uplink: Annotated[int, BeforeValidator(_rate)] = Field(
        default=0,
        description="bits/s that all clients together may send, divided by what they are worth; 0: any",
    )
    downlink: Annotated[int, BeforeValidator(_rate)] = Field(
        default=0, description="bits/s that all clients together are sent: sound and text first; 0: any"
    )
    ice_server: tuple[str, ...] = Field(default=(), description="stun:… and turn:… URLs")
    turn_secret: str = Field(
        default="", description="env:NAME, file:PATH or cred:NAME, shared with the TURN server"
    )
    turn_user: str = ""
    turn_password: str = Field(default="", description="env:NAME, file:PATH or cred:NAME")
    turn_ttl: Duration = Field(default=3600 * SECOND, description="that TURN credentials last")
    traces: Path | None = Field(default=None, description="folder for traces of sessions where a stage fails")
    allow_source: tuple[str, ...] = Field(default=(), description="sources that callers of the API may name")
    public_ip: tuple[str, ...] = Field(default=(), description="addresses that lead here through a 1:1 NAT")

    @field_validator("turn_secret", "turn_password")
    @classmethod
    def _reference(cls, value: str) -> str:
        if value and value.partition(":")[0] not in ("env", "file", "cred"):
            raise ValueError("a secret does not stand here itself: write env:NAME, file:PATH or cred:NAME")
        return value

    @field_validator("public_ip")
    @classmethod
    def _addresses(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if ip_address(value).version != 4:
                raise ValueError(f"{value!r} is no IPv4 address; IPv6 needs no NAT")
        return values

    @field_validator("public_host")
    @classmethod
    def _names(cls, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            if not value or "/" in value or ":" in value or value != value.lower():
                raise ValueError(
                    f"{value!r} is no host name; write it in lower case, without scheme and port"
                )
        return values

    def access(self, token: str, wall: Callable[[], int]) -> Access:
        """token: the one of the environment; may be empty. Raises: StageError."""
        tokens = None
        if self.tokens is not None:
            tokens = TokenFile(self.tokens, wall)
            tokens.load()
        return Access(
            token,
            tokens,
            read_origins(self.allow_origin),
            frozenset(self.public_host),
            read_networks(self.trusted_proxy),
            self.rate,
        )

    def limits(self) -> Limits:
        return Limits(self.max_sessions, self.per_client, self.resume, self.longest, self.max_viewers)

    def ice(self) -> Ice:
        """Raises: StageError."""
        return read_ice(
            list(self.ice_server),
            secret=resolve(self.turn_secret) if self.turn_secret else "",
            user=self.turn_user,
            password=resolve(self.turn_password) if self.turn_password else "",
            ttl=self.turn_ttl,
            public=self.public_ip,
        )


def read_settings(path: Path | None, flags: Mapping[str, Any]) -> Settings:
    """The file's, and flags over them. Raises: GraphError with the place in the file, StageError for a flag."""
    given: Any = None
    marks: Mapping[Any, tuple[int, int]] = {}
    if path is not None:
        try:
            given, marks = parse(path.read_text(encoding="utf-8"), str(path))
        except OSError as e:
            raise StageError(f"the settings file {path} cannot be read: {e.strerror}") from e
        except UnicodeDecodeError as e:
            raise StageError(f"the settings file {path} is no text in UTF-8") from e
        if not isinstance(given or {}, dict):
            raise GraphError(str(path), [Fault(1, 1, "the file holds no settings: write name: value")])
    try:
        return Settings.model_validate({**(given or {}), **flags})
    except ValidationError as e:
        faults: list[tuple[str, str]] = []
        for error in e.errors():
            name = str(error["loc"][0])
            words = in_words(error, tell=False)
            if error["type"] == "extra_forbidden":
                words = f"unknown setting{near(name, list(Settings.model_fields))}"
            faults.append((name, words))
        if path is None or faults[0][0] in flags:
            name, words = faults[0]
            raise StageError(f"--{name.replace('_', '-')}: {words}") from e
        places = [Fault(*marks.get((name,), (1, 1)), f"{name}: {words}") for name, words in faults]
        raise GraphError(str(path), places) from e
