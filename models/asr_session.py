"""One listener: PCM with capture times in; partial words, final words and ends of turns out.

The work between is a row: `ready` says that a block waits, `AsrRows.forward` does blocks of many sessions in one
go, `AsrRows.commit` gives a session's events. `push` does all three for one session.
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .log_mel import HOP, RATE_HZ
from .speech_gate import SpeechGate

SECOND = 1_000_000_000
_FRAME_NS = SECOND // 50
_JITTER = SECOND // 16  # pts off by less are the clock's; by more, samples are missing
_FILL = SECOND // 2  # a hole up to this is filled with silence; a longer one ends the turn
_STEP = 320  # samples
# mel frames kept from before speech was noticed: a causal Whisper's first block, heard at once
_PRE_ROLL = 60


@dataclass(frozen=True, slots=True)
class AsrEvent:
    """What a listener learns. `partial` replaces the last one and holds no committed words; `commit` is final
    and never taken back; `endpoint` closes a turn, with all of its text."""

    kind: Literal["partial", "commit", "endpoint"]
    text: str
    begin: int  # ns, capture time
    end: int  # ns
    turn: int
    heard: int  # ns, capture time of the last sample that led to this: `heard - end` is the words' latency


class Front(Protocol):
    """Samples at 16 kHz → frames of 10 ms, with a state that is an argument."""

    n_mels: int

    def init_state(self, before: Any = None) -> Any: ...

    def step(self, pcm: Tensor, state: Any) -> Tensor:
        """(S,) → (n_mels, T)."""
        ...

    def level(self, mel: Tensor) -> Tensor:
        """(n_mels, T) → mean log10 power of each frame."""
        ...


class Word(Protocol):
    """A final word; frames of 20 ms since the stream began."""

    @property
    def text(self) -> str: ...
    @property
    def begin(self) -> int: ...
    @property
    def end(self) -> int: ...


class Streamer(Protocol):
    """A streaming recogniser; all that a stream is, is in the object that `start` gives."""

    front: Any  # a Front

    @property
    def chunk_ms(self) -> int: ...

    def start(self) -> Any: ...

    def push(self, stream: Any, mel: Tensor) -> None: ...

    def ready(self, stream: Any) -> bool:
        """Whether a whole block waits."""
        ...

    def fill(self, stream: Any) -> bool:
        """Fill what waits up to a block with silence. False when nothing waits."""
        ...

    def batch_key(self, stream: Any) -> Hashable: ...

    def forward(self, streams: Sequence[Any]) -> Sequence[Any]:
        """The next block of each. Changes no stream."""
        ...

    def commit(self, stream: Any, heard: Any, *, everything: bool = False) -> Sequence[Word]:
        """Take a result over; the words that are now final (with `everything`: all there are)."""
        ...

    def finish(self, stream: Any) -> Sequence[Word]:
        """The turn is over: what is there is final."""
        ...

    def pending(self, stream: Any) -> str:
        """The words that may still change."""
        ...


class AsrRows:
    """The recogniser as pools see it; shared by all sessions."""

    def __init__(self, streamer: Streamer) -> None:
        self.streamer = streamer
        self.front: Front = streamer.front

    def batch_key(self, session: AsrSession) -> Hashable:
        assert session.stream is not None
        return self.streamer.batch_key(session.stream)

    def forward(self, sessions: Sequence[AsrSession]) -> Sequence[Any]:
        """The next block of each; equal keys only. Changes no session."""
        return self.streamer.forward([s.stream for s in sessions if s.stream is not None])

    def commit(self, session: AsrSession, heard: Any) -> list[AsrEvent]:
        """Take a result over."""
        return session.take(heard)


class AsrSession:
    """State of one stream. Not for several threads at once."""

    def __init__(self, rows: AsrRows, *, endpoint_ms: int = 700, gated: bool = True) -> None:
        """`endpoint_ms`: silence that ends a turn. Not `gated`: `voice` is told by a detector, or always on."""
        if not 100 <= endpoint_ms <= 10_000:
            raise ValueError(f"endpoint of {endpoint_ms} ms is not possible; it has 100 to 10000 ms")
        self.rows = rows
        self.gate = SpeechGate(endpoint_ms // 10) if gated else None
        self.stream: Any = None  # only while somebody speaks
        self.turn = 0
        self._mel: Any = rows.front.init_state()
        self._roll = torch.zeros(rows.front.n_mels, 0)  # mel before speech
        self._anchor: int | None = None  # pts of sample 0
        self._rest = np.zeros(0, np.float32)  # samples not yet used
        self._samples = 0  # used so far
        self._frames = 0  # mel frames made so far
        self._voiced = 0  # mel frame after the last loud one
        self._origin = 0  # mel frame that the stream's frame 0 begins at
        self._said: list[AsrEvent] = []
        self._partial = ""
        self._ending = False  # the turn is over once the stream has heard what waits
        self._last = False  # the block that waits is the turn's last, filled up with silence
        self._hole: tuple[NDArray[np.float32], int] | None = None  # samples after a hole, and their pts

    # ------------------------------------------------------------ audio

    def push(self, pcm: NDArray[np.float32], pts: int) -> list[AsrEvent]:
        """(S,) mono float32 at 16 kHz in −1…1, captured from `pts` ns on. Raises: ValueError."""
        self.feed(pcm, pts)
        return self._hear_all()

    def feed(self, pcm: NDArray[np.float32], pts: int) -> None:
        """Take samples; then `pump` until nothing is `ready`."""
        if pcm.ndim != 1 or pcm.dtype != np.float32:
            raise ValueError(
                f"pcm is {pcm.dtype} of shape {pcm.shape}; accepted: float32 of one dimension, 16 kHz"
            )
        if not np.isfinite(pcm).all():
            raise ValueError("pcm holds NaN or infinity; accepted: samples in −1…1")
        if self._hole is not None:  # the turn before the hole is not closed yet
            self._hole = np.concatenate([self._hole[0], pcm]), self._hole[1]
            return
        if self._anchor is None:
            self._anchor = pts
        hole = pts - self._now() - len(self._rest) * SECOND // RATE_HZ
        if hole > _FILL or hole < -_JITTER:
            self._hole = pcm, pts
            self.end()
            return
        if hole > _JITTER:
            pcm = np.concatenate([np.zeros(hole * RATE_HZ // SECOND, np.float32), pcm])
        self._rest = np.concatenate([self._rest, pcm.clip(-1, 1)])

    def pump(self) -> list[AsrEvent]:
        """Go on until a block is `ready` or the samples are used up. In steps of one size, whatever was fed."""
        events: list[AsrEvent] = []
        while not self.ready:
            if self._ending:
                events.extend(self._close())
                continue
            if self._hole is not None:
                self._resume()
            if len(self._rest) < _STEP:
                break
            step, self._rest = self._rest[:_STEP], self._rest[_STEP:]
            self._samples += _STEP
            self._hear(self.rows.front.step(torch.from_numpy(step), self._mel))
        return events

    def voice(self, speaking: bool) -> list[AsrEvent]:
        """What a detector says (sessions that are not `gated`)."""
        if speaking and self.stream is None:
            self._begin()
        elif not speaking and self.stream is not None:
            self._ending = True
        return self.pump()

    @property
    def ready(self) -> bool:
        """A block waits to be heard."""
        return self.stream is not None and self.rows.streamer.ready(self.stream)

    def end(self) -> None:
        """The media ends here, or a turn does: `pump` until nothing is `ready`, then all words are final."""
        if self.gate is not None:
            self.gate.rest()
        self._ending = self.stream is not None and not self._last

    def finish(self) -> list[AsrEvent]:
        """`end`, and hear what is left of a block."""
        self.end()
        return self._hear_all()

    def _hear_all(self) -> list[AsrEvent]:
        events = self.pump()
        while self.ready:
            events.extend(self.rows.commit(self, self.rows.forward([self])[0]))
            events.extend(self.pump())
        return events

    def take(self, heard: Any) -> list[AsrEvent]:
        """A block's result → events."""
        assert self.stream is not None
        words = self.rows.streamer.commit(self.stream, heard, everything=self._last)
        events = self._events(words, self.rows.streamer.pending(self.stream))
        return [*events, *self._over()] if self._last else events

    def snapshot(self) -> AsrSession:
        """A copy that goes on from here by itself, with the same weights."""
        memo: dict[int, object] = {id(self.rows): self.rows}
        return copy.deepcopy(self, memo)

    # ------------------------------------------------------------ inside

    def _close(self) -> list[AsrEvent]:
        """Nothing whole waits and the turn is to end: fill the last block up, or end it where nothing is left."""
        assert self.stream is not None
        self._ending = False
        if not self.rows.streamer.fill(self.stream):
            return [*self._events(self.rows.streamer.finish(self.stream), ""), *self._over()]
        self._last = True
        return []

    def _over(self) -> list[AsrEvent]:
        """The turn has been heard to its end."""
        events: list[AsrEvent] = []
        if self._said:
            text = " ".join(e.text for e in self._said)
            first, last = self._said[0], self._said[-1]
            events.append(AsrEvent("endpoint", text, first.begin, last.end, self.turn, self._now()))
            self.turn += 1
        elif self._partial:
            events.append(AsrEvent("partial", "", self._now(), self._now(), self.turn, self._now()))
        self.stream, self._said, self._partial, self._last = None, [], "", False
        return events

    def _resume(self) -> None:
        """Begin anew after a hole."""
        assert self._hole is not None
        (pcm, pts), self._hole = self._hole, None
        self._mel, self._rest = self.rows.front.init_state(self._mel), pcm.clip(-1, 1)
        self._samples = self._frames * HOP
        self._anchor = pts - self._samples * SECOND // RATE_HZ

    def _hear(self, mel: Tensor) -> None:
        """New mel frames: to the stream while somebody speaks, else to the pre-roll."""
        if self.gate is None:
            self._frames += mel.shape[1]
            self._store(mel)
            return
        begin = 0
        for i, level in enumerate(self.rows.front.level(mel).tolist()):
            was = self.gate.speaking
            now = self.gate.step(level)
            if self.gate.quiet == 0:
                self._voiced = self._frames + i + 1 - begin
            if was != now:
                self._frames += i + 1 - begin
                self._store(mel[:, begin : i + 1])
                begin = i + 1
                if now and self.stream is None:
                    self._begin()
                self._ending = not now
        self._frames += mel.shape[1] - begin
        self._store(mel[:, begin:])

    def _store(self, mel: Tensor) -> None:
        if self.stream is not None:
            self.rows.streamer.push(self.stream, mel)
        else:
            self._roll = torch.cat([self._roll, mel], 1)[:, -_PRE_ROLL:]

    def _begin(self) -> None:
        """Somebody speaks: a new window, from a little before it was noticed."""
        self.stream = self.rows.streamer.start()
        self.rows.streamer.push(self.stream, self._roll)
        self._origin = self._frames - self._roll.shape[1]
        self._roll = self._roll[:, :0]
        self._ending = False

    def _now(self) -> int:
        """Capture time of the end of the last sample."""
        return (self._anchor or 0) + self._samples * SECOND // RATE_HZ

    def _pts(self, frame: int) -> int:
        """Capture time of a frame of the stream."""
        return (self._anchor or 0) + (self._origin * HOP) * SECOND // RATE_HZ + frame * _FRAME_NS

    def _events(self, words: Sequence[Word], pending: str) -> list[AsrEvent]:
        assert self.stream is not None
        out: list[AsrEvent] = []
        now = self._now()
        if words:
            text = " ".join(w.text for w in words)
            begin, end = self._pts(words[0].begin), min(now, self._pts(words[-1].end))
            if self.gate is not None:  # a run of frames may hold the silence after its word
                end = min(end, (self._anchor or 0) + (self._voiced + 5) * HOP * SECOND // RATE_HZ)
            out.append(AsrEvent("commit", text, min(begin, end), end, self.turn, now))
            self._said.extend(out)
        if pending != self._partial or (words and pending):
            begin = min(now, self._pts(self.stream.last_end))
            out.append(AsrEvent("partial", pending, begin, now, self.turn, now))
        self._partial = pending
        return out
