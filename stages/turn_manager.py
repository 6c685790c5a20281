"""`turn.manager`: takes turns between a person and a spoken agent."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable

from pydantic import BaseModel, ConfigDict, Field

from ..pipeline.clock import MS, NEVER, SECOND
from ..pipeline.frame import EventFrame, Frame, TokenFrame
from ..pipeline.stage import In, Out, Outputs, Ports, Stage

# what listeners say to show that they listen (V. Yngve 1970, "back channel"); never "no", "wait" or "stop"
BACK_CHANNEL = frozenset(
    {
        "mm",
        "mmm",
        "mhm",
        "hm",
        "hmm",
        "uh",
        "huh",
        "um",
        "ah",
        "aha",
        "oh",
        "ooh",
        "wow",
        "yeah",
        "yep",
        "yup",
        "yes",
        "ok",
        "okay",
        "right",
        "sure",
        "great",
        "good",
        "nice",
        "cool",
        "true",
        "exactly",
        "indeed",
        "really",
    }
)
_PHRASES = re.compile(r"\b(i see|got it|go on|of course|all right|mm hm+|mm hmm+|uh huh|m+ h+m+)\b")

_ANSWER = 10 * SECOND  # a question without any sound after so long is no longer about to be answered


class TurnManager(Stage):
    """Silences the agent as soon as somebody speaks, then decides what that was.

    - Words: a barge-in, event `barge_in` (let `cancel:` start a new epoch of the reply's scope on it).
    - "Mm-hm", "okay", or no word at all (a cough, a door, an echo): the reply goes on with the word that was
      cut, events `backchannel` and `resumed`.
    - Speech of `barge_in_ms` is a barge-in whatever was understood of it.

    `words` gives whole turns: with a detector on port `turn` when it tells `end_of_turn`, else each commit.
    Without a sink that plays in real time (a file run) nothing is held and no commit is left out.
    """

    ports = Ports(
        inputs={
            "speech": In(EventFrame, many=True),
            "heard": In(TokenFrame, many=True),
            "partial": In(TokenFrame, required=False, many=True),
            "turn": In(EventFrame, required=False),
        },
        outputs={"words": Out(TokenFrame, origin="token")},
    )

    class Params(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        back_channel: bool = Field(default=True, description='"mm-hm" and "okay" do not interrupt')
        decide_ms: int = Field(
            default=300, ge=0, le=3000, description="Silence without a word, then the reply goes on"
        )
        barge_in_ms: int = Field(
            default=1500, ge=100, le=10_000, description="Speech this long interrupts, understood or not"
        )
        patience_ms: int = Field(default=2500, ge=200, le=20_000, description="Silence that ends any turn")

    async def setup(self) -> None:
        self._detector = "turn" in self.ctx.connected
        self._speaking = False  # the person
        self._held_at = 0  # when the agent was silenced, ns; 0 when it is not
        self._parts: list[TokenFrame] = []  # commits of the turn that is being spoken
        self._ended = False  # the detector has ended it, its last commit has not come
        self._asked = -NEVER  # when a turn was last given out
        self._utterance = 0
        self._decision = _Timer(self.ctx.clock.sleep)  # of what the speech was
        self._silence = _Timer(self.ctx.clock.sleep)  # after the turn's last commit

    def process(self, port: str, frame: Frame, out: Outputs) -> None:
        if isinstance(frame, EventFrame):
            if frame.name == "speech_start":
                self._begins()
            elif frame.name in ("speech_end", "end_of_turn"):
                self._ends(frame, out)
            return
        assert isinstance(frame, TokenFrame)
        if port == "partial":
            if self._held_at and _content(frame.text, self.params.back_channel):
                self._barge_in("words")
        elif frame.text.strip():
            self._commit(frame, out)

    def finish(self, out: Outputs) -> None:
        self._give(out)

    async def close(self) -> None:
        for timer in (getattr(self, "_decision", None), getattr(self, "_silence", None)):
            if timer is not None:
                timer.stop()

    # ------------------------------------------------------------ the person

    def _begins(self) -> None:
        if self._speaking:
            return
        self._speaking, self._ended = True, False
        self._silence.stop()
        if self._answering and self.ctx.realtime:
            longest = self.params.barge_in_ms * MS
            if not self._held_at:
                self._held_at = self.ctx.clock.now()
                self.ctx.emit("held")
            # a little longer than the decision takes: a manager that fails leaves nobody silent
            self.ctx.playback.hold(self.ctx.clock.now() + 2 * longest + SECOND)
            self._decision.start(longest, lambda: self._barge_in("long speech"))

    def _ends(self, event: EventFrame, out: Outputs) -> None:
        self._speaking = False
        if self._held_at:
            sure = event.fields.get("words") == 0  # a detector that has read the recogniser's words
            self._decision.start(0 if sure else self.params.decide_ms * MS, self._resume)
        if event.name == "end_of_turn":
            self._ended = True
            self._give(out)
        elif self._parts:
            self._wait(out)

    def _commit(self, frame: TokenFrame, out: Outputs) -> None:
        answering = self._answering
        if (
            answering
            and self.ctx.realtime
            and not self._parts
            and not _content(frame.text, self.params.back_channel)
        ):
            self.ctx.emit("backchannel")
            if self._held_at and not self._speaking:
                self._resume()
            return
        if answering and self.ctx.realtime:
            self._barge_in("words")
        self._parts.append(frame)
        if not self._detector or self._ended:
            self._give(out)
        else:
            self._wait(out)

    def _wait(self, out: Outputs) -> None:
        """A detector may never tell: no turn gets lost."""
        if self.ctx.realtime:
            self._silence.start(
                self.params.patience_ms * MS, lambda: None if self._speaking else self._give(out)
            )

    def _give(self, out: Outputs) -> None:
        parts, self._parts, self._ended = self._parts, [], self._ended and not self._parts
        self._silence.stop()
        if not parts:
            return
        self._utterance += 1
        self._asked = self.ctx.clock.now()
        text = " ".join(p.text.strip() for p in parts)
        until = max(p.until for p in parts)
        out.post("words", TokenFrame(pts=parts[0].pts, until=until, text=text, utterance=self._utterance))

    # ------------------------------------------------------------ the agent

    @property
    def _answering(self) -> bool:
        """Is a reply sounding, held, or to be expected?"""
        playback = self.ctx.playback
        if self._held_at or playback.busy:
            return True
        return self._asked > playback.ended and self.ctx.clock.now() - self._asked < _ANSWER

    def _barge_in(self, cause: str) -> None:
        self._decision.stop()
        self._held_at, self._asked = 0, -NEVER
        self.ctx.emit("barge_in", cause=cause)  # the flush that follows ends the hold

    def _resume(self) -> None:
        self._decision.stop()
        held, self._held_at = self._held_at, 0
        self.ctx.playback.release()
        self.ctx.emit("resumed", held_ms=(self.ctx.clock.now() - held) // MS)


class _Timer:
    """One call later, unless stopped or started again before."""

    def __init__(self, sleep: Callable[[int], Awaitable[None]]) -> None:
        self._sleep = sleep
        self._task: asyncio.Task[None] | None = None

    def start(self, delay: int, then: Callable[[], object]) -> None:
        self.stop()
        self._task = asyncio.create_task(self._run(delay, then), name="turn/timer")

    def stop(self) -> None:
        task, self._task = self._task, None
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    async def _run(self, delay: int, then: Callable[[], object]) -> None:
        await self._sleep(delay)
        then()


def _content(text: str, back_channel: bool) -> bool:
    """Does it say something, beyond that somebody listens?"""
    plain = " ".join(re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower()))
    if not plain:
        return False
    return not back_channel or any(w not in BACK_CHANNEL for w in _PHRASES.sub(" ", plain).split())
