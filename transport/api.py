"""The HTTP API beyond signalling: sessions, graphs, commands, health, metrics, events (docs/api.md).

Every fault of a caller's is a 4xx with `{"error": "…in words…"}`. `/openapi.json` describes all of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from aiohttp import web

from ..pipeline.clock import MS
from ..pipeline.graph import Plan
from ..pipeline.model_list import listed
from ..pipeline.stage import StageError
from ..pipeline.tokens import Scope
from . import api_models as m
from . import traces
from .access import OPEN, Access
from .api_body import json_response, read
from .desk import Desk, NotThere
from .event_stream import stream
from .guard import caller_of
from .live_session import media_of, words_of
from .metrics import CONTENT_TYPE, Metrics
from .openapi import Route, describe

VERSION = "1"
VIEW: tuple[Scope, ...] = ("view", "control")
CONTROL: tuple[Scope, ...] = ("control",)
READ: tuple[Scope, ...] = ("view", "talk", "control")


class Api:
    """ready: empty when sessions can be taken, else why not, in words. access: whose tokens are still valid."""

    def __init__(self, desk: Desk, metrics: Metrics, ready: Callable[[], str], access: Access = OPEN) -> None:
        self.desk = desk
        self.metrics = metrics
        self.ready = ready
        self.access = access
        self.routes = [replace(route, handler=in_words(route.handler)) for route in self._table()]

    def _table(self) -> list[Route]:
        events = "text/event-stream"
        return [
            Route("GET", "/sessions", "All running sessions.", self.list, m.SessionList, scopes=VIEW),
            Route(
                "POST", "/sessions", "Start a graph that needs no client.", self.start, m.Started,
                m.StartGraph, (404, 409), 201, scopes=CONTROL,
            ),
            Route("GET", "/sessions/{id}", "One session, its nodes and their parameters.", self.detail, m.SessionDetail,
                  scopes=VIEW),
            Route("DELETE", "/sessions/{id}", "End a session.", self.end, m.Done, scopes=CONTROL),
            Route("GET", "/sessions/{id}/stats", "Its live figures.", self.stats, m.Figures, scopes=VIEW),
            Route(
                "POST", "/sessions/{id}/params", "Change live parameters.", self.params, m.ParamValues,
                m.NodeParams, (409,), scopes=CONTROL,
            ),
            Route("POST", "/sessions/{id}/ask", "Put in a line of text, as in chat.", self.ask, m.Done, m.Line, (409,),
                  scopes=CONTROL),
            Route("POST", "/sessions/{id}/say", "Speak these words.", self.say, m.Done, m.Line, (409,), scopes=CONTROL),
            Route("POST", "/sessions/{id}/interrupt", "Stop the reply.", self.interrupt, m.Done, m.Interrupt, (409,),
                  scopes=CONTROL),
            Route("POST", "/sessions/{id}/trace", "The last seconds of its flight recorder, for Perfetto.", self.trace,
                  "application/json", None, (409,), scopes=VIEW),
            Route("GET", "/graphs", "What this server can run.", self.graphs, m.GraphList, scopes=READ),
            Route("GET", "/graphs/{name}", "One graph, its nodes and their schemas.", self.graph, m.GraphDetail,
                  scopes=READ),
            Route("GET", "/models", "Checkpoints that stages may name, and which are here.", self.models, m.ModelList,
                  scopes=READ),
            Route("GET", "/events", "Server-sent events of all sessions.", self.events, events, scopes=VIEW),
            Route("GET", "/metrics", "Figures for Prometheus.", self.scrape, "text/plain", scopes=VIEW),
            Route("GET", "/health", "Alive.", self.live, m.Health, open=True),
            Route("GET", "/health/live", "Alive.", self.live, m.Health, open=True),
            Route("GET", "/health/ready", "Are new sessions taken?", self.readiness, m.Health, None, (503,), open=True),
            Route("GET", "/openapi.json", "This description.", self.openapi, "application/json", scopes=READ),
        ]  # fmt: skip

    # ------------------------------------------------------------ sessions

    async def list(self, _: web.Request) -> web.Response:
        return json_response({"sessions": [self.desk.summary(live) for live in self.desk.running()]})

    async def start(self, request: web.Request) -> web.Response:
        body = await read(request, m.StartGraph)
        if body.graph not in self.desk.graphs:
            raise web.HTTPNotFound(
                text=f"unknown graph {body.graph!r}; this server has: {', '.join(self.desk.graphs)}"
            )
        live = await self.desk.start(body.graph, body.source)
        return json_response({"session": live.id}, 201)

    async def detail(self, request: web.Request) -> web.Response:
        live = self.desk.find(request.match_info["id"])
        return json_response(self.desk.summary(live) | {"nodes": live.session.describe()})

    async def end(self, request: web.Request) -> web.Response:
        await self.desk.close(request.match_info["id"])
        return json_response({"ok": True})

    async def stats(self, request: web.Request) -> web.Response:
        return json_response(self.desk.find(request.match_info["id"]).stats())

    async def params(self, request: web.Request) -> web.Response:
        session_id = request.match_info["id"]
        self.desk.find(session_id)  # 404 before 400
        body = await read(request, m.NodeParams)
        return json_response(
            {"node": body.node, "params": self.desk.params(session_id, body.node, body.values)}
        )

    async def ask(self, request: web.Request) -> web.Response:
        self.desk.find(request.match_info["id"])
        self.desk.ask(request.match_info["id"], (await read(request, m.Line)).text)
        return json_response({"ok": True})

    async def say(self, request: web.Request) -> web.Response:
        self.desk.find(request.match_info["id"])
        self.desk.say(request.match_info["id"], (await read(request, m.Line)).text)
        return json_response({"ok": True})

    async def interrupt(self, request: web.Request) -> web.Response:
        self.desk.find(request.match_info["id"])
        self.desk.interrupt(request.match_info["id"], (await read(request, m.Interrupt)).scope)
        return json_response({"ok": True})

    async def trace(self, request: web.Request) -> web.Response:
        return await traces.answer(self.desk, request.match_info["id"])

    # ------------------------------------------------------------ graphs

    async def graphs(self, _: web.Request) -> web.Response:
        return json_response({"graphs": [self._graph_row(n, p) for n, p in self.desk.graphs.items()]})

    async def graph(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        plan = self.desk.graphs.get(name)
        if plan is None:
            raise web.HTTPNotFound(
                text=f"unknown graph {name[:64]!r}; this server has: {', '.join(self.desk.graphs)}"
            )
        nodes = [
            {
                "name": node.name,
                "use": node.use,
                "inputs": [{"port": e.port, "from": e.source} for e in node.inputs],
                "outputs": {port: out.type.__name__ for port, out in node.cls.ports.outputs.items()},
                "params": node.params.model_dump(mode="json"),
                "schema": node.cls.Params.model_json_schema(),
                "budget_ms": node.budget / MS,
                "scope": node.scope,
                "pool": node.pool,
            }
            for node in plan.nodes.values()
        ]
        slo = {key: ns / MS for key, ns in plan.slo.items()}
        return json_response(self._graph_row(name, plan) | {"slo_ms": slo, "nodes": nodes})

    def _graph_row(self, name: str, plan: Plan) -> dict[str, Any]:
        (takes, gives), words = media_of(plan), words_of(plan)
        return {
            "name": name,
            "title": plan.title,
            "about": plan.about,
            "default": name == self.desk.sessions.default,
            "takes": sorted(takes | {"text"} if words.reads else takes),
            "gives": sorted(gives | {"text"} if words.gives else gives),
            "captions": words.captions,
            "error": self.desk.broken.get(name, ""),
        }

    # ------------------------------------------------------------ operation

    async def models(self, _: web.Request) -> web.Response:
        return json_response({"models": await asyncio.to_thread(listed)})

    async def events(self, request: web.Request) -> web.StreamResponse:
        name = caller_of(request).name
        return await stream(request, self.desk.bus, lambda: self.access.is_known(name))

    async def scrape(self, _: web.Request) -> web.Response:
        return web.Response(body=self.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def live(self, request: web.Request) -> web.Response:
        return self._health(request, "ok")

    async def readiness(self, request: web.Request) -> web.Response:
        if why := self.ready():
            raise web.HTTPServiceUnavailable(text=why)
        broken, known = self.desk.broken, bool(caller_of(request).scopes)
        if self.desk.graphs and broken.keys() >= self.desk.graphs.keys():
            reasons = "; ".join(f"{name}: {why}" for name, why in broken.items())
            raise web.HTTPServiceUnavailable(
                text=f"no graph can start: {reasons}" if known else "no graph can start"
            )
        return self._health(request, "ready", {"broken": dict(broken)})

    def _health(
        self, request: web.Request, status: str, more: Mapping[str, Any] = MappingProxyType({})
    ) -> web.Response:
        told: dict[str, Any] = {"status": status}
        if caller_of(request).scopes:  # a stranger is told nothing of the load
            parked = sum(bool(live.parked_at) for live in self.desk.sessions.live.values())
            told |= {"sessions": len(self.desk.running()) - parked, "parked": parked, **more}
        return json_response(told)

    async def openapi(self, _: web.Request) -> web.Response:
        return json_response(describe(self.routes, VERSION))


def in_words(handler: Callable[[web.Request], Any]) -> Callable[[web.Request], Any]:
    """What a running graph refuses is the caller's fault here, not the server's."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            return await handler(request)
        except NotThere as e:
            raise web.HTTPNotFound(text=str(e)) from e
        except StageError as e:
            raise web.HTTPConflict(text=str(e)[:2000]) from e

    return handle
