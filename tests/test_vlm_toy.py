"""The trained toy as a stage: it tells what comes and leaves, answers, remembers, and refuses cameras."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from fakes import Collected, FakeContext, feed
from graphs import compile_test, run_session, sink_of
from penstock.models.toy_questions import moment, question
from penstock.models.toy_vlm import WEIGHTS
from penstock.models.toy_world import World
from penstock.pipeline.clock import SECOND
from penstock.pipeline.compiler import compile_text
from penstock.pipeline.errors import GraphError
from penstock.pipeline.frame import EventFrame, TokenFrame
from penstock.pipeline.library import find
from penstock.pipeline.session import Session
from penstock.stages.vlm_toy import ToyMemory, ToyOptions, VlmToy
from penstock.stages.world import WorldFrame
from vlm_play import in_a_file_run, watch_of

Play = Callable[[VlmToy, FakeContext, Collected], Awaitable[None]]


def play_it(play: Play, **options: Any) -> None:
    in_a_file_run(VlmToy(ToyOptions(**options)), play)


def test_the_weights_are_small_and_say_how_good_they_are() -> None:
    from safetensors import safe_open

    assert WEIGHTS.stat().st_size < 4_000_000
    with safe_open(WEIGHTS, "pt") as file:
        assert "qa" in file.metadata()["exam"]


def test_what_it_tells_and_answers_is_mostly_true() -> None:
    truth: list[tuple[int, str, str]] = []
    right: list[bool] = []
    sure: list[float] = []

    async def play(stage: VlmToy, context: FakeContext, out: Collected) -> None:
        for seed in (1, 2):
            world = World((555, seed), rate=0.15)
            for t in range(60):
                tick = world.step()
                at = (100 * seed + t) * SECOND
                await feed(stage, "video", WorldFrame(pts=at, image=tick.image), out)
                if tick.happening:
                    truth.append((at, tick.happening.what, tick.happening.name))
                if t % 6 == 5:
                    await feed(stage, "ask", TokenFrame(pts=at, text="how many shapes?"), out)
                    words = "".join(f.text for f in out.of("answer") if f.pts == at)
                    right.append(words.endswith(("zero", "one", "two", "three")[len(tick.things)]))
                    answered: EventFrame = out.of("event")[-1]
                    sure.append(float(answered.fields["confidence"]))

        told = {(e.pts, e.name, e.fields["thing"]) for e in out.of("event") if "thing" in e.fields}
        hits = len(told & set(truth))
        assert hits >= 0.7 * len(told), "what it says is true"
        assert hits >= 0.7 * len(truth), "what happens is said"
        assert sum(right) >= 0.8 * len(right)
        # it is as sure as it is right, and surer of what is right
        assert abs(sum(sure) - sum(right)) < 0.2 * len(right)

    # two worlds after each other: the cut between them may look like things that leave
    play_it(play)


def test_it_remembers_what_left_in_its_log_and_tells_when_it_was_asked_to() -> None:
    async def play(stage: VlmToy, context: FakeContext, out: Collected) -> None:
        world = World(7, rate=0.3)
        await feed(stage, "ask", TokenFrame(pts=0, text="Tell me when something leaves."), out)
        assert out.of("answer")[-1].text == "I will tell you when something leaves."
        for t in range(60):
            await feed(stage, "video", WorldFrame(pts=t * SECOND, image=world.step().image), out)
        left: list[EventFrame] = [e for e in out.of("event") if e.name == "left"]
        assert left
        said = [f.text for f in out.of("answer")]
        assert sum(s.startswith("You asked me to tell you") for s in said) == 1
        assert [e.fields["wish"] for e in out.of("event") if e.name == "spoke_up"] == ["left"]
        await feed(stage, "ask", TokenFrame(pts=60 * SECOND, text="what left last"), out)
        assert out.of("answer")[-1].text == left[-1].fields["thing"]
        await feed(stage, "ask", TokenFrame(pts=60 * SECOND, text="who is the president"), out)
        assert "does not know the word 'who'" in out.of("answer")[-1].text
        assert watch_of(stage).session.cache.visible <= ToyMemory().tokens

    play_it(play, narrate=False)


def test_what_is_there_now_is_answered() -> None:
    async def play(stage: VlmToy, context: FakeContext, out: Collected) -> None:
        right: list[bool] = []
        for seed in range(20):
            world, rng = World((99, seed), rate=0.0), np.random.default_rng(seed)
            ticks = [world.step() for _ in range(2)]
            for t, tick in enumerate(ticks):
                at = (100 * seed + t) * SECOND
                await feed(stage, "video", WorldFrame(pts=at, image=tick.image), out)
            now = moment(ticks[1], ticks[0].image)
            for wanted in ("exist", "color", "shape", "where"):
                kind, asked, answer = question(rng, now, [], wanted)
                if kind == wanted:
                    out.frames.clear()
                    at = (100 * seed + 2) * SECOND
                    await feed(stage, "ask", TokenFrame(pts=at, text=asked.capitalize() + "?"), out)
                    right.append("".join(f.text for f in out.of("answer")) == answer)
                    assert 0 < out.of("event")[0].fields["confidence"] <= 1
        assert sum(right) >= 0.93 * len(right)
        assert len(right) > 50

    play_it(play)


def test_where_it_looks_is_where_the_thing_is() -> None:
    async def play(stage: VlmToy, context: FakeContext, out: Collected) -> None:
        hits: list[bool] = []
        for seed in range(24):
            world = World((77, seed), rate=0.0)
            ticks = [world.step() for _ in range(3)]
            for t, tick in enumerate(ticks):
                await feed(stage, "video", WorldFrame(pts=(100 * seed + t) * SECOND, image=tick.image), out)
            things = ticks[-1].things
            if len(things) < 2:
                continue
            thing = things[0]
            question = f"what shape is {thing.name.split()[0]}"
            await feed(stage, "ask", TokenFrame(pts=(100 * seed + 3) * SECOND, text=question), out)
            grid = np.array(out.of("importance")[-1].fields["grid"]).reshape(9, 16)
            row, column = np.unravel_index(int(grid.argmax()), grid.shape)
            x, y = (column + 0.5) / 16 * 48, (row + 0.5) / 9 * 48
            hits.append(bool(abs(x - thing.x) < 12 and abs(y - thing.y) < 12))
        assert len(hits) >= 8
        assert sum(hits) >= 0.85 * len(hits)

    play_it(play)


def test_in_a_session_what_it_sees_is_told_to_all_listeners() -> None:
    graph = """
penstock: 1
graph: small
nodes:
  world: {use: synthetic.world, every: 60ms, seed: 3, rate: 0.3, duration: 5s}
  watch: {use: vlm.toy, in: {video: world.video}, fps: 20}
  out:   {use: test.sink, in: {text: [watch.answer, world.truth]}}
"""
    heard: list[tuple[str, str]] = []

    async def listen(session: Session) -> None:
        session.listen(
            lambda e: (
                heard.append((e.name, e.fields["thing"]))
                if e.node == "watch" and "thing" in e.fields
                else None
            )
        )

    session = asyncio.run(run_session(compile_test(graph), meanwhile=listen))
    got = [f for _, _, f in sink_of(session).got]
    true = [(f.name, f.fields["thing"]) for f in got if isinstance(f, EventFrame)]
    assert len(true) > 5
    assert heard
    assert sum(h in true for h in heard) >= 0.7 * len(heard)
    said = {f.text for f in got if isinstance(f, TokenFrame)}
    assert {f"{thing} {what}" for what, thing in heard} <= said
    assert session.runners["watch"].restarts == 0


def test_no_camera_can_be_wired_to_it() -> None:
    text = find("world").read_text()
    compile_text(text, "world.yaml")
    bad = text.replace("video: world.video, ask", "video: cam.video, ask").replace(
        "  vad:", "  cam: {use: webrtc.in, video: 640x480@30}\n  vad:"
    )
    with pytest.raises(GraphError, match="would invent shapes on a camera"):
        compile_text(bad, "bad.yaml")
