"""Voices and clauses: what is spoken of a text, and in which pieces."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.models import voices
from penstock.models.clauses import ClauseCutter
from penstock.models.flite_voice import FliteVoice
from penstock.models.tts_session import Chunk, TtsSession
from penstock.models.voice import NoVoice, Spoken, Voice, speakable

ALL = [name for name in voices.NAMES if name != "auto"]


def voice(name: str = "auto") -> Voice:
    try:
        return voices.load(name)
    except NoVoice as e:
        pytest.skip(str(e))


def speak(v: Voice, text: str, stop: Callable[[], bool] = lambda: False, rate: float = 1.0) -> list[Spoken]:
    pieces: list[Spoken] = []
    v.synthesise(text, pieces.append, stop, rate=rate)
    return pieces


@pytest.mark.parametrize("name", ALL)
def test_pieces_together_say_the_text(name: str) -> None:
    text = "Hello, how can I help you (today)? It's 3:15, I think."
    pieces = speak(voice(name), text)
    assert "".join(p.text for p in pieces) == text
    assert sum(1 for p in pieces if p.text) >= 8
    assert all(0 < len(p.pcm) <= voice(name).rate_hz // 10 for p in pieces)
    assert np.abs(np.concatenate([p.pcm for p in pieces])).max() > 3000


@pytest.mark.parametrize("name", ALL)
def test_no_piece_follows_a_stop(name: str) -> None:
    pieces: list[Spoken] = []
    voice(name).synthesise(
        "This sentence is much too long for that.", pieces.append, lambda: len(pieces) >= 3
    )
    assert len(pieces) == 3


@pytest.mark.parametrize("name", ALL)
def test_rate_changes_the_length(name: str) -> None:
    def length(rate: float) -> int:
        return sum(len(p.pcm) for p in speak(voice(name), "Pencil sketch, neon and watercolor.", rate=rate))

    assert length(2.0) < 0.7 * length(1.0) < 0.7 * length(0.6)


@pytest.mark.parametrize("name", ALL)
def test_an_error_of_the_sink_comes_back_and_the_voice_lives_on(name: str) -> None:
    def broken(piece: Spoken) -> None:
        raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        voice(name).synthesise("Hello there, my friend.", broken, lambda: False)
    assert speak(voice(name), "Hello.")


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("text", ["", "   ", "🎉🎉", "...", "<b>&amp;</b>", "na\x00ïve", "日本語", "x" * 60])
def test_odd_text_harms_nothing(name: str, text: str) -> None:
    pieces = speak(voice(name), text)
    assert "".join(p.text for p in pieces) in (text, "")


def test_two_objects_of_one_voice_both_speak() -> None:
    voice("flite:rms")
    first, second = FliteVoice("rms"), FliteVoice("rms")
    assert speak(second, "Hello.")
    assert speak(first, "Hello.")


def test_without_flite_our_own_voice_speaks(monkeypatch: pytest.MonkeyPatch) -> None:
    class Missing:
        def __init__(self) -> None:
            raise NoVoice("libflite is missing")

    monkeypatch.setattr(voices, "FliteVoice", Missing)
    assert voices.load.__wrapped__("auto").name == "flow"


def test_an_unknown_voice_is_named() -> None:
    with pytest.raises(NoVoice, match=r"'hal'.*flite:rms"):
        voices.load("hal")


@given(st.text(max_size=300))
@settings(max_examples=100, deadline=None)
def test_speakable_is_plain_and_of_the_same_length(text: str) -> None:
    plain = speakable(text)
    assert len(plain) == len(text)
    assert plain.isascii()
    assert all(len(word) <= 40 for word in plain.split())


@given(st.lists(st.text(alphabet='ab,. !?\n"3😀', max_size=60), max_size=20))
@settings(max_examples=200, deadline=None)
def test_clauses_joined_are_the_text(deltas: list[str]) -> None:
    cutter = ClauseCutter()
    clauses = [clause for d in deltas for clause in cutter.push(d)]
    clauses.append(cutter.finish())
    assert "".join(clauses) == "".join(deltas)
    assert all(len(clause) <= 200 for clause in clauses)


@pytest.mark.parametrize(
    ("text", "clauses"),
    [
        ("Well then, let us see. Yes! ", ["Well then, let us see. ", "Yes! "]),
        ("As far as I can see, it is dark.", ["As far as I can see, ", "it is dark."]),
        ("Mr. Smith has 3.14 pies. More", ["Mr. Smith has 3.14 pies. ", "More"]),
        ("At 10:30, no", ["At 10:30, no"]),
        (
            "I see a picture. It is neither dark nor very bright, mostly blue. It is a long one, which nobody cuts. ",
            [
                "I see a picture. ",
                "It is neither dark nor very bright, ",
                "mostly blue. ",
                "It is a long one, which nobody cuts. ",
            ],
        ),
        (
            "The weather will stay sunny and warm for the rest of the whole week",
            ["The weather will stay sunny and warm ", "for the rest of the whole week"],
        ),
    ],
)
def test_clauses_end_where_one_breathes(text: str, clauses: list[str]) -> None:
    cutter = ClauseCutter()
    assert [*cutter.push(text), *filter(None, [cutter.finish()])] == clauses


@pytest.mark.parametrize("name", ALL)
def test_a_session_gives_small_chunks_that_say_the_text(name: str) -> None:
    text = "Hello 🎉 there. I see a picture, mostly blue, and so on"
    session = TtsSession(voice(name))
    chunks: list[Chunk] = []
    for word in text.split(" "):
        session.push(word if word == "on" else word + " ")
        while (chunk := session.step()) is not None:
            chunks.append(chunk)
    assert "".join(c.text for c in chunks) == "Hello 🎉 there. I see a picture, mostly blue, "
    # nobody waits for the end
    session.end()
    while (chunk := session.step()) is not None:
        chunks.append(chunk)
    assert "".join(c.text for c in chunks) == text
    assert all(0 < len(c.pcm) <= session.rate_hz * 80 // 1000 for c in chunks)
    assert all(
        a.start + len(a.pcm) == b.start and a.mark.until_char <= b.mark.until_char
        for a, b in pairwise(chunks)
    )
    assert session.samples == chunks[-1].mark.sample


@pytest.mark.parametrize("name", ALL)
def test_cancel_tells_the_words_that_were_heard_and_nothing_follows(name: str) -> None:
    session = TtsSession(voice(name))
    session.push("One two three four five six. Seven eight nine.")
    session.end()
    chunks = [chunk for _ in range(12) if (chunk := session.step()) is not None]
    heard = chunks[7].mark
    spoken = session.cancel(heard.sample)
    assert spoken == "One two three four five six. Seven eight nine."[: heard.until_char]
    assert session.step() is None
    assert TtsSession(voice(name)).cancel(10_000) == ""
