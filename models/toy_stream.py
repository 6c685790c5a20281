"""The toy VLM on an endless stream: looks, narrates what comes and leaves, answers at any moment.

    picture ─► 5 tokens + <look> ─► window (6 pictures) ─► evicted
                      └─ speaks? ─► "red circle left" ─► text tier and event log

What was narrated is remembered twice: as text in the cache, and in the event log, which does not wear out with age.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .decider import p_silence
from .event_log import Event, EventLog
from .ring_kv import RingLayer
from .rolling_kv import Branch, Budget, Evicted, RollingKv
from .toy_questions import INDEX, WORDS, encode
from .toy_vlm import TOKENS, ToyVlm
from .toy_world import COLOURS, SHAPES, Image

WINDOW = 6  # pictures
SINKS = 4
_LONGEST = 6  # words of an answer
_SYS, _LOOK, _SILENCE = INDEX["<sys>"], INDEX["<look>"], INDEX["<silence>"]
_ASK, _ANSWER, _END = INDEX["<ask>"], INDEX["<answer>"], INDEX["<end>"]


@dataclass(frozen=True, slots=True)
class Told:
    """An answer and where it is from: the model, or the log of what it narrated."""

    text: str
    source: Literal["model", "log"]


class ToyStream:
    """One session. `text`: tokens of the text tier, 0 for none; `log`: past events are looked up, not recalled."""

    @torch.inference_mode()
    def __init__(
        self,
        model: ToyVlm,
        *,
        text: int = 96,
        log: bool = True,
        theta: float = 0.5,
        on_evict: Evicted | None = None,
    ) -> None:
        self.model, self.theta = model, theta
        self.log: EventLog | None = EventLog(512) if log else None
        # a picture is six tokens, and may have four of narration; an open narration needs room too
        budget = Budget(SINKS + text + (WINDOW + 1) * (TOKENS + 5), text)
        layers = [RingLayer(budget.capacity) for _ in model.decoder.blocks]
        self.cache = RollingKv(model.decoder.rope, layers, budget, on_evict)
        self._before: Tensor | None = None
        self._words([_SYS] * SINKS, "pinned")
        self.cache.pin()

    @torch.inference_mode()
    def see(self, image: Image, at: int, frame: int | None = None) -> Event | None:
        """Take in a picture (48, 48, 3); what it has to say about it. `frame`: its tag in the cache."""
        now = torch.from_numpy(image).permute(2, 0, 1)[None]
        tokens = self.model.look(now, now if self._before is None else self._before)
        self._before = now
        cache, decoder = self.cache, self.model.decoder
        while sum(s.kind == "frame" for s in cache.window) >= WINDOW:
            cache.evict_oldest()
        look = decoder.words(torch.tensor([[_LOOK]]))
        positions = cache.reserve("frame", TOKENS + 1, tag=frame)
        logits = decoder(torch.cat((tokens, look), 1), positions[0], cache=cache)[0, -1]
        if float(p_silence(logits, _SILENCE)) >= self.theta:
            return None
        logits[_SILENCE] = -torch.inf
        words = self._continue(self.cache.fork(room=8), logits, 4)
        if (
            len(words) != 3
            or words[0] not in COLOURS
            or words[1] not in SHAPES
            or words[2] not in ("came", "left")
        ):
            return None  # it stammers: nothing is said and nothing remembered
        self._words([*(INDEX[w] for w in words), _END], "text")
        event = Event(at, words[2], f"{words[0]} {words[1]}")
        if self.log is not None:
            self.log.add(event)
        return event

    @torch.inference_mode()
    def ask(self, text: str, blocks: list[tuple[Tensor, int]] | None = None) -> Told:
        """Answer now, on a branch. Raises: ValueError for words that the toy does not know."""
        ids = encode(text)
        if self.log is not None and (remembered := self._recall(ids)) is not None:
            return Told(remembered, "log")
        decoder = self.model.decoder
        branch = self.cache.fork(blocks or (), room=len(ids) + 2 + _LONGEST)
        x = decoder.words(torch.tensor([[_ASK, *ids, _ANSWER]]))
        logits = decoder(x, branch.reserve(len(ids) + 2)[0], cache=branch)[0, -1]
        return Told(" ".join(self._continue(branch, logits, _LONGEST)), "model")

    def _recall(self, ids: list[int]) -> str | None:
        """ "what left last", "what came last" from the log; None for any other question."""
        for what in ("left", "came"):
            if ids == encode(f"what {what} last"):
                assert self.log is not None
                event = self.log.last(what)
                return event.thing if event else "nothing"
        return None

    def _continue(self, branch: Branch, logits: Tensor, most: int) -> list[str]:
        """Greedy words until <end>."""
        words: list[str] = []
        while len(words) < most:
            word = int(logits.argmax())
            if word == _END:
                break
            words.append(WORDS[word])
            x = self.model.decoder.words(torch.tensor([[word]]))
            logits = self.model.decoder(x, branch.reserve(1)[0], cache=branch)[0, -1]
        return words

    @torch.inference_mode()
    def _words(self, ids: list[int], kind: Literal["pinned", "text"]) -> None:
        positions = self.cache.reserve(kind, len(ids))
        self.model.decoder(self.model.decoder.words(torch.tensor([ids])), positions[0], cache=self.cache)
