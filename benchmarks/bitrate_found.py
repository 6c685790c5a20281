"""Regions that the system finds itself, on what it decodes: closed loop, from uniform on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
from bitrate_methods import BASE_FPS, Finder, Seen
from bitrate_scene import Image, Shot
from penstock.models.toy_model import WINDOW, ToyModel
from penstock.models.toy_world import COLOURS, SIZE
from penstock.models.vlm_memory import Memory
from penstock.models.vlm_session import Runner, Say, Take, Talk, VlmSession, importance
from penstock.pipeline.clock import SECOND
from penstock.stages.focus_detect import Detectors
from penstock.stages.importance import TTL_MS, grid_of
from penstock.stages.question_rules import need
from penstock.transport.attention import Attention
from penstock.transport.importance import ImportanceMap


def rules(every_s: float = 1.0, blind: bool = False) -> Finder:
    """The question's words ask for something to read; the detectors of `focus.detect` look for it once a second, and
    the map is in force from the next picture on. blind: what is asked about they cannot find, only what else there is."""
    state: dict[str, Any] = {}

    def find(shots: Sequence[Shot], index: int, seen: Seen | None) -> ImportanceMap | None:
        if index == 0:
            state.clear()
            state.update(attention=Attention(), detectors=Detectors(), last=-1.0)
        told, detectors = state["attention"], state["detectors"]
        now = index * SECOND // BASE_FPS
        if (
            seen is not None
            and need(shots[index].question) == "text"
            and index / BASE_FPS - state["last"] >= every_s
        ):
            state["last"] = index / BASE_FPS
            gray = _without(seen.gray, shots[index]) if blind else seen.gray
            if (found := detectors.text(gray, now)) is not None:
                told.told(found, now)
        return told.current(now)

    return find


def _without(gray: Image, shot: Shot) -> Image:
    """(H, W), what is asked about blurred until nothing is left of its print."""
    place = slice(max(0, shot.y), shot.y + shot.height), slice(max(0, shot.x), shot.x + shot.width)
    gray = gray.copy()
    gray[place] = cv2.GaussianBlur(gray[place], (0, 0), 12)
    return gray


def attention(every_s: float = 1.0) -> Finder:
    """The embedded toy VLM watches what is decoded, at 48×48; asked where the thing is whose colour the question names, what
    its decoder looks at is the map, as `vlm.toy` tells it."""
    state: dict[str, Any] = {}

    def find(shots: Sequence[Shot], index: int, seen: Seen | None) -> ImportanceMap | None:
        if index == 0:
            model = state.get("model") or ToyModel()
            state.clear()
            session = VlmSession(model, Memory(176, 96, pictures=WINDOW))
            state.update(attention=Attention(), model=model, runner=Runner(model), session=session, last=-1.0)
        told: Attention = state["attention"]
        now = index * SECOND // BASE_FPS
        if seen is not None and index / BASE_FPS - state["last"] >= every_s:
            state["last"] = index / BASE_FPS
            _watch(state["runner"], state["session"], seen, now)
            colour = next(w for w in shots[index].question.split() if w in COLOURS)
            grid, confidence = _look(state["runner"], state["session"], f"where is {colour}")
            fields = {"grid": grid_of(grid), "confidence": min(1.0, confidence), "ttl_ms": TTL_MS}
            told.told(fields | {"source": "attention"}, now)
        return told.current(now)

    return find


def _watch(runner: Runner, session: VlmSession, seen: Seen, now: int) -> None:
    small = np.ascontiguousarray(cv2.resize(seen.rgb, (SIZE, SIZE), interpolation=cv2.INTER_AREA))
    take = Take(session, image=torch.from_numpy(small).permute(2, 0, 1), at=now)
    runner.commit(take, runner.forward([take])[0])


def _look(runner: Runner, session: VlmSession, line: str) -> tuple[Any, float]:
    """Weights over the picture, and how concentrated they are."""
    talk = Talk(session)
    result = runner.forward([Say(talk, runner.model.question(line), tap=True)])[0]
    assert result.looks is not None
    assert talk.sight is not None
    grid, confidence = importance(talk.sight, result.looks)
    return grid.numpy(), confidence
