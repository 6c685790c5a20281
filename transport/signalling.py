"""Signalling of the page and of clients with a data channel: docs/protocol.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeVar

from aiohttp import web

from ..pipeline.clock import SECOND
from ..pipeline.tokens import Scope
from . import api_models as m
from .api_body import json_response, read
from .body import text_of
from .caller import Caller
from .guard import caller_of
from .ice import Ice
from .openapi import Route
from .peer import Peer
from .sessions import Sessions
from .trickle import SDPFRAG, parse_fragment


class Signalling:
    """ice: what clients are told of STUN and TURN."""

    def __init__(self, sessions: Sessions, ice: Ice) -> None:
        self.sessions = sessions
        self.ice = ice
        talk: tuple[Scope, ...] = ("talk", "control")
        self.routes = [
            Route("POST", "/session", "Open a session, or come back to one.", self.create, m.Answer, m.Offer,
                  (404, 410, 429, 503), scopes=("talk",)),
            Route("PATCH", "/session/{id}", "Candidates that came later.", self.patch, "", SDPFRAG,
                  (412, 422), 204, scopes=talk),
            Route("POST", "/session/{id}/reload", "The page is being left, perhaps to come back.", self.reload, m.Done,
                  scopes=talk),
            Route("DELETE", "/session/{id}", "End a session; also when it is gone already.", self.end, m.Nothing,
                  scopes=talk),
            Route("GET", "/session/{id}/stats", "Its live figures.", self.stats, m.Figures, scopes=(*talk, "view")),
            Route("GET", "/ice-servers", "STUN and TURN servers, with credentials for a while.", self.ice_servers,
                  m.IceServers, scopes=("talk", "view")),
        ]  # fmt: skip

    async def create(self, request: web.Request) -> web.Response:
        offer = await read(request, m.Offer)
        caller = caller_of(request)
        if offer.resume is not None:
            live, answer = await self.sessions.resume(offer.resume, offer.sdp, offer.after, caller)
        else:
            live, answer = await self.sessions.open(offer.graph or self.sessions.default, offer.sdp, caller)
        told = {"session": live.id, "sdp": answer, "type": "answer"}
        if live.resume:
            told |= {"resume": live.resume, "resumed": offer.resume is not None}
        response = json_response(told)
        if live.peer is not None:
            response.headers["ETag"] = live.peer.etag
        return response

    async def patch(self, request: web.Request) -> web.Response:
        live = find(self.sessions.live, request)
        await trickle(live, request)
        return web.Response(status=204)

    async def reload(self, request: web.Request) -> web.Response:
        live = find(self.sessions.live, request)
        if live.resume:
            live.expect_reload()
        else:
            await live.close("the client left")
        return json_response({"ok": True})

    async def end(self, request: web.Request) -> web.Response:
        live = self.sessions.live.get(request.match_info["id"])
        if live is not None:
            check_owner(live, caller_of(request))
            await live.close("the client ended it")
        return json_response({})

    async def stats(self, request: web.Request) -> web.Response:
        return json_response(find(self.sessions.live, request, "view").stats())

    async def ice_servers(self, request: web.Request) -> web.Response:
        caller = caller_of(request)
        now = self.sessions.clock.wall()
        servers = self.ice.for_client(caller.name or "penstock", now)
        return json_response({"iceServers": servers, "ttl_s": self.ice.ttl // SECOND})


class Connection(Protocol):
    """A session, or one who watches."""

    graph: str
    caller: Caller

    @property
    def peer(self) -> Peer | None: ...
    async def close(self, reason: str) -> None: ...


C = TypeVar("C", bound=Connection)


def find(live_ones: Mapping[str, C], request: web.Request, *also: Scope) -> C:
    """The connection that the path names. Raises: HTTPNotFound, HTTPForbidden when it is another's."""
    live = live_ones.get(request.match_info["id"])
    if live is None or live.graph != request.match_info.get("graph", live.graph):
        raise web.HTTPNotFound(text="there is no such session; it may have ended")
    check_owner(live, caller_of(request), *also)
    return live


def check_owner(live: Connection, caller: Caller, *also: Scope) -> None:
    """Raises: HTTPForbidden when it is another token's and `caller` may not steer all."""
    if live.caller.name != caller.name and not caller.may("control", *also):
        raise web.HTTPForbidden(
            text="that session was opened with another token; this one lacks the scope control"
        )


async def trickle(live: Connection, request: web.Request) -> None:
    """Take a fragment. Raises: HTTPUnsupportedMediaType, HTTPPreconditionFailed, OfferError, RestartRefused."""
    peer = live.peer
    match = request.headers.get("If-Match")
    if peer is None or (match not in (None, "*", peer.etag)):
        raise web.HTTPPreconditionFailed(text="If-Match names another connection than this session has now")
    fragment = parse_fragment(await text_of(request, SDPFRAG))
    peer.trickle(fragment, restart=match == "*")
