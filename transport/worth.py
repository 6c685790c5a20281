"""What one client's bits are worth: the streams that it asks the budget for, learned from answers. Policy only.

A client sends one track of pictures, or, when it crops, two: the crop, whose worth answers tell, and the context, small and
seldom, whose worth is that questions of anything else can be answered at all.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..pipeline.clock import SECOND
from ..pipeline.graph import Plan
from .allocator import Grant, Stream
from .rt_messages import Caps
from .utility import Learner

ACTIVE = 60 * SECOND  # after a question, its client's pictures count in full
SAVED = 0.45  # of the bits for the same, with regions at 12 steps and more (B90: 0.39 to 0.45)
CROP_SAVED = 0.42  # … with a crop of whole cells (B90: 0.39 to 0.44)
# answers that come closer saw the same stall or the same lost packet: they count by the time between them
APART = 4 * SECOND
UNPROVEN = 2.0  # times the estimate of a sender that uses less than half of it
CONTEXT_FPS = 1.0
CONTEXT_Q50, CONTEXT_SPREAD = 5.0, 0.3  # kb a picture of 160x120; log units
CONTEXT_WEIGHT = 0.15  # of the crop's: answers are mostly read off the crop
CONTEXT_LEAST_KBPS, CONTEXT_MOST_KBPS = 4.0, 40.0


class Worth:
    """name: of the session. Attributes: `kbps`, what the sender may use for its pictures or its crop, 0 for all that the
    path carries; `context_kbps`, for the context; `granted`, by track ("video", or "crop" and "context")."""

    def __init__(self, name: str, plan: Plan) -> None:
        self.name = name
        self.learner = Learner()
        self.granted: dict[str, Grant] = {}
        self.kbps = self.context_kbps = 0
        self._context = Learner(CONTEXT_Q50, CONTEXT_SPREAD)
        self._plan = plan
        self._asked_at: int | None = None
        self._topic = ""

    @property
    def grant(self) -> Grant | None:
        """Of what answers are read off."""
        return self.granted.get("crop") or self.granted.get("video")

    def answered(self, fields: Mapping[str, Any], caps: Caps | None, fps: float, now: int) -> None:
        """How sure the model was tells what the bits of its pictures were worth; an answer's kind, its topic."""
        weight = 1.0 if self._asked_at is None else min(1.0, (now - self._asked_at) / APART)
        self._asked_at = now
        if (topic := str(fields.get("kind", ""))) != self._topic:
            self._topic = topic
            self.learner.new_topic()
        confidence = fields.get("confidence")
        if not isinstance(confidence, int | float) or isinstance(confidence, bool) or caps is None:
            return
        kbps = caps.sent_kbps - (self.context_kbps if caps.cropping else 0)
        if kbps > 0 and math.isfinite(confidence):
            # as the curve is over bits without regions, so are the observations
            self.learner.answered(kbps / fps / saved(caps), float(confidence), weight)

    def streams(self, caps: Caps | None, fps: float, now: int, sound: bool = True) -> list[Stream]:
        """One for each track; none when its client cannot be told. sound: does it send any?"""
        node = self._plan.find("webrtc.in")
        if caps is None or node is None:
            return []
        uplink: Any = getattr(node.options, "uplink")  # noqa: B009 - of webrtc.in, which imports us
        pictures = Stream(
            key=f"{self.name}/crop" if caps.cropping else f"{self.name}/video",
            session=self.name,
            learner=self.learner,
            fps=fps,
            weight=uplink.priority,
            # who was never asked anything watches all the time
            active=self._asked_at is None or now - self._asked_at < ACTIVE,
            audio=sound and self._plan.uses_port(node.name, "audio"),
            path_kbps=path_of(caps),
            scale=saved(caps),
            deadline_s=uplink.deadline / SECOND,
            least_kbps=uplink.least / 1000,
            most_kbps=uplink.most / 1000,
        )
        if not caps.cropping:
            return [pictures]
        context = Stream(
            key=f"{self.name}/context",
            session=self.name,
            learner=self._context,
            fps=CONTEXT_FPS,
            weight=CONTEXT_WEIGHT * uplink.priority,
            active=pictures.active,
            audio=pictures.audio,
            path_kbps=pictures.path_kbps,
            deadline_s=pictures.deadline_s,
            least_kbps=min(CONTEXT_LEAST_KBPS, uplink.most / 1000),
            most_kbps=min(CONTEXT_MOST_KBPS, uplink.most / 1000),
        )
        return [pictures, context]

    def grants(self, granted: Mapping[str, Grant], watched: bool) -> None:
        """Of the budget, by the streams' keys."""
        self.granted = {key.rpartition("/")[2]: grant for key, grant in granted.items()}
        context, main = self.granted.get("context"), self.grant
        self.context_kbps = max(1, math.ceil(context.kbps)) if context is not None else 0
        if main is not None:
            # people who watch are not asked how sure they are: only the budget limits what they see; and what the path
            # carries the sender's own estimate follows sooner than we do
            free = context is None and (main.why == "path" or (watched and main.why == "enough"))
            self.kbps = 0 if free else max(1, math.ceil(main.kbps))

    def explained(self) -> list[dict[str, Any]]:
        """Of each track, what it was granted, what that is expected to bring, and why it is no more."""
        return [
            {
                "track": track,
                "kbps": grant.kbps,
                "expected": round(grant.accuracy, 2),
                "gain_per_kbps": round(grant.slope, 5),
                "why": grant.why,
            }
            for track, grant in self.granted.items()
        ]


def path_of(caps: Caps) -> float:
    """kb/s that its path carries, as far as that is known: an estimate knows little beyond what was sent, and one that is
    taken at its word for that keeps a sender small that its own small rate made look so."""
    if not caps.path_kbps:
        return math.inf
    return caps.path_kbps * min(UNPROVEN, max(1.0, caps.path_kbps / max(1, caps.sent_kbps)))


def saved(caps: Caps) -> float:
    """The share of the bits that is needed for the same, with what the sender does now."""
    return CROP_SAVED if caps.cropping else SAVED if caps.dqp >= 12 else 1.0
