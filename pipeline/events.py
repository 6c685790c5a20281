"""`events:` of a graph file: which of its events and texts leave the daemon, and to where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .event_plan import LIFE, EventsPlan
from .faults import Faults
from .frame import TokenFrame
from .graph import NodePlan

KEYS = ("mqtt", "emit")


def read_events(value: Any, nodes: Mapping[str, NodePlan], faults: Faults) -> EventsPlan:
    """`{mqtt: env:PENSTOCK_MQTT, emit: [asr.commit, watch.event, '*.restart']}`; faults go to `faults`."""
    body = faults.mapping(value, ("events",), "'events'")
    faults.keys(body, ("events",), KEYS, "'events'")
    mqtt = body.get("mqtt", "")
    if not isinstance(mqtt, str) or (mqtt and not mqtt.startswith(("mqtt://", "mqtts://", "env:", "file:"))):
        faults.fault(
            ("events", "mqtt"),
            "'mqtt' is env:NAME or file:PATH that holds the URL, or mqtt://host:1883, mqtts://host:8883",
        )
        mqtt = ""
    elif "@" in mqtt and mqtt.startswith("mqtt"):
        faults.fault(
            ("events", "mqtt"), "a password must not stand in a graph file: use env:NAME or file:PATH"
        )
    given = body.get("emit", [])
    if not isinstance(given, list):
        faults.fault(("events", "emit"), f"'emit' is a list of node.event, not {given!r:.60}")
        given = []
    emit: list[str] = []
    texts: list[str] = []
    for i, item in enumerate(given):
        node, dot, name = str(item).partition(".")
        where = ("events", "emit", i)
        if not dot or not name:
            faults.fault(where, f"an event is written node.event or '*.event', not {item!r:.60}")
        elif node in nodes and _carries_text(nodes[node], name):
            texts.append(str(item))
        elif node not in nodes and not any(c in node for c in "*?["):
            faults.fault(where, f"unknown node {node!r}; the graph has: {', '.join(sorted(nodes))}")
        else:
            emit.append(str(item))
    return EventsPlan(str(mqtt), (*LIFE, *emit), tuple(texts))


def _carries_text(node: NodePlan, port: str) -> bool:
    out = node.cls.ports.outputs.get(port)
    return out is not None and issubclass(out.type, TokenFrame)
