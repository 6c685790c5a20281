"""CommandsAgent: what is said leads to what is done."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.clock import SECOND, ManualClock
from penstock.pipeline.frame import EventFrame, TokenFrame
from penstock.pipeline.stage import StageError
from penstock.stages.agent import CommandsAgent, understand
from penstock.stages.commands import COMMANDS, STYLES

from .fakes import Collected, FakeContext

AFTERNOON = 15 * 3600 * SECOND + 5 * 60 * SECOND  # 1970-01-01 15:05 UTC


def agent(ctx: FakeContext | None = None, **options: str) -> CommandsAgent:
    stage = CommandsAgent(CommandsAgent.Options(**{"restyle": "restyle", "timezone": "UTC", **options}))
    stage.ctx = ctx or FakeContext(ManualClock(AFTERNOON))
    asyncio.run(stage.setup())
    return stage


def typed(stage: CommandsAgent, text: str) -> str:
    out = Collected(epoch=7)
    stage.process("heard", TokenFrame(pts=SECOND, text=text), out)
    return "".join(frame.text for frame in out.of("say"))


def spoken(stage: CommandsAgent, text: str) -> str:
    out = Collected()
    stage.process("heard", TokenFrame(pts=SECOND, until=2 * SECOND, text=text), out)
    return "".join(frame.text for frame in out.of("say"))


@pytest.mark.parametrize(
    ("line", "style"),
    [
        ("pencil sketch", "pencil"),
        ("Pencil scetch!", "pencil"),
        ("NEON", "neon"),
        ("neno", "neon"),
        ("could you make it neon for me, please?", "neon"),
        ("watercolour", "watercolor"),
        ("Black and white, please", "noir"),
        ("pixel art", "pixel"),
        ("thermal style", "thermal"),
        ("switch to cartoon now", "cartoon"),
        ("normal", "none"),
        ("no style", "none"),
        ("go back to normal", "none"),
    ],
)
def test_a_typed_style_is_set(line: str, style: str) -> None:
    ctx = FakeContext()
    assert typed(agent(ctx), line)
    assert ctx.params == [("restyle", {"style": style})]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("what time is it", "It is 3:05 in the afternoon."),
        ("waht tiem is it?", "It is 3:05 in the afternoon."),
        ("hello", "Hello!"),
        ("what can you do", "pencil sketch"),
        ("thanks", "welcome"),
        ("what do you see", "I see nothing yet"),
        ("tell me a story about dragons", "did not understand"),
        ("🎉", "did not understand"),
    ],
)
def test_a_typed_line_is_answered(line: str, words: str) -> None:
    assert words in typed(agent(), line)


@pytest.mark.parametrize("phrase", COMMANDS)
def test_every_phrase_works_spoken(phrase: str) -> None:
    ctx = FakeContext()
    answer = spoken(agent(ctx), phrase)
    assert bool(answer) != (COMMANDS[phrase].intent == "stop")


@pytest.mark.parametrize("noise", ["and then we want", "neno", "you see", "", "make it"])
def test_heard_noise_is_let_pass(noise: str) -> None:
    ctx = FakeContext()
    assert spoken(agent(ctx), noise) == ""
    assert not ctx.params
    assert not ctx.interrupts


def test_stop_interrupts_and_says_nothing() -> None:
    ctx = FakeContext()
    assert typed(agent(ctx), "Stop!") == ""
    assert ctx.interrupts == ["reply"]


def test_it_tells_what_it_sees() -> None:
    stage = agent()
    fields = {"brightness": 0.1, "colour": "blue", "motion": 0.6}
    stage.process("seen", EventFrame(pts=0, name="look", fields=fields), Collected())
    assert typed(stage, "what do you see") == (
        "I see a picture that is dark, mostly blue, with a lot of movement."
    )


def test_what_it_saw_may_lack_anything() -> None:
    stage = agent()
    stage.process("seen", EventFrame(pts=0, name="look", fields={"brightness": None}), Collected())
    assert typed(stage, "what do you see") == "I see a picture."


def test_without_a_restyle_node_it_says_so() -> None:
    assert "no picture" in typed(agent(restyle=""), "neon")


def test_a_style_that_the_node_refuses_is_told() -> None:
    class Refusing(FakeContext):
        def set_params(self, node: str, values: Mapping[str, object]) -> None:
            raise StageError("no style 'neon'")

    assert "could not switch to neon" in typed(agent(Refusing()), "neon")


def test_a_reply_is_one_utterance_with_one_end_and_the_epoch() -> None:
    stage, out = agent(), Collected(epoch=7)
    for _ in range(2):
        stage.process("heard", TokenFrame(pts=SECOND, text="hello"), out)
    frames = out.of("say")
    assert [f.utterance for f in frames if f.end] == [1, 2]
    assert all(f.epoch == 7 for f in frames)


def test_an_unknown_timezone_is_named() -> None:
    with pytest.raises(StageError, match="Mars/Olympus"):
        agent(timezone="Mars/Olympus")


@pytest.mark.parametrize(
    ("hour", "words"),
    [
        (0, "12 o'clock in the morning"),
        (12, "12 o'clock in the afternoon"),
        (17, "5 o'clock in the evening"),
        (21, "9 o'clock at night"),
    ],
)
def test_full_hours_are_said_as_people_do(hour: int, words: str) -> None:
    assert words in typed(agent(FakeContext(ManualClock(hour * 3600 * SECOND))), "time")


@given(st.text(max_size=300))
@settings(max_examples=150, deadline=None)
def test_any_line_gets_a_reply_or_a_command(line: str) -> None:
    reply = typed(agent(), line)
    command = understand(line)
    assert reply or not line.strip() or (command is not None and command.intent == "stop")


def test_styles_are_those_of_the_restyle_stage() -> None:
    assert set(STYLES) == {"none", "pencil", "neon", "cartoon", "thermal", "noir", "pixel", "watercolor"}
