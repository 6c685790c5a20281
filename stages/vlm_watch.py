"""A streaming VLM inside a stage: takes in pictures, answers meanwhile, and speaks up when it should.

    pictures ─► mailbox (newest; drop or merge) ─► Take rows ─┬─► P(silence) ─► narration ─► text tier
    questions ─► queue ─► Say rows, a word each ─► answer      └─► standing questions, asked again and again

Used by `vlm.stream` with a model and by `vlm.toy`.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..models.decider import Decider
from ..models.scene_reporter import Answer
from ..models.vlm_memory import Memory
from ..models.vlm_session import Result, Say, Take, Talk, VlmSession, importance
from ..pipeline.clock import MS, SECOND
from ..pipeline.frame import Frame, TokenFrame, VideoFrame
from ..pipeline.rows import Demand, Row
from ..pipeline.stage import Context, DeadlineMissed, Flushed, Outputs
from .close_up import Box, close_up, placed
from .importance import tell
from .vlm_answers import Asked, Questions, Voice, tell_answered
from .vlm_rows import VlmRows
from .vlm_wishes import Wishes

PICTURES, WORDS, WISHES = range(3)  # lanes: rows of one run in order
_FOREVER = 1 << 62  # an epoch that no flush reaches
_LOOK_EVERY = 16  # words of an answer between two looks at where it looks
_STEP = 32  # ids of a question in one pass
_PATIENCE = SECOND  # a word that could not run in this time is asked for again


@dataclass(slots=True)
class WatchCounts:
    """Pictures, each in one of the first five, and answers, since the start."""

    seen: int = 0
    skipped: int = 0  # more a second than `fps` asks for
    replaced: int = 0  # by a newer one, before their turn came
    merged: int = 0  # into the one after them
    missed: int = 0  # their turn did not come in time
    answered: int = 0
    interrupted: int = 0


class Watch:
    """One session. `to_tensor` makes uint8 (3, H, W) of a frame, off the loop. `narrate(text, frame)`: what becomes of
    what the model says unasked: None when it is to be forgotten, else what is said aloud, "" for nothing."""

    def __init__(
        self,
        ctx: Context,
        rows: VlmRows,
        name: str,
        memory: Memory,
        *,
        voice: Voice,
        fps: float,
        answer_tokens: int,
        late: Literal["drop", "merge"],
        check: int,
        to_tensor: Callable[[Frame], Tensor],
        decider: Decider | None = None,
        narrate: Callable[[str, Frame], str | None] | None = None,
        notes: Callable[[], str] | None = None,
    ) -> None:
        self.ctx, self.rows, self.name, self.model = ctx, rows, name, rows.model
        self.fps, self.answer_tokens, self.late = fps, answer_tokens, late
        self.session = VlmSession(rows.model, memory)
        self.counts = WatchCounts()
        self.questions = Questions(ctx, self._reply)
        self.wishes = Wishes(rows.model, voice, check, self._yes_or_no)
        self._voice, self._to_tensor, self._decider = voice, to_tensor, decider
        self._narrate, self._notes = narrate, notes
        self._memory = memory
        self._mail: tuple[Frame, Outputs] | None = None
        self._newest: Frame | None = None  # that was taken in
        self._older: Frame | None = None  # waits with the mail, to be merged into it
        self._news = asyncio.Event()
        self._last = -(1 << 62)  # ns of the last picture taken
        self._passes = 1  # of a picture: one for each chunk of it
        self._task: asyncio.Task[None] | None = None

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
        self.questions.start()
        if self.ctx.realtime:
            self._task = asyncio.create_task(self._watch(), name=f"{self.ctx.session}/{self.ctx.node}/watch")

    async def close(self) -> None:
        await self.questions.close()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self.session.close()

    @property
    def busy(self) -> bool:
        return self._mail is not None or self.questions.busy

    def failed(self) -> None:
        """Raises what ended a task of it, for the supervisor."""
        self.questions.failed()
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    # ------------------------------------------------------------ in

    async def see(self, frame: Frame, out: Outputs) -> None:
        """A picture. Live it only goes into the mailbox; in file runs it is taken in before this returns."""
        quality = self.ctx.pool().quality
        self.failed()
        if quality.passthrough or frame.pts - self._last < 0.9 * SECOND / (self.fps * quality.fps):
            self.counts.skipped += 1
            return
        self._last = frame.pts
        if not self.ctx.realtime:
            await self._take(frame, out, None)
            return
        if self._mail is not None:
            merge = self.late == "merge"
            self.counts.replaced += not merge or self._older is not None
            self._older = self._mail[0] if merge else None
        self._mail = frame, out
        self._news.set()

    def hear(self, text: str) -> Answer | None:
        return self.wishes.hear(text)

    async def ask(self, frame: TokenFrame, text: str, out: Outputs) -> str:
        """A question. → what to say to it at once: "" while the model is asked."""
        return await self.questions.ask(frame, text, out)

    def flush(self, epoch: int) -> None:
        """A barge-in: the answer ends within a word."""
        self.questions.flush(epoch)

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
            self.counts.missed += 1 + (older is not None)
            return
        except Flushed:
            return
        self.counts.seen += 1
        self._newest = frame
        self.counts.merged += older is not None
        silence = result.silence
        if self._decider and silence is not None and self._decider.decide(silence, frame.pts):
            await self._speak_up(result.logits, frame, out)
        await self.wishes.look(frame, out)

    async def _speak_up(self, logits: Tensor, frame: Frame, out: Outputs) -> None:
        """The model has something to say about this picture."""
        assert self.model.silence is not None
        logits = logits.clone()
        logits[self.model.silence] = -torch.inf
        words, talk = [int(logits.argmax())], Talk(self.session)
        try:
            while words[-1] not in self.model.stop and len(words) < self.answer_tokens:
                result = await self._run(Say(talk, torch.tensor(words[-1:])), WISHES)
                words.append(result.word)
        except Flushed:
            return
        text = self.model.text(words)
        if self._narrate is not None and (said := self._narrate(text, frame)) is not None:
            await self._remember([*words[:-1], *self.model.closing(words).tolist()], frame.pts)
            if said:
                self._voice.say(said, frame.pts, out)

    async def _remember(self, ids: Sequence[int], at: int) -> None:
        """Into the text tier."""
        with contextlib.suppress(DeadlineMissed, Flushed):
            await self._run(Take(self.session, ids=torch.tensor(ids), at=at), PICTURES)

    async def _yes_or_no(self, ids: Tensor) -> Tensor:
        """The next word's logits after a question about now, of which nothing is kept."""
        return (await self._question(Talk(self.session), ids, WISHES, tap=False)).logits

    # ------------------------------------------------------------ answers

    async def _look_closer(self) -> Box | None:
        """Before an answer: what its sender sent sharp, as a picture of its own. → where that is; None when it is all."""
        newest = self._newest
        if not isinstance(newest, VideoFrame) or newest.sharp is None:
            return None
        try:
            part = await self.ctx.pool().call(close_up, newest)
            assert part is not None
            image = await self.ctx.pool().call(self._to_tensor, part)
            await self._run(Take(self.session, image=image, at=newest.pts), PICTURES)
        except DeadlineMissed:
            return None
        return newest.sharp

    async def _reply(self, asked: Asked, out: Outputs) -> None:
        start, epoch, pts = self.ctx.clock.now(), asked.epoch, asked.frame.pts
        utterance = self._voice.begin()
        talk, words, told = Talk(self.session), list[int](), ""
        sure: list[float] = []  # log probability of each word, the last one's that ends it too

        def put(text: str, *, end: bool = False, at: int = epoch) -> None:
            frame = TokenFrame(pts=pts, epoch=at, text=text, utterance=utterance, end=end)
            out.post("answer", frame)

        notes = self._notes() if self._notes else ""
        try:
            ids = self.model.question(f"{notes}{asked.text}"[:4000])
        except ValueError as e:
            put(f"I cannot answer that: {e}.", end=True)
            return
        ended = False
        try:
            box = await self._look_closer()
            result = await self._question(talk, ids, WORDS, tap=True)
            self.ctx.emit("vlm_first_token", ms=(self.ctx.clock.now() - start) // MS)
            while True:
                if result.looks is not None and talk.sight is not None:
                    grid, looked = importance(talk.sight, result.looks)
                    weights = grid.numpy() if box is None else placed(grid.numpy(), box)
                    where = tell(self.ctx, asked.frame, weights, looked, "attention", epoch)
                    out.post("importance", where)
                if len(words) >= self.answer_tokens:
                    break
                sure.append(math.log(max(result.p, 1e-9)))
                if result.word in self.model.stop:
                    break
                words.append(result.word)
                text = self.model.text(words)
                # half a character waits for the rest
                if not text.endswith("\ufffd") and len(text) > len(told):
                    put(text[len(told) :])
                    told = text
                tap = len(words) % _LOOK_EVERY == 0
                result = await self._say(Say(talk, torch.tensor(words[-1:]), self._room(ids), tap), WORDS)
            put("", end=True)
            ended = True
            self.counts.answered += 1
        except Flushed:
            pass
        finally:
            if not ended:
                self.counts.interrupted += 1
                put("", end=True, at=self.ctx.epoch)
        if not ended:
            return
        confidence = math.exp(sum(sure) / len(sure))
        tell_answered(asked.frame, out, "model", confidence=confidence, epoch=epoch)
        if self.model.remembers and self._memory.text > len(ids) + len(words):
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
        epoch = self.questions.epoch if lane == WORDS else _FOREVER
        further = self._passes - 1 if isinstance(job, Take) and job.image is not None else 0
        row = Row(job, lane=lane, deadline=at, epoch=epoch, further=further)
        result: Result = await self.ctx.pool().run(self.name, row)
        return result
