"""Who may talk to the server, and how every refusal looks: JSON in words, with headers that keep the page safe."""

from __future__ import annotations

import hmac
import ipaddress
import logging
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from ..pipeline.stage import StageError
from .offer import OfferError

log = logging.getLogger(__name__)

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob: mediastream:; "
        "object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(self), microphone=(self)",
    "Cache-Control": "no-cache",
}


def is_loopback(host: str) -> bool:
    """Is this name or address this machine only?"""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def refused(status: int, why: str, **headers: str) -> web.Response:
    """An error as docs/protocol.md has it."""
    return web.json_response({"error": why}, status=status, headers=headers)


class Guard:
    """Checks each request before its handler, and words each failure after it.

    host: what the server is bound to. token: what clients must send as a Bearer token; None asks nothing.
    open_paths: served without a token (the page itself, which has no secrets).
    """

    def __init__(self, host: str, token: str | None, open_paths: frozenset[str]) -> None:
        self.local_only = is_loopback(host)
        self.token = token
        self.open_paths = open_paths

    def refusal(self, request: web.Request) -> web.Response | None:
        """Why this request is not taken; None when it is."""
        host = request.host
        name = urlsplit(f"//{host}").hostname or ""
        # DNS rebinding: a foreign page's name that resolves to 127.0.0.1 still stands in Host
        if self.local_only and not is_loopback(name):
            return refused(403, f"this server answers to localhost, not to {name[:100]!r}")
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return refused(403, "requests from pages of another origin are not taken")
        if self.token is not None and request.path not in self.open_paths:
            scheme, _, given = request.headers.get("Authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not hmac.compare_digest(
                given.strip().encode(), self.token.encode()
            ):
                return refused(
                    401,
                    "a token is needed: send Authorization: Bearer TOKEN",
                    **{"WWW-Authenticate": "Bearer"},
                )
        return None

    @property
    def middleware(self) -> Middleware:
        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                response = self.refusal(request) or await handler(request)
            except OfferError as e:
                response = refused(400, str(e))
            except web.HTTPRequestEntityTooLarge as e:
                response = refused(413, e.text or "the body is too large")
            except web.HTTPException as e:
                if e.status < 400:
                    raise
                response = refused(e.status, e.text or e.reason)
                if "Allow" in e.headers:
                    response.headers["Allow"] = e.headers["Allow"]
            except StageError as e:
                log.error("a session could not start: %s", e)
                response = refused(500, str(e))
            except Exception:
                # boundary: one request's bug must not end the server
                log.exception("%s %s failed", request.method, request.path)
                response = refused(500, "the server failed on this request; its log says why")
            for key, value in HEADERS.items():
                response.headers.setdefault(key, value)
            return response

        return guard
