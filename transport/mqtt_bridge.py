"""MQTT for the daemon: its events go out, commands come in (docs/mqtt.md). Never on the data path."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any

from ..pipeline.frame import Frame, TokenFrame
from ..pipeline.graph import Plan
from ..pipeline.secret import resolve
from ..pipeline.session import SessionEvent
from ..pipeline.stage import StageError
from .desk import Desk
from .event_bus import DaemonEvent
from .headless import HeadlessSession
from .live_session import LiveSession
from .mqtt import Broker, Message, MqttLink, parse_broker

log = logging.getLogger(__name__)

VERBS = ("params", "ask", "say", "interrupt", "start", "stop")
COMMANDS = 64  # that may be at work at a time


def bridges(graphs: Mapping[str, Plan], desk: Desk) -> list[MqttBridge]:
    """One for each broker that a graph names. Raises: StageError when its URL is missing or wrong."""
    brokers: dict[Broker, set[str]] = {}
    for name, plan in graphs.items():
        if plan.events.mqtt:
            broker = parse_broker(resolve(plan.events.mqtt))
            brokers.setdefault(broker, set()).add(name)
    return [MqttBridge(broker, frozenset(names), desk) for broker, names in brokers.items()]


class MqttBridge:
    """graphs: those whose events this broker gets, and that its commands may steer."""

    def __init__(self, broker: Broker, graphs: frozenset[str], desk: Desk) -> None:
        self.graphs = graphs
        self.link = MqttLink(broker, desk.sessions.clock, self._command)
        self._desk = desk
        self._prefix = broker.prefix
        self._tasks: set[asyncio.Task[None]] = set()
        desk.on_opened.append(self._opened)
        desk.on_closed.append(self._closed)

    def start(self) -> None:
        self.link.start()
        self._tell_sessions()

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await self.link.stop()

    # ------------------------------------------------------------ out

    def _opened(self, live: LiveSession | HeadlessSession) -> None:
        if live.graph not in self.graphs:
            return
        plan = live.session.plan.events

        def on_event(event: SessionEvent) -> None:
            if plan.wants(event.node, event.name):
                self._event(live, event.node, event.name, dict(event.fields))

        live.session.listen(on_event)
        for text in plan.texts:
            node, _, port = text.partition(".")
            live.session.runners[node].out.hear(port, self._text_sender(live, node, port))
        self._event(live, "session", "opened", {})
        self._tell_sessions()

    def _text_sender(self, live: LiveSession | HeadlessSession, node: str, port: str):
        def on_frame(frame: Frame) -> None:
            if isinstance(frame, TokenFrame):
                # a partial is soon replaced by the next: it need not survive a restart of the broker
                qos = 0 if port == "partial" else 1
                fields = {"text": frame.text, "utterance": frame.utterance, "end": frame.end}
                self._event(live, node, port, fields, qos)

        return on_frame

    def _closed(self, live: LiveSession | HeadlessSession) -> None:
        if live.graph in self.graphs:
            self._event(live, "session", "gone", {})
            self._tell_sessions()

    def _event(
        self,
        live: LiveSession | HeadlessSession,
        node: str,
        name: str,
        fields: dict[str, Any],
        qos: int = 1,
    ) -> None:
        event = DaemonEvent(self._desk.sessions.clock.wall(), live.id, live.graph, node, name, fields)
        topic = f"{self._prefix}/event/{live.graph}/{live.id}/{node}/{_level(name)}"
        self.link.publish(Message(topic, _json(event.as_json()), qos))

    def _tell_sessions(self) -> None:
        """Retained state: what runs now."""
        rows = [{"id": v.id, "graph": v.graph} for v in self._desk.running() if v.graph in self.graphs]
        self.link.publish(Message(f"{self._prefix}/sessions", _json({"sessions": rows}), 1, True))

    # ------------------------------------------------------------ in

    def _command(self, verb: str, payload: bytes) -> None:
        if len(self._tasks) >= COMMANDS:
            self._reply(verb, None, "too many commands at a time")
            return
        task = asyncio.create_task(self._act(verb, payload), name=f"mqtt/{verb[:16]}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _act(self, verb: str, payload: bytes) -> None:
        try:
            body = json.loads(payload)
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            self._reply(verb, None, "a command's payload is a JSON object")
            return
        number = body.get("id")
        try:
            result = await self._do(verb, body)
        except StageError as e:
            self._reply(verb, number, str(e)[:1000])
        else:
            self._reply(verb, number, "", result)

    async def _do(self, verb: str, body: dict[str, Any]) -> dict[str, Any]:
        """Raises: StageError in words."""
        desk = self._desk
        if verb not in VERBS:
            raise StageError(f"unknown command {verb[:32]!r}; known: {', '.join(VERBS)}")
        if verb in ("start", "stop"):
            graph = _text(body, "graph")
            if graph not in self.graphs:
                raise StageError(f"this broker steers: {', '.join(sorted(self.graphs))}; not {graph[:64]!r}")
            if verb == "start":
                return {"session": (await desk.start(graph)).id}
            return {"stopped": await desk.headless.stop(graph)}
        found = [live for live in desk.of(_text(body, "session")) if live.graph in self.graphs]
        for live in found:
            if verb == "params":
                values = body.get("values")
                if not isinstance(values, dict):
                    raise StageError("'values' is an object of parameters")
                desk.params(live.id, _text(body, "node"), values)
            elif verb == "interrupt":
                desk.interrupt(live.id)
            else:
                {"ask": desk.ask, "say": desk.say}[verb](live.id, _text(body, "text"))
        return {"sessions": len(found)}

    def _reply(self, verb: str, number: object, error: str, result: dict[str, Any] | None = None) -> None:
        body: dict[str, Any] = {"command": verb[:32], "id": number, "ok": not error} | (result or {})
        if error:
            body["error"] = error
        self.link.publish(Message(f"{self._prefix}/reply", _json(body)))


def _text(body: Mapping[str, Any], key: str) -> str:
    value = body.get(key)
    if not isinstance(value, str):
        raise StageError(f"{key!r} is missing or no text")
    return value


def _level(name: str) -> str:
    """One topic level: no separators, no wildcards."""
    return "".join("_" if c in "/+#\0" else c for c in name)[:64]


def _json(data: object) -> bytes:
    return json.dumps(data, default=str).encode()
