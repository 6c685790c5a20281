"""A conversation on the virtual clock: barge-in, back-channel, false interruption, and what was really said."""

from __future__ import annotations

from penstock.pipeline.clock import MS

from .conversation import Person, Script, simulate, word_text
from .long_conversation import talk


def test_a_question_is_answered_aloud() -> None:
    async def scene(person: Person) -> None:
        await person.asks()
        await person.until(lambda: person.hears)
        await person.until(lambda: not person.session.playback.busy)
        assert person.heard_words(1) == list(range(12))
        assert person.session.playback.heard(1).split() == [
            word_text(1, w) + ("." if w % 6 == 5 else "") for w in range(12)
        ]

    simulate(scene)


def test_words_interrupt_and_the_next_request_tells_what_was_heard() -> None:
    async def scene(person: Person) -> None:
        await person.asks()
        await person.until(lambda: len(person.heard_words(1)) == 3)
        onset = person.clock.now()
        await person.asks()
        await person.until(lambda: len(person.script.requests) == 2)
        quiet = next(step.since for step in person.ear if step.since > onset and step.silent)
        assert quiet - onset <= 60 * MS
        told = person.script.requests[1]
        assert [m["role"] for m in told] == ["user", "assistant", "user"]
        assert told[1]["content"].split() == [word_text(1, w) for w in person.heard_words(1)]
        await person.until(lambda: person.hears)
        assert not any(r == 1 for step in person.ear if step.since > onset + 60 * MS for r, _ in step.words)
        assert len(person.told("barge_in")) == 1

    simulate(scene)


def test_a_cough_and_mm_hm_let_the_reply_go_on_with_the_word_they_cut() -> None:
    async def scene(person: Person) -> None:
        await person.asks()
        for noise in ("", "mm-hm"):
            before = len(person.heard_words(1))
            await person.until(lambda n=before: len(person.heard_words(1)) == n + 2)
            await person.wait(0.1)
            await person.says(noise, 0.2)
            assert person.ear[-1].silent
            await person.until(lambda: person.hears)
        await person.until(lambda: not person.session.playback.busy)
        assert person.heard_words(1) == list(range(12))
        cut = [step for step in person.ear if (1, 2) in step.words]
        assert (
            sum(step.at - step.since + 20 * MS for step in cut) > 300 * MS
        )  # the word that was cut was said again from its beginning
        assert not person.told("barge_in")
        assert len(person.told("resumed")) == 2
        assert len(person.script.requests) == 1

    simulate(scene)


def test_mm_hm_is_an_answer_when_nobody_speaks() -> None:
    async def scene(person: Person) -> None:
        await person.says("yes okay")
        await person.until(lambda: person.hears)
        assert person.script.requests[0][-1]["content"] == "yes okay"

    simulate(scene)


def test_long_speech_that_nobody_understands_interrupts() -> None:
    async def scene(person: Person) -> None:
        await person.asks()
        await person.until(lambda: person.hears)
        await person.says("", 2.0)
        await person.wait(1.0)
        assert not person.hears
        assert len(person.told("barge_in")) == 1

    simulate(scene)


def test_speaking_again_before_the_answer_sounds_joins_both() -> None:
    async def scene(person: Person) -> None:
        await person.asks()
        await person.until(lambda: len(person.script.requests) == 1)
        await person.asks(0.5)
        await person.until(lambda: person.hears)
        assert person.script.requests[-1][-1]["content"] == "question 1\nquestion 2"
        assert person.heard_words(1) == []

    simulate(scene)


def test_minutes_of_random_talk_lose_and_repeat_nothing() -> None:
    script = Script(words=lambda reply: 4 + reply * 7 % 12)
    figures = []

    async def scene(person: Person) -> None:
        figures.append(await talk(person, 240, seed=1))

    simulate(scene, script)
    it = figures[0]
    assert it.turns > 20
    assert it.barge_ins > 5
    assert it.backchannels + it.coughs > 5
    assert it.lost == 0
    assert it.stale == 0
    assert it.contexts_exact == it.contexts > 20
    assert max(it.silence_ms) <= 60
