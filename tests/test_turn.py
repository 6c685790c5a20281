"""Turns: known within two windows of their begin, ended by silence, stability and what was said."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.models.turn_score import Ending, Hearing, ending
from penstock.pipeline.clock import MS, SECOND
from penstock.pipeline.frame import EventFrame, TokenFrame
from penstock.stages.turn import TurnDetector
from penstock.stages.vad import SileroVad

from .fakes import Collected, FakeContext, audio_frames, feed
from .speech import room, said

WINDOW = 32 * MS
VOICE, QUIET = 0.95, 0.02


class Talk:
    """A detector that is told one window after the other."""

    def __init__(self, *, listening: bool = True, **params: float) -> None:
        self.stage = TurnDetector(params=TurnDetector.Params.model_validate(params))
        self.out = Collected()
        context = FakeContext()
        context.connected = frozenset({"vad", "partial", "commit"} if listening else {"vad"})
        self.stage.ctx = context
        asyncio.run(self.stage.setup())
        self.now = 0

    def windows(self, *probabilities: float) -> None:
        for p in probabilities:
            fields = {"probability": p, "until": self.now + WINDOW}
            self.stage.process(
                "vad", EventFrame(pts=self.now, name="speech_probability", fields=fields), self.out
            )
            self.now += WINDOW

    def text(self, port: str, text: str) -> None:
        self.stage.process(port, TokenFrame(pts=self.now, until=self.now, text=text), self.out)

    @property
    def events(self) -> list[EventFrame]:
        return self.out.of("turn")

    def names(self) -> list[str]:
        return [e.name for e in self.events]


def silence_of(*texts: tuple[str, str], patience: float = 1, max_silence_ms: int = 2000) -> int:
    """How long a turn with these words waits, in ms."""
    talk = Talk(patience=patience, max_silence_ms=max_silence_ms)
    talk.windows(*[VOICE] * 30)
    for port, text in texts:
        talk.text(port, text)
    talk.windows(*[QUIET] * 100)
    assert talk.names() == ["speech_start", "end_of_turn"]
    return talk.events[-1].fields["silence_ms"]


def test_a_sure_window_starts_a_turn_at_once_an_unsure_one_needs_a_second() -> None:
    talk = Talk()
    talk.windows(QUIET, 0.9)
    assert talk.names() == ["speech_start"]
    assert talk.events[0].pts == WINDOW
    assert talk.events[0].fields["late_ms"] == 32
    talk = Talk()
    talk.windows(QUIET, 0.6, QUIET, 0.3)
    assert talk.names() == []
    talk.windows(0.6)
    assert talk.events[0].pts == 3 * WINDOW
    assert talk.events[0].fields["late_ms"] == 64
    talk = Talk()
    talk.windows(0.3, 0.6)
    assert talk.events[0].pts == 0, "a voice at the very begin of a file"


def test_what_was_said_decides_how_long_silence_must_be() -> None:
    complete = silence_of(("commit", "What time is it?"))
    plain = silence_of(("commit", "what time is it"))
    nothing = silence_of()
    dangling = silence_of(("commit", "show me the"))
    assert complete < plain < nothing < dangling
    assert complete <= 360
    assert dangling >= 1000
    assert silence_of(("commit", "show me"), ("partial", "the")) == dangling


def test_text_that_still_changes_holds_a_turn_open() -> None:
    talk = Talk()
    talk.windows(*[VOICE] * 30)
    for words in range(1, 20):
        talk.text("partial", "neon " * words)
        talk.windows(QUIET)
    assert talk.names() == ["speech_start"]
    talk.windows(*[QUIET] * 10)
    assert talk.names() == ["speech_start", "end_of_turn"]


def test_silence_has_an_upper_bound_whatever_was_said() -> None:
    assert silence_of(("commit", "and then the"), patience=4, max_silence_ms=960) == 960


def test_a_cough_is_a_turn_without_words() -> None:
    talk = Talk()
    talk.windows(0.9, *[QUIET] * 60)
    assert talk.names() == ["speech_start", "end_of_turn"]
    assert talk.events[1].fields["words"] == 0
    assert talk.events[1].fields["ending"] == "none"


def test_a_speaker_who_goes_on_after_an_end_is_given_more_time_next_time() -> None:
    talk = Talk()
    waits: list[int] = []
    for _ in range(3):
        talk.windows(*[VOICE] * 20)
        talk.text("commit", "make it neon")
        before = len(talk.events)
        while len(talk.events) == before:
            talk.windows(QUIET)
        waits.append(talk.events[-1].fields["silence_ms"])
    assert waits == sorted(waits)
    assert waits[-1] > waits[0]
    assert [e.fields["resumed"] for e in talk.events if e.name == "speech_start"] == [False, True, True]


def test_words_of_one_turn_do_not_count_in_the_next() -> None:
    talk = Talk()
    for text in ("show me the", "stop"):
        talk.windows(*[VOICE] * 20)
        talk.text("commit", text)
        talk.windows(*[QUIET] * 70)
    assert [e.fields["words"] for e in talk.events if e.name == "end_of_turn"] == [3, 1]


def test_without_probabilities_the_detectors_own_end_is_the_end() -> None:
    talk = Talk(listening=False)
    start = EventFrame(pts=SECOND, name="speech_start", fields={"probability": 0.8, "late_ms": 64})
    end = EventFrame(pts=2 * SECOND, name="speech_end", fields={"probability": 0.1, "late_ms": 480})
    talk.stage.process("vad", start, talk.out)
    talk.stage.process("vad", end, talk.out)
    assert [(e.name, e.pts) for e in talk.events] == [("speech_start", SECOND), ("end_of_turn", 2 * SECOND)]
    assert talk.events[1].fields["silence_ms"] == 480


def test_media_that_ends_in_a_turn_ends_it() -> None:
    talk = Talk()
    talk.windows(*[VOICE] * 10)
    talk.stage.finish(talk.out)
    talk.stage.finish(talk.out)
    assert talk.names() == ["speech_start", "end_of_turn"]


@given(
    st.lists(st.tuples(st.floats(0, 1), st.sampled_from(["", "", "", "neon", "the", "stop."])), max_size=200)
)
def test_starts_and_ends_alternate_and_time_never_runs_back(
    script: list[tuple[float, str]],
) -> None:
    talk = Talk()
    for probability, text in script:
        if text:
            talk.text("partial", text)
        talk.windows(probability)
    talk.stage.finish(talk.out)
    assert talk.names() == ["speech_start", "end_of_turn"] * (len(talk.events) // 2)
    times = [e.pts for e in talk.events]
    assert times == sorted(times)
    assert all(0 <= e.fields["score"] <= 1 for e in talk.events if e.name == "end_of_turn")


@given(st.integers(0, 5000), st.integers(0, 2000), st.sampled_from(["", "yes", "yes.", "and"]))
def test_more_silence_and_more_stability_never_lower_the_score(silence: int, stable: int, text: str) -> None:
    score = ending(Hearing(silence, stable, text))
    assert 0 <= score <= 1
    assert ending(Hearing(silence + 100, stable, text)) >= score
    assert ending(Hearing(silence, stable + 100, text)) >= score
    assert ending(Hearing(silence, stable, text), patience=2) <= score


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", Ending.NONE),
        ("Stop.", Ending.COMPLETE),
        ("really?", Ending.COMPLETE),
        ("what do you see", Ending.PLAIN),
        ("make it", Ending.PLAIN),
        ("I want to", Ending.OPEN),
        ("well,", Ending.OPEN),
        ("um.", Ending.OPEN),
        ("so ...", Ending.OPEN),
        ("»Ja.«", Ending.COMPLETE),
    ],
)
def test_endings(text: str, kind: Ending) -> None:
    assert Ending.of(text) is kind


def test_speech_is_known_within_60_ms_of_its_onset() -> None:
    """Spoken by flite through the real detector; the onset is where its energy first rises over the noise."""
    late: list[float] = []
    for text in ("What time is it?", "Pencil sketch.", "Neon please.", "Hello there.", "Make it blue."):
        words = said(text)
        pcm = room([words])
        loud = np.abs(pcm.astype(np.float64)).reshape(-1, 80).mean(1)  # 5 ms
        onset = int(np.flatnonzero(loud > 8 * 20)[0]) * 5 * MS
        late.append((first_start(pcm) - onset) / MS)
    assert np.median(late) <= 60
    assert max(late) <= 100


def first_start(pcm: np.ndarray) -> int:
    """When `speech_start` is known: the end of the audio that had come."""
    vad, turn, heard, told = SileroVad(), TurnDetector(), Collected(), Collected()
    for stage in (vad, turn):
        context = FakeContext()
        context.connected = frozenset({"audio", "probability", "vad", "turn"})
        stage.ctx = context
        asyncio.run(stage.setup())

    async def run() -> int:
        for frame in audio_frames(pcm):
            await feed(vad, "audio", frame, heard)
            for event in heard.of("probability"):
                await feed(turn, "vad", event, told)
            heard.frames.clear()
            if told.frames:
                return frame.pts + frame.duration
        raise AssertionError("no speech was found")

    return asyncio.run(run())
