"""Who may talk to the server, and how every refusal looks: JSON in words, with headers that keep the page safe."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable
from urllib.parse import urlsplit

from aiohttp import hdrs, web
from aiohttp.typedefs import Handler, Middleware

from ..pipeline.clock import Clock
from ..pipeline.stage import StageError
from .access import Access, Rates, is_loopback
from .caller import LOCAL, Caller
from .offer import OfferError
from .openapi import Route
from .trickle import RestartRefused

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
PREFLIGHT = {
    "Access-Control-Allow-Methods": "GET, POST, PATCH, DELETE, OPTIONS",
    "Access-Control-Allow-Headers": "Authorization, Content-Type, If-Match",
    "Access-Control-Max-Age": "600",
}
EXPOSED = "Location, ETag, Link, Accept-Post, Accept-Patch, Retry-After, WWW-Authenticate"
_CALLER = web.RequestKey("caller", Caller)


def caller_of(request: web.Request) -> Caller:
    """Who makes it; only after the guard has let it through."""
    return request.get(_CALLER, LOCAL)


def refused(status: int, why: str, **headers: str) -> web.Response:
    """An error as docs/protocol.md has it."""
    return web.json_response({"error": why}, status=status, headers=headers)


class Guard:
    """Checks each request before its handler, and words each failure after it.

    host: what the server is bound to. routes: with the scopes that each asks for. open_paths: served without
    a token (the page itself, which has no secrets). refusals: counted by status.
    """

    def __init__(
        self,
        host: str,
        access: Access,
        clock: Clock,
        routes: Iterable[Route],
        open_paths: frozenset[str],
        refusals: Counter[int],
    ) -> None:
        self.local_only = is_loopback(host)
        self.access = access
        self.open_paths = open_paths
        self.refusals = refusals
        self._rates = Rates(clock, access.rate)
        self._scopes = {(route.method, route.path): route.scopes for route in routes}

    def refusal(self, request: web.Request) -> web.Response | None:
        """Why this request is not taken, or the whole answer to a preflight; None when it is taken."""
        address = self.access.address(request.remote or "", request.headers.getall("X-Forwarded-For", ()))
        if wait := self._rates.take(address):
            return _too_often(wait)
        origin = request.headers.get(hdrs.ORIGIN)
        welcome = origin in self.access.origins
        if welcome and request.method == "OPTIONS" and hdrs.ACCESS_CONTROL_REQUEST_METHOD in request.headers:
            return web.Response(status=204, headers=PREFLIGHT)  # a browser sends no token with it
        caller = Caller(address)
        if self.access.closed:
            scheme, _, given = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
            given = given.strip() if scheme.lower() == "bearer" else ""
            found = self.access.identify(given, address) if given else None
            if found is not None:
                caller, rate = found
                if wait := self._rates.take(f"token {caller.name}", rate):
                    return _too_often(wait)
            elif request.path not in self.open_paths or request.method not in ("GET", "HEAD"):
                return refused(
                    401,
                    "the token is not known here, has expired or was revoked"
                    if given
                    else "a token is needed: send Authorization: Bearer TOKEN",
                    **{"WWW-Authenticate": 'Bearer realm="penstock"'},
                )
            else:
                caller = Caller(address, scopes=frozenset())
        host = request.host
        name = urlsplit(f"//{host}").hostname or ""
        # DNS rebinding: a foreign page's name that resolves to 127.0.0.1 still stands in Host
        if self.local_only and not is_loopback(name) and name not in self.access.hosts:
            return refused(403, f"this server answers to localhost, not to {name[:100]!r}")
        if origin is not None and not welcome and urlsplit(origin).netloc != host:
            return refused(403, "requests from pages of another origin are not taken")
        return self._beyond(request, caller)

    def _beyond(self, request: web.Request, caller: Caller) -> web.Response | None:
        """What the caller's scopes do not cover."""
        request[_CALLER] = caller
        resource = request.match_info.route.resource
        needed = self._scopes.get((request.method, resource.canonical if resource is not None else ""), ())
        if needed and not caller.may(*needed):
            return refused(403, f"the token {caller.name!r} lacks the scope {' or '.join(needed)}")
        return None

    def _share(self, request: web.Request, response: web.StreamResponse) -> None:
        """Let a page of an allowed origin read the answer (CORS)."""
        if not self.access.origins:
            return
        response.headers.add("Vary", "Origin")
        origin = request.headers.get(hdrs.ORIGIN, "")
        if origin in self.access.origins:
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = EXPOSED

    async def prepare(self, request: web.Request, response: web.StreamResponse) -> None:
        """aiohttp's signal: the last moment for headers, of streams too."""
        for key, value in HEADERS.items():
            response.headers.setdefault(key, value)
        response.headers["Server"] = "penstock"  # not the versions of Python and aiohttp
        self._share(request, response)

    @property
    def middleware(self) -> Middleware:
        @web.middleware
        async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
            try:
                response = self.refusal(request) or await handler(request)
            except RestartRefused as e:
                response = refused(422, str(e))
            except OfferError as e:
                response = refused(400, str(e))
            except web.HTTPRequestEntityTooLarge as e:
                response = refused(413, e.text or "the body is too large")
            except web.HTTPException as e:
                if e.status < 400:
                    raise
                response = refused(e.status, e.text or e.reason)
                for kept in ("Allow", "Retry-After"):
                    if kept in e.headers:
                        response.headers[kept] = e.headers[kept]
            except StageError as e:
                log.error("a session could not start: %s", e)
                response = refused(500, str(e))
            except Exception:
                # boundary: one request's bug must not end the server
                log.exception("%s %s failed", request.method, request.path)
                response = refused(500, "the server failed on this request; its log says why")
            if response.status >= 400:
                self.refusals[response.status] += 1
            return response

        return guard


def _too_often(wait_s: float) -> web.Response:
    return refused(429, "too many requests; wait a moment", **{"Retry-After": str(math.ceil(wait_s))})
