"""A file of access tokens: named, scoped, expiring. The file holds digests, a token itself is shown once.

A token is 256 random bits, so one round of SHA-256 is enough at rest: there is nothing to guess from.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import logging
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .clock import SECOND
from .faults import first_in_words
from .stage import StageError
from .units import written_as

log = logging.getLogger(__name__)

Scope: TypeAlias = Literal["view", "talk", "control", "admin"]
"""view: read lists, figures, events, and receive media (WHEP). talk: open sessions of one's own, and steer and
end those. control: steer and end all sessions, start graphs. admin: everything."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,31}")
_SECRET = re.compile(r"pst_([0-9a-f]{8})_([0-9a-f]{64})")
_LONGEST_FILE = 1 << 20  # bytes: some 3,000 tokens


class Token(BaseModel):
    """created, expires: s since 1970; expires 0: never. sessions: at a time. longest_s: that one may last.
    rate: requests a second. 0: the server's own limit."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, written_as("[0-9a-f]{8}", "8 digits or letters a to f", tell=False)]
    name: str = Field(max_length=32)
    scopes: tuple[Scope, ...] = Field(min_length=1)
    sha256: Annotated[str, written_as("[0-9a-f]{64}", "64 digits or letters a to f", tell=False)]
    created: int = Field(ge=0)
    expires: int = Field(default=0, ge=0)
    sessions: int = Field(default=0, ge=0)
    longest_s: int = Field(default=0, ge=0)
    rate: int = Field(default=0, ge=0)

    @field_validator("name")
    @classmethod
    def _named(cls, value: str) -> str:
        if not _NAME.fullmatch(value):
            raise ValueError("lower case letters, digits, '.', '_' and '-', at most 32")
        return value

    def is_valid(self, now_s: int) -> bool:
        return not self.expires or now_s < self.expires


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    penstock_tokens: Literal[1] = 1
    tokens: list[Token] = Field(default_factory=list[Token])


class TokenFile:
    """`find` for the server, which follows changes of the file; `create` and `revoke` for the command line.

    wall: ns since 1970.
    """

    def __init__(self, path: Path, wall: Callable[[], int]) -> None:
        self.path = path
        self._wall = wall
        self._by_id: dict[str, Token] = {}
        self._seen: tuple[int, int, int] | None = None

    # ------------------------------------------------------------ the server

    def load(self) -> None:
        """Read it. Raises: StageError in words."""
        self._by_id = {token.id: token for token in self._read().tokens}
        self._seen = self._stamp()

    def refresh(self) -> None:
        """Read it again when it has changed. What cannot be read leaves the old tokens, and is logged; a file
        that is gone leaves none."""
        stamp = self._stamp()
        if stamp == self._seen:
            return
        self._seen = stamp
        if stamp is None:
            log.error("%s is gone: no token is accepted", self.path)
            self._by_id = {}
            return
        try:
            self.load()
        except StageError as e:
            log.error("%s; the tokens stay as they were", e)
        else:
            log.info("%s: %d tokens", self.path, len(self._by_id))

    def find(self, secret: str) -> Token | None:
        """The token, when it is known and has not expired."""
        match = _SECRET.fullmatch(secret)
        token = self._by_id.get(match[1]) if match else None
        digest = hashlib.sha256(secret.encode(errors="replace")).hexdigest()
        if token is None or not hmac.compare_digest(token.sha256, digest):
            return None
        return token if token.is_valid(self._wall() // SECOND) else None

    def is_known(self, name: str) -> bool:
        """Is there still a valid token of that name?"""
        now = self._wall() // SECOND
        return any(token.name == name and token.is_valid(now) for token in self._by_id.values())

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    # ------------------------------------------------------------ the command line

    def tokens(self) -> list[Token]:
        """All of them; none when there is no file yet. Raises: StageError."""
        return self._read().tokens if self.path.exists() else []

    def create(
        self,
        name: str,
        scopes: tuple[Scope, ...],
        lasts_s: int = 0,
        *,
        sessions: int = 0,
        longest_s: int = 0,
        rate: int = 0,
    ) -> str:
        """Add a token; returns it, for the only time. Raises: StageError."""
        number = secrets.token_hex(4)
        secret = f"pst_{number}_{secrets.token_hex(32)}"
        now = self._wall() // SECOND
        try:
            token = Token(
                id=number,
                name=name,
                scopes=scopes,
                sha256=hashlib.sha256(secret.encode()).hexdigest(),
                created=now,
                expires=now + lasts_s if lasts_s else 0,
                sessions=sessions,
                longest_s=longest_s,
                rate=rate,
            )
        except ValidationError as e:
            raise StageError(f"token {name[:40]!r}: {first_in_words(e, tell=False)}") from e
        with self._changing() as file:
            if any(t.name == name and t.is_valid(now) for t in file.tokens):
                raise StageError(
                    f"{self.path} has a token named {name!r}; revoke it first, or choose another name"
                )
            file.tokens = [t for t in file.tokens if t.name != name] + [token]
        return secret

    def revoke(self, name: str) -> None:
        """Raises: StageError when there is none of that name."""
        with self._changing() as file:
            kept = [t for t in file.tokens if t.name != name]
            if len(kept) == len(file.tokens):
                names = ", ".join(t.name for t in kept) or "none"
                raise StageError(f"{self.path} has no token named {name[:40]!r}; it has: {names}")
            file.tokens = kept

    @contextmanager
    def _changing(self) -> Generator[_File]:
        """Change the file as one: no writer overlooks another, no reader sees half of it. Raises: StageError."""
        lock = -1
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(self.path.with_name(self.path.name + ".lock"), os.O_CREAT | os.O_RDWR, 0o600)
            fcntl.flock(lock, fcntl.LOCK_EX)
            file = self._read() if self.path.exists() else _File()
            yield file
            mode = self.path.stat().st_mode & 0o777 if self.path.exists() else 0o600
            fd, name = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
            try:
                with os.fdopen(fd, "w", encoding="utf-8") as out:
                    out.write(file.model_dump_json(indent=1) + "\n")
                    out.flush()
                    os.fsync(out.fileno())
                os.chmod(name, mode)
                os.replace(name, self.path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        except OSError as e:
            raise StageError(f"{self.path} cannot be written: {e.strerror or e}") from e
        finally:
            if lock >= 0:
                os.close(lock)

    def _read(self) -> _File:
        try:
            status = self.path.stat()
            if status.st_mode & 0o002:
                raise StageError(f"{self.path} can be written by everybody; chmod 600 {self.path}")
            if status.st_size > _LONGEST_FILE:
                raise StageError(f"{self.path} has {status.st_size} bytes; at most {_LONGEST_FILE} are read")
            file = _File.model_validate_json(self.path.read_bytes())
        except OSError as e:
            raise StageError(f"{self.path} cannot be read: {e.strerror or e}") from e
        except ValidationError as e:
            raise StageError(f"{self.path} is no token file: {first_in_words(e, tell=False)}") from e
        for field in ("id", "name"):
            values = [getattr(token, field) for token in file.tokens]
            if len(set(values)) != len(values):
                raise StageError(f"{self.path} is no token file: two tokens have the same {field}")
        return file
