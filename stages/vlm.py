"""`vlm.stream`: watches a camera, answers questions about it at any moment, and speaks up when it was asked to.

    model: scene      nothing is downloaded: pictures are measured, and what cannot be known is said so
    model: ID         a vision-language model, by hub id or folder: Qwen2.5-VL, Qwen3-VL, SmolVLM2, LLaVA-OneVision,
                      Gemma 3; it watches with a rolling cache, in constant memory
    base_url: URL     any OpenAI-compatible endpoint with vision: the newest pictures are sent with each question

With a model the measuring goes on beside it: what was measured (when something last moved, how often, whether the
feed is black or frozen) is answered from there, because a log does not err with age and a model does.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..models.event_log import EventLog
from ..models.scene_reporter import Answer, SceneReporter
from ..models.scene_words import ago, event_sentence, spell
from ..models.sights import Sight
from ..models.vlm_memory import Memory
from ..pipeline.clock import SECOND
from ..pipeline.frame import EventFrame, Frame, Gap, TokenFrame, VideoFrame
from ..pipeline.stage import Control, Flush, In, Out, Outputs, Ports, Stage, StageError
from ..pipeline.units import Bytes, Duration
from .importance import tell
from .vlm_answers import NO_WISHES, Answerer, Voice, tell_answered, tell_spoke_up
from .vlm_remote import Remote, RemoteOptions
from .vlm_scene import Measure, event_frame

_IN_PLACE, _SOMEWHERE = 0.6, 0.3  # confidence that motion is what matters: no question was asked
_MEASURED = (
    "when",
    "how_often",
    "still_for",
    "frozen_for",
    "watching",
    "timeline",
    "did_move",
    "size",
    "standing",
)


class MemoryOptions(BaseModel):
    """What is kept of the past. tokens: what attention sees, all in all; bytes: of the cache of a session, 0 for as many
    as tokens take; text: of it, for questions and answers;
    notes: last events put before a question; blocks: pictures kept on disk when they leave the window; recall: how
    many of those join an answer, chosen by scorer (recent and random are there to be compared with)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tokens: int = Field(default=4096, ge=64, le=131_072)
    bytes: Bytes = Field(default=0, ge=0)
    text: int = Field(default=512, ge=0, le=16_384)
    notes: int = Field(default=6, ge=0, le=64)
    blocks: int = Field(default=0, ge=0, le=100_000)
    recall: int = Field(default=8, ge=0, le=256)
    scorer: Literal["mean_key", "recent", "random"] = "mean_key"

    @model_validator(mode="after")
    def _fits(self) -> MemoryOptions:
        if self.text > self.tokens // 2:
            raise ValueError(f"text {self.text} is over half of tokens {self.tokens}: pictures need room")
        return self

    @property
    def memory(self) -> Memory:
        return Memory(self.tokens, self.text, self.blocks, self.recall, self.scorer, self.bytes)


class VlmOptions(RemoteOptions):
    """model: who looks: scene, a hub id or a folder. log: events that are kept whole; counts and last times are kept
    of all. fps: pictures a second that the model takes in. picture_tokens: of one picture, where the model lets us
    choose. late: what becomes of a picture that waits when the next one comes. check: between two looks for each
    standing question. tell: standing questions from the start, as "something moves on the left": each time it happens."""

    model: str = Field(default="scene", min_length=1)
    log: int = Field(default=2048, ge=16, le=1_000_000)
    fps: float = Field(default=2.0, gt=0, le=30)
    picture_tokens: int = Field(default=128, ge=4, le=4096)
    answer_tokens: int = Field(default=160, ge=1, le=4096)
    chunk: int = Field(default=256, ge=8, le=8192)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    system: str = Field(default="", max_length=4000)
    memory: MemoryOptions = MemoryOptions()
    late: Literal["drop", "merge"] = "drop"
    check: Duration = Field(default=2 * SECOND, ge=SECOND // 10)
    tell: tuple[Annotated[str, Field(min_length=1, max_length=200)], ...] = Field(default=(), max_length=8)


class VlmParams(BaseModel):
    """Live parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    speak: Literal["asked", "failures"] = Field(
        default="asked", title="Speaks up", description="When it was asked to, or also when the picture fails"
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
    degrade = ("res*0.7", "fps*0.5", "res*0.7")  # of a picture's tokens half stay, those with most attention

    async def setup(self) -> None:
        options: VlmOptions = self.options
        self._measure = Measure()
        self._reporter = SceneReporter(EventLog(options.log))
        self._voice = Voice()
        self._sight: Sight | None = None
        self._who: Answerer | None = None
        if options.base_url:
            remote = self._who = Remote(self.ctx, options, self._voice, self._notes)
            await remote.start()
        elif options.model != "scene":
            from .vlm_local import load_watch  # torch: 180 MB that measuring does without

            self._who = await load_watch(self.ctx, options, options.memory.memory, self._voice, self._notes)
        for words in options.tell:
            self._watch_for(words)

    def _watch_for(self, words: str) -> None:
        """A standing question of the graph file: measured where it can be. Raises: StageError saying why not."""
        line = f"tell me whenever {words}"
        answer: Answer | None = self._reporter.ask(line, 0)
        if not answer.known and self._who is not None:
            answer = self._who.hear(line)
        if answer is None or not answer.known:
            why = answer.text if answer else "say what happens, as in 'something moves on the left'"
            raise StageError(f"node {self.ctx.node!r}: tell: {words!r}: {why}")

    async def close(self) -> None:
        who: Answerer | None = getattr(self, "_who", None)  # setup may have failed
        if who is not None:
            await who.close()

    @property
    def busy(self) -> bool:
        who: Answerer | None = getattr(self, "_who", None)
        return who is not None and who.busy

    async def control(self, message: Control) -> None:
        await super().control(message)
        if isinstance(message, Flush) and self._who is not None:
            self._who.flush(message.epoch)

    def process(self, port: str, frame: Frame, out: Outputs) -> Awaitable[None] | None:
        if isinstance(frame, VideoFrame):
            self._see(frame, out)
            if self._who is not None and not (self._sight and self._sight.blind):
                return self._who.see(frame, out)
        elif isinstance(frame, TokenFrame):
            return self._answer(frame, out)
        return None

    def gap(self, port: str, gap: Gap, out: Outputs) -> None:
        """Lost pictures say nothing of the scene: the next one is compared with the last that came."""

    def _see(self, frame: VideoFrame, out: Outputs) -> None:
        sight = self._sight = self._measure(frame)
        events, said = self._reporter.see(sight)
        if self._measure.moved is not None and sight.region not in ("", "everywhere"):
            sure = _SOMEWHERE if sight.region == "somewhere" else _IN_PLACE
            out.post("importance", tell(self.ctx, frame, self._measure.moved, sure, "reporter", out.epoch))
        for event in events:
            out.post("event", event_frame(event, frame, out.epoch))
            if self.params.speak == "failures" and event.what in ("black_started", "frozen_started"):
                said.append(f"{event_sentence(event).capitalize()}.")
        for text in said:
            tell_spoke_up(text, frame.pts, out)
            self._voice.say(text, frame.pts, out)

    def _answer(self, frame: TokenFrame, out: Outputs) -> Awaitable[None] | None:
        now = self.ctx.clock.now() if self.ctx.realtime else frame.pts
        answer = self._reporter.ask(frame.text, now)
        if self._who is not None and not (answer.known and answer.kind in _MEASURED):
            return self._ask(self._who, answer, frame, out)
        self._tell(answer, frame, out)
        return None

    async def _ask(self, who: Answerer, answer: Answer, frame: TokenFrame, out: Outputs) -> None:
        text = frame.text.strip()
        if heard := who.hear(text):
            if heard == NO_WISHES:
                self._tell(answer, frame, out)  # what it stopped was the reporter's
                return
            said = heard.text
            tell_answered(frame, out, "model", kind=heard.kind, known=heard.known)
        elif said := self._blind():
            tell_answered(frame, out, "measured", known=False)
        else:
            said = await who.ask(frame, text, out)
        if said:
            self._voice.say(said, frame.pts, out)

    def _tell(self, answer: Answer, frame: TokenFrame, out: Outputs) -> None:
        known, confidence = answer.known, answer.confidence
        tell_answered(frame, out, "measured", kind=answer.kind, known=known, confidence=confidence)
        self._voice.say(answer.text, frame.pts, out)

    def _blind(self) -> str:
        """Why a model has nothing to look at; "" when it has."""
        sight = self._sight
        if sight is None:
            return "I have not seen a picture yet."
        if sight.black or sight.white:
            return f"I cannot know: I see only {'black' if sight.black else 'white'}."
        if sight.frozen:
            return f"I cannot know: the picture has not changed at all for {spell(sight.same_s)}. It may be frozen."
        return ""

    def _notes(self) -> str:
        """The last events, for a model that did not see them or no longer remembers."""
        wanted = self.options.memory.notes
        now = self.ctx.clock.now() if self.ctx.realtime else (self._sight.at if self._sight else 0)
        events = self._reporter.log.between(0, now)[-wanted:] if wanted else []
        told = "; ".join(f"{ago(now - e.at)} {event_sentence(e)}" for e in events)
        return f"(Measured: {told}.) " if told else ""
