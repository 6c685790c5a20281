"""A running daemon as a client of its HTTP API sees it, for the command line."""

from __future__ import annotations

import json
import os
import re
from types import TracebackType
from typing import Any
from urllib.parse import quote

import aiohttp

from ..pipeline.stage import StageError

TIMEOUT_S = 10
AWAY = (502, 503, 504)  # as a proxy says it
SHOWN = 12  # sessions whose figures are read for one picture: the others are only counted
_METRIC = re.compile(r"^penstock_loop_(lag|longest_block)_seconds (\S+)$", re.MULTILINE)


class Remote:
    """`async with Remote(url, token) as daemon:`. All calls raise StageError in words."""

    def __init__(self, url: str, token: str = "") -> None:
        self.url = url.rstrip("/") if "://" in url else f"http://{url.rstrip('/')}"
        if not self.url.startswith(("http://", "https://")):
            raise StageError(f"{url!r} is no address of a server; give http://HOST:PORT")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Remote:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
        self._http = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http is not None:
            await self._http.close()

    async def request(self, method: str, path: str) -> bytes:
        """The answer's body."""
        assert self._http is not None
        try:
            async with self._http.request(method, self.url + path) as response:
                content = await response.read()
        except TimeoutError:
            raise StageError(f"{self.url} did not answer within {TIMEOUT_S} s") from None
        except aiohttp.ClientConnectorError as e:
            raise StageError(
                f"no server answers at {self.url} ({unreachable(e)}); start one with `penstock serve`, "
                "or name another with --url"
            ) from None
        except (aiohttp.ClientError, ValueError) as e:
            raise StageError(f"{self.url} cannot be talked to: {e}") from None
        if response.status == 401:
            raise StageError(f"{self.url}: {token_words(bool(self._headers))}")
        if response.status in AWAY and not _why(content):
            raise StageError(
                f"{self.url} answers {path} with {response.status}: the server behind it is away"
            )
        if response.status >= 400 and not _why(content):  # ours always has words
            raise StageError(f"{self.url} is no Penstock server: it answers {path} with {response.status}")
        if response.status >= 400:
            raise StageError(f"{self.url}{path}: {_why(content) or response.reason}")
        return content

    async def get(self, path: str) -> dict[str, Any]:
        """A JSON answer."""
        content = await self.request("GET", path)
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise StageError(f"{self.url} is no Penstock server: {path} is not JSON")
        return answer  # pyright: ignore[reportUnknownVariableType]

    async def snapshot(self) -> dict[str, Any]:
        """All figures at one moment: `server`, `sessions` (the longest running first), `pools`, `broken`: graphs
        that cannot start → why."""
        rows = (await self.get("/sessions")).get("sessions")
        if not isinstance(rows, list):
            raise StageError(f"{self.url} is no Penstock server: /sessions has no sessions")
        found: list[dict[str, Any]] = rows  # pyright: ignore[reportUnknownVariableType]
        found.sort(key=lambda row: -row["up_s"])
        sessions: list[dict[str, Any]] = []
        pools: dict[str, Any] = {}
        for row in found[:SHOWN]:
            try:
                figures = await self.get(f"/sessions/{quote(row['id'])}/stats")
            except StageError:
                continue  # it has ended meanwhile
            focus = (figures.get("transport") or {}).get("focus")
            sessions.append(row | {"nodes": figures["nodes"], "focus": focus})
            pools |= figures.get("pools", {})
        graphs = (await self.get("/graphs")).get("graphs", [])
        broken = {row["name"]: row["error"] for row in graphs if row.get("error")}
        metrics = (await self.request("GET", "/metrics")).decode(errors="replace")
        loop = {name: float(value) * 1000 for name, value in _METRIC.findall(metrics)}
        server = {
            "url": self.url,
            "sessions": len(found),
            "viewers": sum(row.get("viewers", 0) for row in found),
            "loop_lag_ms": round(loop.get("lag", 0.0), 1),
            "longest_block_ms": round(loop.get("longest_block", 0.0), 1),
        }
        return {"server": server, "sessions": sessions, "pools": pools, "broken": broken}


def unreachable(error: aiohttp.ClientError) -> str:
    """Why no connection came about, in the system's words: asyncio's tell only the address."""
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else None
    if cause is not None and cause.errno and cause.errno > 0:  # below are those of getaddrinfo
        return os.strerror(cause.errno)
    return (cause and cause.strerror) or str(error) or type(error).__name__


def token_words(given: bool) -> str:
    """Of a server that answers 401."""
    if given:
        return "the token is not known there, has expired or was revoked; give another with --token or PENSTOCK_TOKEN"
    return "it asks for a token: give --token, or set PENSTOCK_TOKEN"


def _why(content: bytes) -> str:
    """The words of an error as the API gives them."""
    try:
        answer = json.loads(content)
    except ValueError:
        return ""
    return str(answer.get("error", ""))[:500] if isinstance(answer, dict) else ""  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
