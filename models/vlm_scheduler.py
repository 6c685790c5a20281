"""Who computes next: answers and pictures of many sessions, interleaved, in bounded steps.

    step: one word of every answer that is being given (or a chunk of its question)
          then pictures, oldest first, up to `tokens` tokens

Neither can hold the other up for longer than a step; an interrupted answer ends within one word. A session that
falls behind loses pictures instead of queueing them: the oldest waiting one is dropped, or merged into the next.

Source: chunked prefill beside decodes: Sarathi-Serve (2403.02310), section 4.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from .vlm_engines import Engine, Picture


@dataclass(slots=True)
class Reply:
    """An answer in the making. `cancel()` may be called from any thread."""

    session: str
    ids: Tensor  # (T,) the question; what is left of it to take in
    limit: int
    stop: int  # the id that ends an answer
    asked: int  # ns
    words: list[int] = field(default_factory=list[int])
    first: int | None = None  # ns of the first word
    done: bool = False
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass(slots=True)
class Counts:
    """Since the start."""

    pictures: int = 0
    dropped: int = 0
    merged: int = 0
    answers: int = 0
    cancelled: int = 0
    refused: int = 0


@dataclass(slots=True)
class _Stream:
    waiting: deque[Picture] = field(default_factory=deque[Picture])
    questions: deque[Reply] = field(default_factory=deque[Reply])
    reply: Reply | None = None


class Scheduler:
    """Drives one engine; belongs to one worker. Time is passed in, ns."""

    def __init__(
        self,
        engine: Engine,
        *,
        tokens: int = 256,
        chunk: int = 32,
        waiting: int = 2,
        questions: int = 8,
        late: Literal["drop", "merge"] = "drop",
        interleave: bool = True,
    ) -> None:
        self.engine, self.tokens, self.chunk = engine, tokens, chunk
        self.waiting, self.questions, self.late, self.interleave = waiting, questions, late, interleave
        self.counts = Counts()
        self.lags: deque[int] = deque(maxlen=10_000)  # ns from a picture's time to the step that took it in
        self._streams: dict[str, _Stream] = {}

    def open(self, session: str) -> None:
        self.engine.open(session)
        self._streams[session] = _Stream()

    def close(self, session: str) -> None:
        stream = self._streams.pop(session, None)
        if stream is not None:
            for reply in (*stream.questions, *([stream.reply] if stream.reply else [])):
                reply.cancelled = reply.done = True
            self.engine.close(session)

    def show(self, session: str, picture: Picture) -> None:
        """A new picture. Raises: KeyError for an unknown session."""
        waiting = self._streams[session].waiting
        if len(waiting) >= self.waiting:
            oldest = waiting.popleft()
            heir = waiting[0] if waiting else picture
            if self.late == "merge" and heir.tokens.shape == oldest.tokens.shape:
                merged = replace(heir, tokens=(heir.tokens + oldest.tokens) / 2)
                if waiting:
                    waiting[0] = merged
                else:
                    picture = merged
                self.counts.merged += 1
            else:
                self.counts.dropped += 1
        waiting.append(picture)

    def ask(self, session: str, ids: Tensor, *, limit: int, stop: int, now: int) -> Reply:
        """A question; answers of one session come one after another. Too many waiting: it is cancelled at once."""
        reply = Reply(session, ids, limit, stop, now)
        stream = self._streams[session]
        if len(stream.questions) >= self.questions:
            reply.cancelled = reply.done = True
            self.counts.refused += 1
        else:
            stream.questions.append(reply)
        return reply

    def step(self, now: int) -> bool:
        """One bounded piece of work; False when there is nothing to do."""
        worked = self._speak(now)
        if not self.interleave and any(s.reply for s in self._streams.values()):
            return True
        return self._look(now) or worked

    # ------------------------------------------------------------ answers

    def _speak(self, now: int) -> bool:
        active: list[Reply] = []
        for stream in self._streams.values():
            if stream.reply is not None and stream.reply.cancelled:
                self._end(stream)
            while stream.reply is None and stream.questions:
                stream.reply = stream.questions.popleft()
                if stream.reply.cancelled:
                    self._end(stream)
            if stream.reply is not None:
                active.append(stream.reply)
        by_count: dict[int, list[Reply]] = {}
        for reply in active:
            # a full chunk or single words: static engines then know two shapes only
            n = self.chunk if len(reply.ids) >= self.chunk else 1
            by_count.setdefault(n, []).append(reply)
        for n, replies in by_count.items():
            logits = self.engine.say({r.session: r.ids[:n] for r in replies})
            for reply in replies:
                reply.ids = reply.ids[n:]
                if len(reply.ids) == 0:
                    self._word(reply, int(logits[reply.session].argmax()), now)
        return bool(active)

    def _word(self, reply: Reply, word: int, now: int) -> None:
        if reply.first is None:
            reply.first = now
        if word != reply.stop:
            reply.words.append(word)
            reply.ids = torch.tensor([word])
        if word == reply.stop or len(reply.words) >= reply.limit:
            self._end(self._streams[reply.session])

    def _end(self, stream: _Stream) -> None:
        reply, stream.reply = stream.reply, None
        assert reply is not None
        reply.done = True
        self.engine.drop(reply.session)
        if reply.cancelled:
            self.counts.cancelled += 1
        else:
            self.counts.answers += 1

    # ------------------------------------------------------------ pictures

    def _look(self, now: int) -> bool:
        left, worked = self.tokens, False
        while left > 0:
            ready = sorted(
                ((s.waiting[0].at, name) for name, s in self._streams.items() if s.waiting),
                key=lambda x: x[0],
            )
            batch: dict[str, Picture] = {}
            for _, name in ready:
                picture = self._streams[name].waiting[0]
                if batch and picture.tokens.shape[1] > left:
                    break
                batch[name] = self._streams[name].waiting.popleft()
                left -= picture.tokens.shape[1]
                if left <= 0:
                    break
            if not batch:
                return worked
            self.engine.watch(batch)
            worked = True
            self.counts.pictures += len(batch)
            self.lags.extend(now - p.at for p in batch.values())
        return worked
