"""`vlm.stream`: watches a camera, answers questions about it at any moment, and speaks up when it was asked to.

Nothing is downloaded for it: `model: scene` measures pictures and reports (see models/scene_reporter.py). It
recognises no things and no people, and says so instead of guessing.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ..models.event_log import Event, EventLog
from ..models.scene_reporter import SceneReporter
from ..models.scene_words import event_sentence
from ..models.sights import SECOND, Sight
from ..pipeline.frame import EventFrame, Frame, Gap, TokenFrame, VideoFrame
from ..pipeline.stage import In, Out, Outputs, Ports, Stage
from .importance import tell
from .look import Image, colour_votes, thumbnail

_NOISE = 12  # levels that a sensor's noise changes a blurred thumbnail by, at most
_FEW = 0.004  # share of changed pixels that is no motion yet: 12 of the thumbnail's
_RELIT = 3  # levels of the median change: more than half of the picture got brighter or darker together
_APART = 2 * SECOND  # two pictures further apart say nothing of motion
_IN_PLACE, _SOMEWHERE = 0.6, 0.3  # confidence that motion is what matters: no question was asked
_MOST = 0.8  # of the changed pixels have to be in a region before it is named


def region_of(moved: NDArray[np.bool_]) -> str:
    """Where the changed pixels (H, W) are; "somewhere" when they are in no one place, "" when they are too few."""
    if moved.mean() < _FEW:
        return ""
    height, width = moved.shape
    rows, columns = np.nonzero(moved)
    x, y = (columns + 0.5) / width, (rows + 0.5) / height
    cells = np.histogram2d(y, x, bins=3, range=((0, 1), (0, 1)))[0] / (height * width / 9)
    if (cells > 0.1).sum() >= 7:
        return "everywhere"
    inside = {
        "centre": (np.abs(x - 0.5) < 0.25) & (np.abs(y - 0.5) < 0.25),
        "left": x < 0.4,
        "right": x > 0.6,
        "top": y < 0.4,
        "bottom": y > 0.6,
    }
    for name, where in inside.items():
        if where.mean() >= _MOST:
            return name
    return "somewhere"


class Measure:
    """Pictures → sights. It keeps the last picture, nothing else."""

    def __init__(self) -> None:
        self._last: VideoFrame | None = None
        self._blurred: NDArray[np.int16] | None = None  # (48, 64, 3)
        self._same_since = 0  # pts of the first of the equal pictures
        self.moved: NDArray[np.bool_] | None = None  # (48, 64) what changed; None when it cannot be told

    def __call__(self, frame: VideoFrame) -> Sight:
        rgb: Image = thumbnail(frame)
        sharp = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
        blurred = cv2.blur(rgb, (3, 3)).astype(np.int16)
        last, before = self._last, self._blurred
        fresh = last is None or last.image.shape != frame.image.shape or last.format != frame.format
        if last is None or fresh or not np.array_equal(last.image, frame.image):
            self._same_since = frame.pts
        self._last, self._blurred = frame, blurred
        motion, region, relit = None, "", False
        self.moved = None
        if last is not None and before is not None and not fresh and frame.pts - last.pts <= _APART:
            change = blurred - before
            relit = abs(float(np.median(change.mean(-1)))) >= _RELIT
            if not relit:
                moved = np.abs(change).max(-1) > _NOISE  # red on green of one brightness is motion too
                motion, region = float(moved.mean()), region_of(moved)
                self.moved = moved
        votes = colour_votes(rgb)
        total = sum(votes.values())
        return Sight(
            frame.pts, float(sharp.mean()) / 255, {name: n / total for name, n in votes.items()}, motion, region,
            (frame.pts - self._same_since) / SECOND, frame.width, frame.height, relit,
        )  # fmt: skip


class VlmOptions(BaseModel):
    """model: who looks. log: how many events are kept whole; counts and last times are kept of all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: Literal["scene"] = "scene"
    log: int = Field(default=2048, ge=16, le=1_000_000)


class VlmParams(BaseModel):
    """Live parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    speak: Literal["asked", "failures"] = Field(
        "asked", title="Speaks up", description="When it was asked to, or also when the picture fails"
    )


class VlmStream(Stage):
    """Feed it a few pictures a second (`cam.video|every(250ms)`) and questions as text."""

    ports = Ports(
        {"video": In(VideoFrame), "ask": In(TokenFrame, required=False, many=True)},
        {
            "answer": Out(TokenFrame, "token"),
            "event": Out(EventFrame, "token"),
            "importance": Out(EventFrame, "state"),
        },
    )
    Options = VlmOptions
    Params = VlmParams

    async def setup(self) -> None:
        self._measure = Measure()
        self._reporter = SceneReporter(EventLog(self.options.log))
        self._utterance = 0

    def process(self, port: str, frame: Frame, out: Outputs) -> None:
        if isinstance(frame, VideoFrame):
            self._see(frame, out)
        elif isinstance(frame, TokenFrame):
            self._answer(frame, out)

    def gap(self, port: str, gap: Gap, out: Outputs) -> None:
        """Lost pictures say nothing of the scene: the next one is compared with the last that came."""

    def _see(self, frame: VideoFrame, out: Outputs) -> None:
        sight = self._measure(frame)
        events, said = self._reporter.see(sight)
        if self._measure.moved is not None and sight.region not in ("", "everywhere"):
            sure = _SOMEWHERE if sight.region == "somewhere" else _IN_PLACE
            out.post("importance", tell(self.ctx, frame, self._measure.moved, sure, "reporter", out.epoch))
        for event in events:
            out.post("event", _event_frame(event, frame, out.epoch))
            if self.params.speak == "failures" and event.what in ("black_started", "frozen_started"):
                said.append(f"{event_sentence(event).capitalize()}.")
        for text in said:
            out.post(
                "event", EventFrame(pts=frame.pts, epoch=out.epoch, name="spoke_up", fields={"text": text})
            )
            self._say(text, frame.pts, out)

    def _answer(self, frame: TokenFrame, out: Outputs) -> None:
        now = self.ctx.clock.now() if self.ctx.realtime else frame.pts
        answer = self._reporter.ask(frame.text, now)
        fields = {"kind": answer.kind, "known": answer.known}
        out.post("event", EventFrame(pts=frame.pts, epoch=out.epoch, name="answered", fields=fields))
        self._say(answer.text, frame.pts, out)

    def _say(self, text: str, pts: int, out: Outputs) -> None:
        self._utterance += 1
        out.post("answer", TokenFrame(pts=pts, epoch=out.epoch, text=text, utterance=self._utterance))


def _event_frame(event: Event, frame: VideoFrame, epoch: int) -> EventFrame:
    fields = {**event.fields, "sentence": event_sentence(event)}
    if event.thing:
        fields["region"] = event.thing
    return EventFrame(pts=event.at, deadline=frame.deadline, epoch=epoch, name=event.what, fields=fields)
