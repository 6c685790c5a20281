"""`vlm.toy`: a trained toy VLM that watches the synthetic world, tells what comes and leaves, and answers.

It runs in the same rolling cache, rows and pool as real models do, with nothing downloaded. It has seen nothing
but the synthetic world: shown a camera it would invent shapes, so only `synthetic.world` can be wired to it.
"""

from __future__ import annotations

import re
from typing import Literal

import cv2
import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from ..models.decider import Each
from ..models.event_log import Event, EventLog
from ..models.toy_model import WINDOW
from ..models.toy_questions import COLOURS_AND_SHAPES, encode
from ..models.toy_world import COLOURS, SHAPES, SIZE
from ..models.vlm_memory import Memory
from ..pipeline.clock import SECOND
from ..pipeline.frame import EventFrame, Frame, Gap, TokenFrame
from ..pipeline.stage import Control, Flush, In, Out, Outputs, Ports, Stage, StageError
from .vlm_answers import NO_WISHES, Voice, tell_answered, tell_spoke_up
from .vlm_rows import load, toy_rows
from .vlm_watch import Watch
from .world import WorldFrame

_TELL = re.compile(r"^\W*(?:please )?tell me when(?:ever)? (?:an? |the )?(.*?)\W*$")
_HELP = (
    "Ask me: how many shapes, what color is the circle, what shape is red, where is blue, which way green moves, "
    "is there red circle, was there blue, how bright, how much motion, what came last, what left last. "
    "Or say: tell me when red circle comes."
)


_ONLY = (
    "the toy knows only synthetic.world, and would invent shapes on a camera; for cameras there is vlm.stream"
)


class ToyMemory(BaseModel):
    """text: tokens of narrations that outlive the pictures, 0 for none. log: events that are looked up instead of
    remembered, 0 for none. blocks, recall, scorer: pictures that are fetched back, as in vlm.stream."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: int = Field(default=176, ge=64, le=4096)
    text: int = Field(default=96, ge=0, le=1024)
    log: int = Field(default=512, ge=0, le=100_000)
    blocks: int = Field(default=0, ge=0, le=100_000)
    recall: int = Field(default=4, ge=0, le=64)
    scorer: Literal["mean_key", "recent", "random"] = "mean_key"


class ToyOptions(BaseModel):
    """memory: what is kept. theta: speaks when P(silence) is under it. fps: pictures a second, at most."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    memory: ToyMemory = ToyMemory()
    theta: float = Field(default=0.2, gt=0, lt=1)
    fps: float = Field(default=4.0, gt=0, le=100)
    narrate: bool = Field(default=True, description="Say aloud what comes and leaves")


class VlmToy(Stage):
    """Pictures of `synthetic.world` and questions in; answers, and what came and left as events, out."""

    ports = Ports(
        {"video": In(WorldFrame, hint=_ONLY), "ask": In(TokenFrame, required=False, many=True)},
        {
            "answer": Out(TokenFrame, "token"),
            "event": Out(EventFrame, "token"),
            "importance": Out(EventFrame, "state"),
        },
    )
    Options = ToyOptions
    degrade = ("fps*0.5", "fps*0.5")
    rows_stay = True

    async def setup(self) -> None:
        o: ToyOptions = self.options
        pool = self.ctx.pool()
        self._watch: Watch | None = None
        self._voice = Voice()
        self._log = EventLog(o.memory.log) if o.memory.log else None
        self._wishes: list[str] = []  # "red circle came"
        self._out: Outputs | None = None
        try:
            rows = await pool.call(toy_rows)
        except FileNotFoundError as e:
            raise StageError(f"node {self.ctx.node!r}: the toy's weights are missing: {e.filename}") from e
        await load(pool, "vlm toy", rows)
        m = o.memory
        self._watch = Watch(
            self.ctx, rows, "vlm toy", Memory(m.tokens, m.text, m.blocks, m.recall, m.scorer, pictures=WINDOW), fps=o.fps,
            voice=self._voice, answer_tokens=6, late="drop", check=SECOND, to_tensor=_tensor,
            narrate=self._narrated, decider=Each(o.theta),
        )  # fmt: skip
        await self._watch.start()

    async def close(self) -> None:
        if getattr(self, "_watch", None) is not None:
            assert self._watch is not None
            await self._watch.close()

    @property
    def busy(self) -> bool:
        watch = getattr(self, "_watch", None)
        return watch is not None and watch.busy

    async def control(self, message: Control) -> None:
        await super().control(message)
        if isinstance(message, Flush) and self._watch is not None:
            self._watch.flush(message.epoch)

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        assert self._watch is not None
        self._out = out
        if isinstance(frame, WorldFrame):
            await self._watch.see(frame, out)
        elif isinstance(frame, TokenFrame):
            text = await self._ask(frame, out)
            if text:
                self._voice.say(text, frame.pts, out)

    def gap(self, port: str, gap: Gap, out: Outputs) -> None:
        """The next picture is compared with the last that came."""

    async def _ask(self, frame: TokenFrame, out: Outputs) -> str:
        assert self._watch is not None
        line = frame.text.strip().lower()
        if re.search(r"\b(help|what can you)\b", line):
            return _HELP
        if re.search(r"\bstop\b", line):
            n, self._wishes = len(self._wishes), []
            return "I have stopped watching for that." if n else NO_WISHES.text
        if found := _TELL.match(line):
            return self._add_wish(found[1])
        try:
            ids = encode(line)
        except ValueError as e:
            return f"I cannot answer that: {e}."
        for what in ("left", "came"):
            if self._log is not None and ids == encode(f"what {what} last"):
                event = self._log.last(what)
                tell_answered(frame, out, "measured", kind="log")
                return event.thing if event else "nothing"
        return await self._watch.ask(frame, line, out)

    def _add_wish(self, words: str) -> str:
        """ "red circle comes", "something leaves", "anything red appears"."""
        what = "left" if re.search(r"\b(leaves?|left|goes|disappears?)\b", words) else "came"
        if what == "came" and not re.search(r"\b(comes?|came|appears?|arrives?)\b", words):
            return f"I cannot watch for that. {_HELP}"
        thing = [w for w in words.split() if w in COLOURS_AND_SHAPES]
        wish = " ".join([*thing, what])
        if wish not in self._wishes:
            self._wishes = [*self._wishes[-7:], wish]
        return f"I will tell you when {' '.join(thing) or 'something'} {'leaves' if what == 'left' else 'comes'}."

    def _narrated(self, text: str, frame: Frame) -> str | None:
        """What the model says at `<look>`. None when it stammers: nothing is said and nothing remembered."""
        words = text.split()
        if (
            len(words) != 3
            or words[0] not in COLOURS
            or words[1] not in SHAPES
            or words[2] not in ("came", "left")
        ):
            return None
        thing, what = f"{words[0]} {words[1]}", words[2]
        if self._log is not None:
            self._log.add(Event(frame.pts, what, thing))
        assert self._out is not None
        event = EventFrame(pts=frame.pts, epoch=self.ctx.epoch, name=what, fields={"thing": thing})
        self._out.post("event", event)
        for wish in list(self._wishes):
            if set(wish.split()) <= set(words):
                self._wishes.remove(wish)
                text = f"You asked me to tell you: {thing} {what}."
                tell_spoke_up(text, frame.pts, self._out, wish=wish)
                return text
        return f"{thing} {what}" if self.options.narrate else ""


def _tensor(frame: Frame) -> Tensor:
    """uint8 (3, 48, 48): the world's own pixels, however much they were enlarged."""
    assert isinstance(frame, WorldFrame)
    image = cv2.resize(frame.image, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST)
    return torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
