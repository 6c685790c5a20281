"""Regions that the system finds itself, on what it decodes: closed loop, from uniform on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bitrate_methods import BASE_FPS, Finder
from bitrate_scene import QUESTION, Image, Shot
from penstock.pipeline.clock import SECOND
from penstock.stages.focus import LOCATED, PRINTED, Detectors
from penstock.stages.importance import TTL_MS, grid_of
from penstock.stages.question_rules import need
from penstock.transport.attention import Attention
from penstock.transport.importance import ImportanceMap


def rules(every_s: float = 1.0) -> Finder:
    """The question's words ask for something to read; the detectors of `focus.detect` look for it once a second, and
    the map is in force from the next picture on."""
    state: dict[str, Any] = {}

    def find(_: Sequence[Shot], index: int, decoded: Image | None) -> ImportanceMap | None:
        if index == 0:
            state.clear()
            state.update(attention=Attention(), detectors=Detectors(), last=-1.0)
        attention, detectors = state["attention"], state["detectors"]
        now = index * SECOND // BASE_FPS
        if decoded is not None and need(QUESTION) == "text" and index / BASE_FPS - state["last"] >= every_s:
            state["last"] = index / BASE_FPS
            fields: dict[str, Any] = {"ttl_ms": TTL_MS, "source": "detector"}
            if (codes := detectors.codes(decoded)) is not None:
                attention.told(fields | {"grid": grid_of(codes), "confidence": LOCATED, "found": True}, now)
            elif (cells := detectors.print_(decoded)) is not None:
                attention.told(fields | {"grid": grid_of(cells), "confidence": PRINTED}, now)
        return attention.current(now)

    return find
