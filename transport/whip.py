"""WHIP (RFC 9725) and WHEP: sessions for OBS, FFmpeg, GStreamer and players, by plain SDP over HTTP.

Both run a copy of the graph for the one client: a WHIP client sends its media into it, a WHEP client only
receives. A WHEP client may also watch what runs already: a session by its id, or a graph that was started by command.
The answer holds all of our candidates, as section 4.3 asks; the client's may come later, by PATCH.
ICE restarts are refused with 422, as section 4.3 has it for those who support trickle only.
"""

from __future__ import annotations

from aiohttp import web

from ..pipeline.clock import SECOND
from ..pipeline.stage import StageError
from ..pipeline.tokens import Scope
from .body import text_of
from .desk import Desk
from .guard import caller_of
from .headless import HeadlessSession
from .ice import Ice
from .live_session import LiveSession, media_of
from .offer import OfferError
from .openapi import Route
from .sessions import Sessions
from .signalling import check_owner, find, trickle
from .trickle import SDPFRAG
from .viewers import Viewer, Viewers

SDP = "application/sdp"


class Whip:
    """ice: what clients are told of STUN and TURN, as `Link` headers. desk, viewers: what can be watched, and who does."""

    def __init__(self, sessions: Sessions, ice: Ice, desk: Desk, viewers: Viewers) -> None:
        self.sessions = sessions
        self.ice = ice
        self.desk = desk
        self.viewers = viewers
        self.routes: list[Route] = []
        kinds: dict[str, tuple[Scope, ...]] = {"whip": ("talk",), "whep": ("talk", "view")}
        for kind, scopes in kinds.items():
            one = f"/{kind}/{{graph}}/{{id}}"
            mine: tuple[Scope, ...] = (*scopes, "control")
            self.routes += [
                Route("POST", f"/{kind}/{{graph}}", f"{kind.upper()}: open a session.", self.create, SDP, SDP,
                      (404, 503), 201, scopes=scopes),
                Route("OPTIONS", f"/{kind}/{{graph}}", "What is taken, and the ICE servers.", self.options, "",
                      status=204, scopes=scopes),
                Route("PATCH", one, "Candidates that came later.", self.patch, "", SDPFRAG, (412, 422, 428), 204,
                      scopes=mine),
                Route("DELETE", one, "End the session.", self.end, "", scopes=mine),
            ]  # fmt: skip
        self.routes.append(
            Route("POST", "/whep/{graph}/{id}", "WHEP: watch a session that runs.", self.watch, SDP, SDP,
                  (404, 429, 503), 201, scopes=("talk", "view", "control"))
        )  # fmt: skip

    async def create(self, request: web.Request) -> web.Response:
        kind = request.path.split("/")[1]
        graph, offer = request.match_info["graph"], await text_of(request, SDP)
        runs = self._running(graph) if kind == "whep" else None
        if runs is not None:
            return self._created(request, kind, *await self.viewers.open(runs, offer, caller_of(request)))
        live, answer = await self.sessions.open(
            graph, offer, caller_of(request), resumable=False, watches=kind == "whep"
        )
        return self._created(request, kind, live, answer)

    def _running(self, graph: str) -> HeadlessSession | None:
        """What a WHEP client of a graph may watch; None when it gets a copy of its own.

        Raises: OfferError when the graph sends nothing; HTTPServiceUnavailable while it pauses.
        """
        headless = self.desk.headless
        plan = self.desk.graphs.get(graph)
        if plan is not None and not media_of(plan)[1]:
            raise OfferError(
                f"the graph has no webrtc.out for pictures or sound: {graph!r} cannot be watched"
            )
        runs = headless.of(graph)
        if runs is None and graph in headless.kept:
            text = f"graph {graph!r} runs all the time, but not in this moment; try again"
            left_s = -(-(headless.kept[graph] - self.desk.sessions.clock.now()) // SECOND)
            raise web.HTTPServiceUnavailable(text=text, headers={"Retry-After": str(max(2, left_s))})
        return runs

    async def watch(self, request: web.Request) -> web.Response:
        graph, caller = request.match_info["graph"], caller_of(request)
        try:
            watched = self.desk.find(request.match_info["id"])
        except StageError as e:
            raise web.HTTPNotFound(text=str(e)) from e
        if watched.graph != graph:
            raise web.HTTPNotFound(text=f"that session runs graph {watched.graph!r}, not {graph[:64]!r}")
        if isinstance(watched, LiveSession):
            check_owner(watched, caller, "view")
        viewer, answer = await self.viewers.open(watched, await text_of(request, SDP), caller)
        return self._created(request, "whep", viewer, answer)

    def _created(
        self, request: web.Request, kind: str, live: LiveSession | Viewer, answer: str
    ) -> web.Response:
        response = web.Response(status=201, text=answer, content_type=SDP)
        response.headers["Location"] = f"/{kind}/{live.graph}/{live.id}"
        if live.peer is not None:
            response.headers["ETag"] = live.peer.etag
        self._link(request, response)
        return response

    def _find(self, request: web.Request) -> LiveSession | Viewer:
        if request.path.startswith("/whep/") and request.match_info["id"] in self.viewers.live:
            return find(self.viewers.live, request)
        return find(self.sessions.live, request)

    async def options(self, request: web.Request) -> web.Response:
        response = web.Response(status=204, headers={"Accept-Post": SDP, "Accept-Patch": SDPFRAG})
        self._link(request, response)
        return response

    def _link(self, request: web.Request, response: web.Response) -> None:
        name = caller_of(request).name or "penstock"
        for link in self.ice.links(name, self.sessions.clock.wall()):
            response.headers.add("Link", link)

    async def patch(self, request: web.Request) -> web.Response:
        live = self._find(request)
        if "If-Match" not in request.headers:
            raise web.HTTPPreconditionRequired(text="If-Match is missing; send the ETag of the answer")
        await trickle(live, request)
        return web.Response(status=204)

    async def end(self, request: web.Request) -> web.Response:
        await self._find(request).close("the client ended it")
        return web.Response()
