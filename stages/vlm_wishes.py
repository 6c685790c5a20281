"""Standing questions to a model, "tell me when …": each is asked again and again, and said once when it turns true."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from torch import Tensor

from ..models.decider import Threshold
from ..models.scene_reporter import Answer
from ..models.vlm_model import StreamingVlm
from ..pipeline.clock import SECOND
from ..pipeline.frame import Frame
from ..pipeline.stage import DeadlineMissed, Flushed, Outputs
from .question_rules import takes_back, wish
from .vlm_answers import NO_WISHES, Voice, tell_spoke_up

_MOST = 4  # each costs a question for every check
_QUESTION = "Look at the newest picture. Is this true now: {}? Answer yes or no."


@dataclass(slots=True)
class Wish:
    """It speaks when the model turns to yes."""

    words: str
    ids: Tensor
    decider: Threshold = field(default_factory=lambda: Threshold(0.5, 0.2, 10 * SECOND))


class Wishes:
    """Of one session. `ask(ids)` → the model's next-word logits (V,). every: ns between two looks."""

    def __init__(
        self, model: StreamingVlm, voice: Voice, every: int, ask: Callable[[Tensor], Awaitable[Tensor]]
    ) -> None:
        self.all: list[Wish] = []
        self._model, self._voice, self._every, self._ask = model, voice, every, ask
        self._checked = -(1 << 62)  # ns

    def hear(self, text: str) -> Answer | None:
        """Take a wish, or take all back. → what to say to it; None when it is another kind of question."""
        if takes_back(text):
            n, self.all = len(self.all), []
            return Answer("I have stopped watching for that.", "stop", True) if n else NO_WISHES
        words = wish(text)
        if not words:
            return None
        why_not = self._add(words)
        return Answer(why_not or f"I will tell you when {words}.", "standing", not why_not)

    def _add(self, words: str) -> str:
        """→ in words why it cannot be."""
        if self._model.yes_no is None:
            return "This model cannot watch for that."
        self.all = [w for w in self.all if w.words != words]
        if len(self.all) >= _MOST:
            return f"I watch for {_MOST} things already, the most that a model does. Say stop telling me, and ask again."
        try:
            ids = self._model.question(_QUESTION.format(words))
        except ValueError as e:
            return f"I cannot watch for that: {e}."
        self.all.append(Wish(words, ids))
        return ""

    async def look(self, frame: Frame, out: Outputs) -> None:
        """After this picture: is one of them true now?"""
        if not self.all or frame.pts - self._checked < self._every:
            return
        self._checked = frame.pts
        assert self._model.yes_no is not None
        yes, no = self._model.yes_no
        for its in list(self.all):
            try:
                logits = await self._ask(its.ids)
            except (DeadlineMissed, Flushed):
                return
            both = logits.float().softmax(-1)
            p = float(both[yes].sum() / (both[yes].sum() + both[no].sum()).clamp_min(1e-9))
            if its in self.all and its.decider.decide(1 - p, frame.pts):
                text = f"You asked me to tell you: {its.words}."
                tell_spoke_up(text, frame.pts, out, wish=its.words, confidence=p)
                self._voice.say(text, frame.pts, out)
