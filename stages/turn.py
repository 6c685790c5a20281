"""`turn.detector`: when somebody begins to speak, and when it is the other's turn."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from ..models.turn_score import Ending, Hearing, ending
from ..pipeline.clock import MS, SECOND
from ..pipeline.frame import EventFrame, Frame, Gap, TokenFrame
from ..pipeline.stage import In, Out, Outputs, Ports, Stage

_RESUMED = SECOND  # speech that goes on so soon after an end shows that it was none
_PATIENCE = (1.0, 2.5)  # least and most that is learned of a speaker's pauses
_LEARN, _FORGET = 1.4, 0.9  # factors on a cut-off turn and on a good one


class TurnDetector(Stage):
    """Voice activity, silence and the stability of what was heard → the ends of turns.

    Puts two events, which are the session's events as well (`NODE.speech_start`, `NODE.end_of_turn`):

    - `speech_start`: a voice, known some 60 ms after it began; pts is the onset. Fields:
      `probability`, `late_ms` (audio heard since the onset), `resumed` (the last end came too early).
    - `end_of_turn`: one for each start; pts is when the voice ended. Fields: `score` 0…1, how sure it is that nothing
      follows; `silence_ms` since the voice; `words` of the turn, 0 for a cough; `ending`, what the text ends like.

    Connect `vad.probability`; with `vad.speech` alone a turn ends with the detector's own `speech_end`. Connect a
    recogniser's `partial` and `commit`, or a pause inside a sentence cannot be told from its end. Words that leave a
    sentence open ("and", "the") are English; in other languages silence and stability decide.
    """

    ports = Ports(
        inputs={
            "vad": In(EventFrame, many=True),
            "partial": In(TokenFrame, required=False),
            "commit": In(TokenFrame, required=False),
        },
        outputs={"turn": Out(EventFrame, origin="token")},
    )

    class Params(BaseModel):
        model_config = ConfigDict(extra="forbid", frozen=True)
        threshold: float = Field(
            default=0.5, ge=0.2, le=0.95, description="A window above this may be speech"
        )
        sure: float = Field(
            default=0.65, ge=0.3, le=1.0, description="One window above this is speech; else it takes two"
        )
        score: float = Field(default=0.5, ge=0.1, le=0.95, description="A turn ends at this score")
        patience: float = Field(
            default=1.0, ge=0.25, le=4.0, description="Factor on the silence that is waited for"
        )
        max_silence_ms: int = Field(
            default=2000, ge=200, le=10_000, description="A turn ends then whatever was said"
        )

    async def setup(self) -> None:
        self._speaking = False
        self._onset: int | None = None  # pts of the last window, when it may begin speech
        self._heard = 0  # capture time up to which audio is judged
        self._voiced = 0  # end of the last window with a voice
        self._ended = -_RESUMED  # when the last turn was declared over
        self._fine = False  # probabilities come: silence is known to 32 ms
        self._learned = 1.0  # factor on patience
        self._committed = ""
        self._partial = ""
        self._changed = 0  # capture time at which the text last changed

    def process(self, port: str, frame: Frame, out: Outputs) -> None:
        if isinstance(frame, TokenFrame):
            self._read(port, frame)
        else:
            assert isinstance(frame, EventFrame)
            self._see(frame, out)
        if self._speaking and self._fine:
            self._judge(out)

    def gap(self, port: str, gap: Gap, out: Outputs) -> None:
        """Lost audio counts as silence: the next window's pts tells how long."""

    def finish(self, out: Outputs) -> None:
        if self._speaking:
            self._end(out, 1.0, self._hearing())

    # ------------------------------------------------------------ what comes in

    def _see(self, frame: EventFrame, out: Outputs) -> None:
        if frame.name == "speech_probability":
            self._fine = True
            self._window(frame, float(frame.fields["probability"]), out)
        elif not self._fine and frame.name == "speech_start" and not self._speaking:
            late = int(frame.fields.get("late_ms", 0)) * MS
            self._heard = self._voiced = frame.pts + late
            self._start(frame.pts, float(frame.fields.get("probability", 1.0)), out)
        elif not self._fine and frame.name == "speech_end" and self._speaking:
            self._voiced = frame.pts
            self._heard = frame.pts + int(frame.fields.get("late_ms", 0)) * MS
            hearing = self._hearing()
            self._end(out, ending(hearing, self.params.patience * self._learned), hearing)

    def _window(self, frame: EventFrame, probability: float, out: Outputs) -> None:
        """One judged window: pts is its begin, `until` its end."""
        p = self.params
        self._heard = max(self._heard, int(frame.fields["until"]))
        if self._speaking:
            if probability >= p.threshold - 0.15:  # the gap that Silero's own iterator uses
                self._voiced = self._heard
        elif probability >= p.sure or (probability >= p.threshold and self._onset is not None):
            onset, self._onset = frame.pts if self._onset is None else self._onset, None
            self._voiced = self._heard
            self._start(onset, probability, out)
        else:  # the first window of a voice is seldom full of it
            self._onset = frame.pts if probability >= p.threshold / 2 else None

    def _read(self, port: str, frame: TokenFrame) -> None:
        before = (self._committed + " " + self._partial).split()
        if port == "commit":
            self._committed, self._partial = f"{self._committed} {frame.text}".strip(), ""
        else:
            self._partial = frame.text
        if (self._committed + " " + self._partial).split() != before:
            self._changed = self._heard

    # ------------------------------------------------------------ what goes out

    def _start(self, pts: int, probability: float, out: Outputs) -> None:
        resumed = self._heard - self._ended < _RESUMED
        low, high = _PATIENCE
        if resumed:
            self._learned = min(high, self._learned * _LEARN)
        else:
            self._learned = max(low, self._learned * _FORGET)
        self._speaking = True
        self._committed = self._partial = ""
        self._changed = self._heard
        fields = {
            "probability": round(probability, 3),
            "late_ms": (self._heard - pts) // MS,
            "resumed": resumed,
        }
        out.post("turn", EventFrame(pts=pts, epoch=out.epoch, name="speech_start", fields=fields))

    def _judge(self, out: Outputs) -> None:
        hearing = self._hearing()
        score = ending(hearing, self.params.patience * self._learned)
        if hearing.silence_ms >= self.params.max_silence_ms:
            score = 1.0
        if score >= self.params.score:
            self._end(out, score, hearing)

    def _end(self, out: Outputs, score: float, hearing: Hearing) -> None:
        self._speaking = False
        self._ended = self._heard
        fields = {
            "score": round(score, 3),
            "silence_ms": hearing.silence_ms,
            "words": len(hearing.text.split()),
            "ending": Ending.of(hearing.text).value,
        }
        out.post("turn", EventFrame(pts=self._voiced, epoch=out.epoch, name="end_of_turn", fields=fields))

    def _hearing(self) -> Hearing:
        return Hearing(
            silence_ms=(self._heard - self._voiced) // MS,
            stable_ms=(self._heard - self._changed) // MS,
            text=f"{self._committed} {self._partial}".strip(),
            listening=bool({"partial", "commit"} & self.ctx.connected),
        )
