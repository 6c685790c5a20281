"""A streaming VLM inside a stage: takes in pictures, answers meanwhile, and speaks up when it should.

    pictures ─► mailbox (newest; drop or merge) ─► Take rows ─┬─► P(silence) ─► narration ─► text tier
    questions ─► queue ─► Say rows, a word each ─► answer      └─► standing questions, asked again and again

Used by `vlm.stream` with a model and by `vlm.toy`.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..models.decider import Decider, Threshold
from ..models.vlm_session import Memory, Result, Say, Take, Talk, VlmSession, importance
from ..pipeline.clock import MS, SECOND
from ..pipeline.frame import Frame, TokenFrame
from ..pipeline.rows import Demand, Row
from ..pipeline.stage import Context, DeadlineMissed, Flushed, Outputs
from .importance import tell
from .vlm_rows import VlmRows

PICTURES, WORDS, WISHES = range(3)  # lanes: rows of one run in order
_FOREVER = 1 << 62  # an epoch that no flush reaches
_QUESTIONS = 8  # that wait; more are refused
_MOST_WISHES = 4  # each costs a question for every check
_LOOK_EVERY = 16  # words of an answer between two looks at where it looks
_STEP = 32  # ids of a question in one pass
_PATIENCE = SECOND  # a word that could not run in this time is asked for again
_TELL_ME = re.compile(
    r"^\W*(?:please )?(?:tell|warn|alert|notify|inform) me (?:when(?:ever)?|if|once|as soon as) (.+?)[.!?]*$",
    re.I,
)
_STOP = re.compile(r"\b(stop|cancel|forget)\b.*\b(tell|telling|watch|watching)\b", re.I)


@dataclass(slots=True)
class Wish:
    """A standing question. It speaks when the model turns to yes."""

    words: str
    ids: Tensor
    decider: Threshold = field(default_factory=lambda: Threshold(0.5, 0.2, 10 * SECOND))


@dataclass(slots=True)
class Asked:
    """A question that waits or is being answered."""

    frame: TokenFrame
    text: str
    epoch: int


@dataclass(slots=True)
class WatchCounts:
    """Since the start."""

    seen: int = 0
    skipped: int = 0  # more a second than `fps` asks for
    replaced: int = 0  # by a newer one, before their turn came
    merged: int = 0
    missed: int = 0  # their turn did not come in time
    answered: int = 0
    interrupted: int = 0
    refused: int = 0


class Watch:
    """One session. `to_tensor` makes uint8 (3, H, W) of a frame, off the loop. `said(text, at)`: a narration."""

    def __init__(
        self,
        ctx: Context,
        rows: VlmRows,
        name: str,
        memory: Memory,
        *,
        fps: float,
        answer_tokens: int,
        late: Literal["drop", "merge"],
        check: int,
        to_tensor: Callable[[Frame], Tensor],
        decider: Decider | None = None,
        narrate: Callable[[str, Frame], str | None] | None = None,
        notes: Callable[[], str] | None = None,
        wish: str = "Look at the newest picture. Is this true now: {}? Answer yes or no.",
    ) -> None:
        self.ctx, self.rows, self.name, self.model = ctx, rows, name, rows.model
        self.fps, self.answer_tokens, self.late, self.check = fps, answer_tokens, late, check
        self.session = VlmSession(rows.model, memory)
        self.counts = WatchCounts()
        self.wishes: list[Wish] = []
        self._to_tensor, self._decider, self._narrate, self._notes, self._wish = (
            to_tensor,
            decider,
            narrate,
            notes,
            wish,
        )
        self._memory = memory
        self._questions: deque[Asked] = deque()
        self._mail: tuple[Frame, Outputs] | None = None
        self._older: Frame | None = None  # waits with the mail, to be merged into it
        self._news, self._asked = asyncio.Event(), asyncio.Event()
        self._answer: asyncio.Task[None] | None = None
        self._epoch = 0  # of the answer that is being given
        self._last = self._checked = -(1 << 62)  # ns of the last picture taken, of the last check
        self._utterance = 0
        self._passes = 1  # of a picture: one for each chunk of it
        self._tasks: list[asyncio.Task[None]] = []
        self._out: Outputs | None = None

    async def start(self) -> None:
        """Measure what rows cost, ask the pool for a share, begin. Raises: StageError."""
        pool, model, tiny = self.ctx.pool(), self.model, Memory(self._memory.tokens, self._memory.text)
        height, width = model.size
        image = torch.randint(0, 255, (3, height, width), dtype=torch.uint8)
        await pool.warm(self.name, lambda: Row(Take(VlmSession(model, tiny), image=image)))
        await pool.warm(
            self.name, lambda: Row(Say(Talk(VlmSession(model, tiny)), torch.tensor(sorted(model.stop)[:1])))
        )
        picture = (await pool.call(model.look, image[None], image[None]))[0]
        self._passes = 1 if model.whole else -(-picture.tokens.shape[1] // self.rows.runner.chunk)
        pool.admit(Demand(self.name, self.fps, self._passes, round(2 * SECOND / self.fps)))
        if self.ctx.realtime:
            name = f"{self.ctx.session}/{self.ctx.node}"
            self._tasks = [
                asyncio.create_task(self._watch(), name=f"{name}/watch"),
                asyncio.create_task(self._talk(), name=f"{name}/talk"),
            ]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self.session.close()

    @property
    def busy(self) -> bool:
        return self._mail is not None or bool(self._questions) or self._answer is not None

    def failed(self) -> None:
        """Raises what ended a task of it, for the supervisor."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    # ------------------------------------------------------------ in

    async def see(self, frame: Frame, out: Outputs) -> None:
        """A picture. Live it only goes into the mailbox; in file runs it is taken in before this returns."""
        quality = self.ctx.pool().quality
        self.failed()
        self._out = out
        if quality.passthrough or frame.pts - self._last < 0.9 * SECOND / (self.fps * quality.fps):
            self.counts.skipped += 1
            return
        self._last = frame.pts
        if not self.ctx.realtime:
            await self._take(frame, out, None)
            return
        if self._mail is not None:
            if self.late == "merge":
                self._older = self._mail[0]
                self.counts.merged += 1
            else:
                self.counts.replaced += 1
        self._mail = frame, out
        self._news.set()

    async def ask(self, frame: TokenFrame, text: str, out: Outputs) -> str:
        """A question. → what to say to it at once: "" while the model is asked."""
        self._out = out
        if _STOP.search(text):
            n, self.wishes = len(self.wishes), []
            return "I have stopped watching for that." if n else "I was not watching for anything."
        if found := _TELL_ME.match(text):
            return self._add_wish(found[1].strip())
        if len(self._questions) >= _QUESTIONS:
            self.counts.refused += 1
            return "One question after the other, please: too many are waiting."
        asked = Asked(frame, text, out.epoch)
        if not self.ctx.realtime:
            await self._reply(asked, out)
            return ""
        self._questions.append(asked)
        self._asked.set()
        return ""

    def flush(self, epoch: int) -> None:
        """A barge-in: the answer ends within a word, questions of older epochs are forgotten."""
        self._questions = deque(q for q in self._questions if q.epoch >= epoch)
        if self._answer is not None and self._epoch < epoch:
            self._answer.cancel()

    def say(self, text: str, pts: int, out: Outputs, *, end: bool = True, epoch: int | None = None) -> None:
        """One whole utterance, or the next piece of the present one."""
        at = out.epoch if epoch is None else epoch
        out.post("answer", TokenFrame(pts=pts, epoch=at, text=text, utterance=self._utterance, end=end))

    def speak(self, text: str, pts: int, out: Outputs) -> None:
        """An utterance of its own."""
        self._utterance += 1
        self.say(text, pts, out)

    # ------------------------------------------------------------ pictures

    async def _watch(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            mail, self._mail = self._mail, None
            older, self._older = self._older, None
            if mail is not None:
                await self._take(mail[0], mail[1], older)

    async def _take(self, frame: Frame, out: Outputs, older: Frame | None) -> None:
        pool = self.ctx.pool()
        deadline = self.ctx.clock.now() + round(2 * SECOND / self.fps)
        try:
            image = await pool.call(self._to_tensor, frame, deadline=deadline)
            merged = None if older is None else await pool.call(self._to_tensor, older, deadline=deadline)
            scale = pool.quality.scale
            take = Take(self.session, image=image, at=frame.pts, share=scale * scale, merged=merged)
            result: Result = await self._run(take, PICTURES, deadline)
        except DeadlineMissed:
            self.counts.missed += 1
            return
        except Flushed:
            return
        self.counts.seen += 1
        silence, logits = result.silence, result.logits
        if (
            self._decider
            and silence is not None
            and logits is not None
            and self._decider.decide(silence, frame.pts)
        ):
            await self._speak_up(logits, frame, out)
        if self.wishes and frame.pts - self._checked >= self.check:
            self._checked = frame.pts
            await self._check_wishes(frame, out)

    async def _speak_up(self, logits: Tensor, frame: Frame, out: Outputs) -> None:
        """The model has something to say about this picture."""
        assert self.model.silence is not None
        logits = logits.clone()
        logits[self.model.silence] = -torch.inf
        words, talk = [int(logits.argmax())], Talk(self.session)
        try:
            while words[-1] not in self.model.stop and len(words) < self.answer_tokens:
                result = await self._run(Say(talk, torch.tensor(words[-1:])), WISHES)
                assert result.logits is not None
                words.append(int(result.logits.argmax()))
        except Flushed:
            return
        text = self.model.text(words)
        if self._narrate is not None and (said := self._narrate(text, frame)) is not None:
            await self._remember([*words[:-1], *self.model.closing(words).tolist()], frame.pts)
            if said:
                self.speak(said, frame.pts, out)

    async def _remember(self, ids: Sequence[int], at: int) -> None:
        """Into the text tier."""
        with contextlib.suppress(DeadlineMissed, Flushed):
            await self._run(Take(self.session, ids=torch.tensor(ids), at=at), PICTURES)

    # ------------------------------------------------------------ standing questions

    def _add_wish(self, words: str) -> str:
        if self.model.yes_no is None:
            return "This model cannot watch for that."
        self.wishes = [w for w in self.wishes if w.words != words]
        if len(self.wishes) >= _MOST_WISHES:
            return f"I already watch for {_MOST_WISHES} things. Say stop telling me, and ask again."
        try:
            ids = self.model.question(self._wish.format(words))
        except ValueError as e:
            return f"I cannot watch for that: {e}."
        self.wishes.append(Wish(words, ids))
        return f"I will tell you when {words}."

    async def _check_wishes(self, frame: Frame, out: Outputs) -> None:
        assert self.model.yes_no is not None
        yes, no = self.model.yes_no
        for wish in list(self.wishes):
            try:
                result = await self._question(Talk(self.session), wish.ids, WISHES, tap=False)
            except (DeadlineMissed, Flushed):
                return
            assert result.logits is not None
            both = result.logits.softmax(-1)
            p = float(both[yes].sum() / (both[yes].sum() + both[no].sum()).clamp_min(1e-9))
            if wish in self.wishes and wish.decider.decide(1 - p, frame.pts):
                self.ctx.emit("spoke_up", wish=wish.words, p=round(p, 3))
                self.speak(f"You asked me to tell you: {wish.words}.", frame.pts, out)

    # ------------------------------------------------------------ answers

    async def _talk(self) -> None:
        while True:
            await self._asked.wait()
            self._asked.clear()
            while self._questions:
                asked = self._questions.popleft()
                assert self._out is not None
                self._answer = asyncio.create_task(
                    self._reply(asked, self._out), name=f"{self.ctx.session}/{self.ctx.node}/answer"
                )
                try:
                    await asyncio.wait([self._answer])
                    if not self._answer.cancelled():
                        self._answer.result()
                finally:
                    self._answer.cancel()
                    self._answer = None

    async def _reply(self, asked: Asked, out: Outputs) -> None:
        self._utterance, self._epoch = self._utterance + 1, asked.epoch
        start, epoch, pts = self.ctx.clock.now(), asked.epoch, asked.frame.pts
        talk, words, told = Talk(self.session), list[int](), ""
        notes = self._notes() if self._notes else ""
        try:
            ids = self.model.question(f"{notes}{asked.text}"[:4000])
        except ValueError as e:
            self.say(f"I cannot answer that: {e}.", pts, out, epoch=epoch)
            return
        ended = False
        try:
            result = await self._question(talk, ids, WORDS, tap=True)
            self.ctx.emit("vlm_first_token", ms=(self.ctx.clock.now() - start) // MS)
            while result.logits is not None:
                if result.looks is not None and talk.sight is not None:
                    weights, sure = importance(talk.sight, result.looks)
                    out.post(
                        "importance", tell(self.ctx, asked.frame, weights.numpy(), sure, "attention", epoch)
                    )
                word = int(result.logits.argmax())
                if word in self.model.stop or len(words) >= self.answer_tokens:
                    break
                words.append(word)
                text = self.model.text(words)
                if not text.endswith("\ufffd") and len(text) > len(
                    told
                ):  # half a character waits for the rest
                    self.say(text[len(told) :], pts, out, end=False, epoch=epoch)
                    told = text
                tap = len(words) % _LOOK_EVERY == 0
                result = await self._say(Say(talk, torch.tensor([word]), self._room(ids), tap), WORDS)
            self.say("", pts, out, epoch=epoch)
            ended = True
            self.counts.answered += 1
        except Flushed:
            pass
        finally:
            if not ended:
                self.counts.interrupted += 1
                self.say("", pts, out, epoch=self.ctx.epoch)
        if ended and self.model.remembers and self._memory.text > len(ids) + len(words):
            await self._remember([*ids.tolist(), *words, *self.model.closing(words).tolist()], pts)

    def _room(self, ids: Tensor) -> int:
        return len(ids) + self.answer_tokens + 1

    async def _question(self, talk: Talk, ids: Tensor, lane: int, *, tap: bool) -> Result:
        """Take in a question in pieces. Its last piece says the first word, and where it looks."""
        result: Result | None = None
        for at in range(0, len(ids), _STEP):
            piece = ids[at : at + _STEP]
            last = at + _STEP >= len(ids)
            result = await self._say(Say(talk, piece, self._room(ids), tap and last), lane)
        assert result is not None
        return result

    async def _say(self, say: Say, lane: int) -> Result:
        """A word is never given up for time: it is asked for again, and the miss counts for the ladder."""
        while True:
            try:
                return await self._run(say, lane, self.ctx.clock.now() + _PATIENCE)
            except DeadlineMissed:
                await asyncio.sleep(0)

    async def _run(self, job: Take | Say, lane: int, deadline: int | None = None) -> Result:
        at = self.ctx.clock.now() + 4 * _PATIENCE if deadline is None else deadline
        # a barge-in voids the answer, and neither pictures nor what was asked for in advance
        epoch = self._epoch if lane == WORDS else _FOREVER
        further = self._passes - 1 if isinstance(job, Take) and job.image is not None else 0
        row = Row(job, lane=lane, deadline=at, epoch=epoch, further=further)
        result: Result = await self.ctx.pool().run(self.name, row)
        return result
