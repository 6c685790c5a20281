"""StreamTts and its sessions: words, gaps, barge-in, odd text."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from penstock.models import voices
from penstock.models.voice import NoVoice, Spoken, Voice
from penstock.pipeline.clock import MS, NEVER, SECOND, ManualClock
from penstock.pipeline.frame import Frame, TokenFrame
from penstock.pipeline.stage import Flush, SetParams, StageError
from penstock.stages.tts import StreamTts

from .fakes import Collected, FakeContext, InlinePool, feed
from .test_voices import voice


async def started(name: str = "auto", out: Collected | None = None) -> StreamTts:
    voice(name)
    stage = StreamTts(StreamTts.Options(voice=name))  # type: ignore[arg-type]
    stage.ctx = FakeContext()
    await stage.setup()
    return stage


def delta(text: str, utterance: int = 1, end: bool = False) -> TokenFrame:
    return TokenFrame(pts=SECOND, text=text, utterance=utterance, end=end)


def test_speech_begins_before_the_sentence_ends() -> None:
    async def main() -> None:
        stage, out = await started(), Collected()
        await feed(stage, "text", delta("As far as I can tell, "), out)
        await settle(lambda: bool(out.of("audio")))
        await stage.close()

    asyncio.run(main())


async def settle(fact: Callable[[], bool]) -> None:
    """Some turns of the loop: the pool of the tests works at once."""
    for _ in range(200):
        if fact():
            return
        await asyncio.sleep(0)
    raise AssertionError


class StoppedClock(ManualClock):
    """Moves when told; who sleeps looks at each turn of the loop."""

    async def sleep(self, duration: int) -> None:
        until = self.now() + duration
        while self.now() < until:  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def move(self, duration: int) -> None:
        self.time += duration
        for _ in range(200):
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("deltas", "after_stall"),
    [
        (["I think", " that"], "I think "),  # "that" may be the beginning of "thatched"
        (["Well ", "then "], "Well then "),
        (["Well"], ""),
        (["🎉 "], ""),
        (["The weather in the mountains stays sunny, so we ", "could go "], None),
    ],
)
def test_a_writer_that_stalls_is_not_waited_for(deltas: list[str], after_stall: str | None) -> None:
    async def main() -> None:
        voice()
        clock, out = StoppedClock(), Collected()
        stage = StreamTts(StreamTts.Options.model_validate({"stall": "400ms"}))
        stage.ctx = FakeContext(clock)
        await stage.setup()

        def said() -> str:
            return "".join(f.text for f in out.of("audio"))

        for text in deltas:
            await feed(stage, "text", TokenFrame(pts=0, text=text, utterance=1, end=False), out)
            await clock.move(150 * MS)
        before = said()
        if after_stall is not None:
            assert before == ""
        await clock.move(200 * MS)
        assert said() == before  # 350 ms after the last
        await clock.move(60 * MS)
        if after_stall is not None:
            assert said() == after_stall
        else:  # what still sounds is not cut short for it
            assert said() == before != ""
            await clock.move(sum(f.duration for f in out.of("audio")))
            assert said() == "".join(deltas)
        await feed(stage, "text", TokenFrame(pts=0, text=" last one.", utterance=1, end=True), out)
        assert said() in ("".join(deltas) + " last one.", " last one.")
        await stage.close()
        assert len(asyncio.all_tasks()) == 1

    asyncio.run(main())


@pytest.mark.parametrize("told", [True, False])
def test_words_of_a_reply_that_was_interrupted_while_its_writer_stalled_are_not_spoken(told: bool) -> None:
    """The epoch moves before the flush is told."""

    async def main() -> None:
        voice()
        clock, out = StoppedClock(), Collected()
        stage = StreamTts()
        stage.ctx = ctx = FakeContext(clock)
        await stage.setup()
        await feed(stage, "text", TokenFrame(pts=0, text="I think ", utterance=1, end=False), out)
        ctx.epoch = 1
        if told:
            await stage.control(Flush("reply", 1))
        else:
            out.epoch = 1
        await clock.move(SECOND)
        assert not out.frames
        await stage.close()

    asyncio.run(main())


def test_frames_are_small_gapless_and_carry_the_words_and_the_epoch() -> None:
    text = "Hello there. I can see a bright picture, mostly blue, with some movement! "

    async def main() -> None:
        stage, out = await started(), Collected(epoch=3)
        for word in text.split(" "):
            await feed(stage, "text", delta(word + " "), out)
        await feed(stage, "text", delta("", end=True), out)
        frames = out.of("audio")
        assert "".join(f.text for f in frames).split() == text.split()
        assert all(f.duration <= 80_000_000 and f.epoch == 3 for f in frames)
        assert all(a.pts + a.duration == b.pts for a, b in pairwise(frames))

    asyncio.run(main())


class FlushedAfter(Collected):
    """Flushes the stage while its n-th chunk is being put."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.stage: StreamTts | None = None

    async def send(self, port: str, frame: Frame) -> None:
        await super().send(port, frame)
        if len(self.frames) == self.n and self.stage is not None:
            await self.stage.control(Flush("reply", 1))


def test_flush_stops_the_synthesis_and_forgets_the_rest() -> None:
    async def main() -> None:
        out = FlushedAfter(5)
        out.stage = stage = await started()
        await feed(stage, "text", delta("One two three four five six seven. Eight nine ten. And "), out)
        await feed(stage, "text", delta("more of the old reply.", end=True), out)
        assert len(out.frames) == 5
        fresh = TokenFrame(pts=SECOND, text="New.", utterance=2, epoch=1)
        await feed(stage, "text", fresh, out)
        assert len(out.frames) > 5
        assert "".join(f.text for f in out.of("audio")[5:]) == "New."

    asyncio.run(main())


def test_volume_scales_the_audio() -> None:
    async def main(volume: float) -> int:
        stage, out = await started(), Collected()
        await stage.control(SetParams({"volume": volume}))
        await feed(stage, "text", delta("Hello.", end=True), out)
        return max(int(np.abs(f.pcm.astype(int)).max()) for f in out.of("audio"))

    assert asyncio.run(main(0.0)) == 0
    assert asyncio.run(main(0.5)) == pytest.approx(asyncio.run(main(1.0)) / 2, rel=0.25)


def test_many_sessions_speak_at_once() -> None:
    async def one(n: int) -> str:
        stage, out = await started(), Collected()
        await feed(stage, "text", delta(f"Session {n} speaks.", end=True), out)
        return "".join(f.text for f in out.of("audio"))

    async def main() -> list[str]:
        return await asyncio.gather(*(one(n) for n in range(8)))

    assert asyncio.run(main()) == [f"Session {n} speaks." for n in range(8)]


class CountedVoice:
    """Notes whose clause it makes; 40 ms of sound a character."""

    name, rate_hz = "counted", 16_000

    def __init__(self) -> None:
        self.made: list[str] = []

    def synthesise(
        self, text: str, sink: Callable[[Spoken], None], should_stop: Callable[[], bool], *, rate: float = 1.0
    ) -> None:
        self.made.append(text)
        for char in text:
            sink(Spoken(np.zeros(640, np.int16), char))


class TurnPool(InlinePool):
    """Calls take a turn of the loop, as threads would."""

    async def call(self, fn: Callable[..., Any], *args: object, deadline: int = NEVER) -> Any:
        await asyncio.sleep(0)
        return fn(*args)


def test_every_session_is_heard_before_anyone_gets_a_second_clause(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = CountedVoice()

    def load(name: str) -> Voice:
        return counted

    monkeypatch.setattr(voices, "load", load)

    async def main() -> None:
        pool, stages = TurnPool(), list[StreamTts]()
        for _ in range(4):
            stage = StreamTts()
            stage.ctx = ctx = FakeContext()
            ctx.pools = pool
            await stage.setup()
            stages.append(stage)
        counted.made.clear()
        text = "{0} begins here. {0} goes on with a second sentence. {0} has a third."
        said = [
            feed(stage, "text", delta(text.format(n), end=True), Collected())
            for n, stage in zip("ABCD", stages, strict=True)
        ]
        await asyncio.gather(*said)
        order = "".join(clause[0] for clause in counted.made)
        assert len(order) == 12
        assert set(order[:4]) == set("ABCD")
        assert set(order[4:8]) == set("ABCD")

    asyncio.run(main())


def test_the_next_clause_is_made_while_the_last_is_still_put_out(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = CountedVoice()

    def load(name: str) -> Voice:
        return counted

    monkeypatch.setattr(voices, "load", load)

    async def main() -> None:
        stage, out, room = StreamTts(), Collected(), asyncio.Event()
        stage.ctx = FakeContext()
        await stage.setup()
        counted.made.clear()
        sent = out.send

        async def slowly(port: str, frame: Frame) -> None:
            await sent(port, frame)
            await room.wait()

        out.send = slowly
        text = "One two three. Four five six. " + "And a very long sentence that goes on and on. " * 12
        saying = asyncio.create_task(feed(stage, "text", delta(text, end=True), out))
        await settle(lambda: len(counted.made) >= 2)
        for _ in range(300):
            await asyncio.sleep(0)
        assert len(out.frames) == 1
        assert len(counted.made) < 8  # but not all of it: nobody may want to hear it
        room.set()
        await saying
        assert "".join(f.text for f in out.of("audio")) == text

    asyncio.run(main())


def test_a_voice_that_breaks_is_told_to_whoever_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(CountedVoice):
        def synthesise(self, text: str, *args: Any, **more: Any) -> None:
            if text != "Ready.":
                raise RuntimeError("the library is gone")

    broken = Broken()
    monkeypatch.setattr(voices, "load", lambda name: broken)  # pyright: ignore[reportUnknownArgumentType, reportUnknownLambdaType]

    async def main() -> None:
        stage = StreamTts()
        stage.ctx = FakeContext()
        await stage.setup()
        with pytest.raises(ExceptionGroup) as told:
            await feed(stage, "text", delta("Hello there.", end=True), Collected())
        assert told.value.subgroup(RuntimeError)
        await stage.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "text", ["x" * 10_000, "ab " * 3_000, "Привет, 世界! مرحبا naïve 🎉 ok. ", "\n" * 500, "." * 500]
)
def test_odd_text_passes_the_stage_whole_and_in_pieces(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = CountedVoice()

    def load(name: str) -> Voice:
        return counted

    monkeypatch.setattr(voices, "load", load)

    async def main() -> None:
        stage, out = StreamTts(), Collected()
        stage.ctx = FakeContext()
        await stage.setup()
        counted.made.clear()
        for at in range(0, len(text), 997):
            await feed(stage, "text", delta(text[at : at + 997]), out)
            await feed(stage, "text", delta(""), out)
        await feed(stage, "text", delta("", end=True), out)
        assert "".join(f.text for f in out.of("audio")).strip() == text.strip()
        assert all(len(clause) <= 200 for clause in counted.made)
        await stage.close()

    asyncio.run(main())


def test_no_voice_is_told_at_setup(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> Voice:
        raise NoVoice("there is no voice: install libflite1")

    monkeypatch.setattr(voices, "load", none)

    async def main() -> None:
        stage = StreamTts()
        stage.ctx = FakeContext()
        with pytest.raises(StageError, match=r"'node'.*libflite1"):
            await stage.setup()

    asyncio.run(main())
