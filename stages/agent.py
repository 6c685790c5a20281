"""`agent.commands`: a few things to say to it, by voice or in the chat."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from difflib import SequenceMatcher, get_close_matches
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field

from ..pipeline.clock import SECOND
from ..pipeline.frame import EventFrame, Frame, TokenFrame
from ..pipeline.stage import In, Out, Outputs, Ports, Stage, StageError
from .commands import COMMANDS, STYLES, Command, bare, exact

# difflib ratio: one wrong or swapped letter in "what time is it" gives 0.93, in "neon" 0.75
_CLOSE = 0.78
_CLOSE_SHORT = 0.7
_SHORT = 5  # characters

_PARTS_OF_DAY = (  # before which hour
    (12, "in the morning"),
    (17, "in the afternoon"),
    (21, "in the evening"),
    (24, "at night"),
)

_UNDERSTANDS = (
    'I know a few things: ask "what time is it" or "what do you see", name a style such as '
    '"pencil sketch", "neon" or "normal", or say "stop".'
)
_SPOKEN_STYLE = {"none": "Back to normal.", "pencil": "Pencil sketch.", "noir": "Film noir."}
_FIXED = {
    "hello": "Hello! Ask me for a style, the time, or what I see.",
    "thanks": "You are welcome.",
    "bye": "Goodbye.",
    "who": "I am the Penstock demo: a few rules, no mind.",
    "help": _UNDERSTANDS,
}


class CommandsAgent(Stage):
    """Answers fixed commands: time, styles, what it sees, stop. No language model, no memory.

    Chat lines may have typing errors, and get told what is understood when nothing is. Heard text must be a
    command word for word, else it is let pass: a voice agent that answers to noise is worse than a silent
    one.
    """

    ports = Ports(
        inputs={"heard": In(TokenFrame, many=True), "seen": In(EventFrame, required=False)},
        outputs={"say": Out(TokenFrame, origin="token")},
    )

    class Options(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        restyle: str = Field(default="", description="Node whose parameter `style` the style commands set")
        scope: str = Field(default="reply", description='What "stop" interrupts')
        timezone: str = Field(default="", description="IANA name as Europe/Berlin; empty for this machine's")

    async def setup(self) -> None:
        try:
            self._zone = ZoneInfo(self.options.timezone) if self.options.timezone else None
        except (ZoneInfoNotFoundError, ValueError) as e:
            raise StageError(
                f"node {self.ctx.node!r}: unknown timezone {self.options.timezone!r}; "
                "write an IANA name as Europe/Berlin"
            ) from e
        self._seen: EventFrame | None = None
        self._utterance = 0

    def process(self, port: str, frame: Frame, out: Outputs) -> None:
        if isinstance(frame, EventFrame):
            self._seen = frame
            return
        assert isinstance(frame, TokenFrame)
        command = exact(_plain(frame.text))
        typed = frame.until == 0  # speech has an end, a chat line has none
        if command is None and typed:
            command = understand(frame.text)
        if command is not None:
            self._say(self._answer(command), frame, out)
        elif typed and frame.text.strip():
            self._say(f"Sorry, I did not understand. {_UNDERSTANDS}", frame, out)

    def _answer(self, command: Command) -> str:
        """Do what is asked; the words to say about it, maybe none."""
        match command.intent:
            case "stop":
                self.ctx.interrupt(self.options.scope)
                return ""
            case "time":
                return self._time()
            case "look":
                return self._describe()
            case "style":
                return self._style(command.style)
            case other:
                return _FIXED[other]

    def _style(self, style: str) -> str:
        if not self.options.restyle:
            return "There is no picture to restyle here."
        try:
            self.ctx.set_params(self.options.restyle, {"style": style})
        except StageError:
            return f"I could not switch to {STYLES[style][0]} here."
        return _SPOKEN_STYLE.get(style, f"{STYLES[style][0].capitalize()}.")

    def _time(self) -> str:
        moment = datetime.fromtimestamp(self.ctx.clock.wall() / SECOND, UTC).astimezone(self._zone)
        hour = moment.hour % 12 or 12
        part = next(words for end, words in _PARTS_OF_DAY if moment.hour < end)
        if not moment.minute:
            return f"It is {hour} o'clock {part}."
        return f"It is {hour}:{moment.minute:02d} {part}."

    def _describe(self) -> str:
        if self._seen is None:
            return "I see nothing yet. Is the camera on?"
        fields = self._seen.fields
        parts = [_brightness(fields.get("brightness")), _motion(fields.get("motion"))]
        if colour := fields.get("colour"):
            parts.insert(1, f"mostly {colour}")
        known = [p for p in parts if p]
        return f"I see a picture that is {', '.join(known)}." if known else "I see a picture."

    def _say(self, text: str, cause: TokenFrame, out: Outputs) -> None:
        """Put a reply as deltas, one a word, as a language model would."""
        if not text:
            return
        self._utterance += 1
        words = re.findall(r"\S+\s*", text)
        for i, word in enumerate(words):
            out.post(
                "say",
                TokenFrame(
                    pts=max(cause.pts, cause.until),  # an answer begins when the question has ended
                    text=word,
                    utterance=self._utterance,
                    end=i == len(words) - 1,
                    epoch=out.epoch,
                ),
            )


def understand(text: str) -> Command | None:
    """The command a typed line means, typing errors and additional words forgiven."""
    words = bare(_plain(text).split())
    line = " ".join(words)
    if not line or len(line) > 200:
        return None
    cutoff = _CLOSE_SHORT if len(line) <= _SHORT else _CLOSE
    if near := get_close_matches(line, COMMANDS, n=1, cutoff=cutoff):
        return COMMANDS[near[0]]
    return _contained(words)


def _contained(words: list[str]) -> Command | None:
    """The longest command phrase said inside a longer line, as in "can you make it neon for me"."""
    best: tuple[int, Command] | None = None
    for phrase, command in COMMANDS.items():
        parts = phrase.split()
        if best is not None and len(phrase) <= best[0]:
            continue
        if any(_alike(words[i : i + len(parts)], parts) for i in range(len(words) - len(parts) + 1)):
            best = (len(phrase), command)
    return best[1] if best else None


def _alike(said: list[str], meant: list[str]) -> bool:
    if len(meant) == 1 and len(meant[0]) <= _SHORT:
        return said == meant  # "tim" in a sentence is a name, not the time
    return SequenceMatcher(None, " ".join(said), " ".join(meant)).ratio() >= 0.85


def _plain(text: str) -> str:
    """Lower case, words apart by one blank, no punctuation but apostrophes."""
    return " ".join(re.findall(r"[a-z0-9']+", text.lower().replace("’", "'")))


def _brightness(value: Any) -> str:
    if not isinstance(value, int | float):
        return ""
    return "dark" if value < 0.25 else "bright" if value > 0.65 else "neither dark nor bright"


def _motion(value: Any) -> str:
    if not isinstance(value, int | float):
        return ""
    return "still" if value < 0.05 else "with a lot of movement" if value > 0.4 else "with some movement"
