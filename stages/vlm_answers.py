"""Questions to a watching stage: one after the other, each answered in a task of its own, which a barge-in ends.

Whoever answers (a model here, an endpoint, the scene reporter) tells it in the same words: an utterance on `answer`,
and when it is whole an event `answered`:

    kind        of the question: the reporter's own names, or text, motion, whole, other
    known       False where it was said that this cannot be known
    by          "measured", "model" or "endpoint"
    confidence  0-1: how sure it is of what it read off the pictures. A model: the geometric mean of its words'
                probabilities; the reporter: how far what it measured is from saying otherwise. Left out where the
                pictures of now were not asked: help, what is looked up in a log, "I cannot know".
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Literal, Protocol

from ..models.scene_reporter import Answer
from ..pipeline.frame import EventFrame, TokenFrame, VideoFrame
from ..pipeline.stage import Context, Outputs
from .question_rules import need

NO_WISHES = Answer("I was not watching for anything.", "stop", False)
_WAITING = 8  # questions; more are refused


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that waits or is being answered."""

    frame: TokenFrame
    text: str
    epoch: int


class Answerer(Protocol):
    """Who answers what measuring cannot: a model that runs here, or an endpoint."""

    @property
    def busy(self) -> bool: ...

    async def see(self, frame: VideoFrame, out: Outputs) -> None:
        """A picture in which there is something to see."""
        ...

    def hear(self, text: str) -> Answer | None:
        """A standing question, or the end of all. → what to say to it; None when it is another kind of question."""
        ...

    async def ask(self, frame: TokenFrame, text: str, out: Outputs) -> str:
        """→ what to say to it at once; "" while it is answered."""
        ...

    def flush(self, epoch: int) -> None:
        """A barge-in: answers of older epochs are given up."""
        ...

    async def close(self) -> None: ...


class Voice:
    """Numbers a stage's utterances: one may begin while another is still being said."""

    def __init__(self) -> None:
        self._count = 0

    def begin(self) -> int:
        self._count += 1
        return self._count

    def say(self, text: str, pts: int, out: Outputs) -> None:
        """An utterance of its own."""
        frame = TokenFrame(pts=pts, epoch=out.epoch, text=text, utterance=self.begin())
        out.post("answer", frame)


class Questions:
    """They wait for each other. Live, `reply` runs beside the pictures; in file runs before `ask` returns."""

    def __init__(self, ctx: Context, reply: Callable[[Asked, Outputs], Coroutine[None, None, None]]) -> None:
        self.ctx, self._reply = ctx, reply
        self.refused = 0
        self.epoch = 0  # of the answer that is being given
        self._waiting: deque[tuple[Asked, Outputs]] = deque()
        self._news = asyncio.Event()
        self._answer: asyncio.Task[None] | None = None
        self._loop: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self.ctx.realtime:
            self._loop = asyncio.create_task(self._talk(), name=f"{self.ctx.session}/{self.ctx.node}/talk")

    async def close(self) -> None:
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.wait([self._loop])

    @property
    def busy(self) -> bool:
        return self._answer is not None or bool(self._waiting)

    def failed(self) -> None:
        """Raises what ended the loop, for the supervisor."""
        if self._loop is not None and self._loop.done() and not self._loop.cancelled():
            self._loop.result()

    async def ask(self, frame: TokenFrame, text: str, out: Outputs) -> str:
        """→ what to say to it at once: "" while it waits or is answered."""
        self.failed()
        if len(self._waiting) >= _WAITING:
            self.refused += 1
            return "One question after the other, please: too many are waiting."
        asked = Asked(frame, text, out.epoch)
        if not self.ctx.realtime:
            self.epoch = asked.epoch
            await self._reply(asked, out)
            return ""
        self._waiting.append((asked, out))
        self._news.set()
        return ""

    def flush(self, epoch: int) -> None:
        """A barge-in: the answer is given up, questions of older epochs are forgotten."""
        self._waiting = deque(w for w in self._waiting if w[0].epoch >= epoch)
        if self._answer is not None and self.epoch < epoch:
            self._answer.cancel()

    async def _talk(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                asked, out = self._waiting.popleft()
                self.epoch = asked.epoch
                name = f"{self.ctx.session}/{self.ctx.node}/answer"
                self._answer = asyncio.create_task(self._reply(asked, out), name=name)
                try:
                    await asyncio.wait([self._answer])
                    if not self._answer.cancelled():
                        self._answer.result()
                finally:
                    self._answer.cancel()
                    self._answer = None


def tell_answered(
    asked: TokenFrame,
    out: Outputs,
    by: Literal["measured", "model", "endpoint"],
    *,
    kind: str = "",
    known: bool = True,
    confidence: float | None = None,
    epoch: int | None = None,
) -> None:
    """Post `answered`. kind: by the question's words where it is not given."""
    kind = kind or {"unknown": "other"}.get(its := need(asked.text), its)
    fields: dict[str, object] = {"kind": kind, "known": known, "by": by}
    if confidence is not None:
        fields["confidence"] = round(min(1.0, max(0.0, confidence)), 3)
    at = out.epoch if epoch is None else epoch
    out.post("event", EventFrame(pts=asked.pts, epoch=at, name="answered", fields=fields))


def tell_spoke_up(
    text: str, pts: int, out: Outputs, *, wish: str = "", confidence: float | None = None
) -> None:
    """Post `spoke_up`: what is said unasked, because of which wish, how sure."""
    fields: dict[str, object] = {"text": text}
    if wish:
        fields["wish"] = wish
    if confidence is not None:
        fields["confidence"] = round(confidence, 3)
    out.post("event", EventFrame(pts=pts, epoch=out.epoch, name="spoke_up", fields=fields))
