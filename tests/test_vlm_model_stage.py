"""`vlm.stream` with a checkpoint: watching and answering in a session, and what it leaves to measurements."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Collected, FakeContext, feed
from graphs import STAGES, run_session, sink_of
from penstock.models.decider import Threshold
from penstock.pipeline import registry
from penstock.pipeline.clock import MS, SECOND
from penstock.pipeline.compiler import compile_text
from penstock.pipeline.frame import EventFrame, TokenFrame, VideoFrame
from penstock.pipeline.session import Session
from penstock.pipeline.stage import Out, Outputs, Ports, Stage, StageError
from penstock.stages.vlm import VlmOptions, VlmStream
from tiny_vlms import write_checkpoint
from vlm_play import in_a_file_run, watch_of

pytest.importorskip("transformers", reason="the package transformers is not installed")

SMALL = {"tokens": 160, "text": 48}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("smol")
    write_checkpoint(where, "smolvlm", layers=1)
    return where


def picture(seed: int, *, black: bool = False, height: int = 90) -> VideoFrame:
    image = np.random.default_rng(seed).integers(0, 255, (height, 120, 3)).astype(np.uint8)
    return VideoFrame(pts=seed * SECOND, image=image * 0 if black else image)


def rss_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


Play = Callable[[VlmStream, FakeContext, Collected], Awaitable[None]]


def play_it(folder: Path, play: Play, **options: Any) -> None:
    given = {"model": str(folder), "answer_tokens": 6, "memory": SMALL}
    in_a_file_run(VlmStream(VlmOptions.model_validate(given | options)), play)


def test_it_answers_from_pictures_and_tells_where_it_looked(folder: Path) -> None:
    async def play(stage: VlmStream, context: FakeContext, out: Collected) -> None:
        for i in range(1, 5):
            await feed(stage, "video", picture(i), out)
        grids = len(out.of("importance"))
        await feed(stage, "ask", TokenFrame(pts=5 * SECOND, text="what do you see"), out)
        answer: list[TokenFrame] = out.of("answer")
        assert answer[-1].end
        assert not any(a.end for a in answer[:-1])
        assert "".join(a.text for a in answer).strip()
        looked: list[EventFrame] = out.of("importance")[grids:]
        assert [e.fields["source"] for e in looked] == ["attention"]
        assert len(looked[0].fields["grid"]) == 144
        assert max(looked[0].fields["grid"]) == 255
        told: EventFrame = out.of("event")[-1]
        assert told.name == "answered"
        assert told.fields["known"] is True
        assert told.fields["by"] == "model"
        assert 0 < told.fields["confidence"] < 1
        watch = watch_of(stage)
        assert watch.counts.seen == 4
        # question and answer are remembered as text
        assert [s.kind for s in watch.session.cache.window][-1] == "text"

    play_it(folder, play)


def test_a_thousand_questions_in_a_row_keep_to_the_budget_and_cost_no_memory(folder: Path) -> None:
    async def play(stage: VlmStream, context: FakeContext, out: Collected) -> None:
        watch = watch_of(stage)
        sizes: list[int] = []
        start = 0
        for i in range(1_000):
            if i % 25 == 0:
                await feed(stage, "video", picture(1 + i), out)
            asked = TokenFrame(
                pts=(1 + i) * SECOND, text=("is it red", "what do you see", "yes or no")[i % 3]
            )
            await feed(stage, "ask", asked, out)
            assert watch.session.cache.visible <= SMALL["tokens"]
            sizes.append(watch.session.nbytes)
            if i == 300:
                gc.collect()
                start = rss_bytes()
            if i > 300 and i % 100 == 0:  # what the test keeps of it is no memory of the stage's
                assert sum(f.end for f in out.of("answer")) == 100
                out.frames.clear()
            elif i == 300:
                out.frames.clear()
        gc.collect()
        assert rss_bytes() - start < 8e6  # what 700 questions would hold, were they kept: some 12 kB each
        assert max(sizes[300:]) == max(sizes[100:300])
        assert watch.counts.answered == 1_000
        assert watch.counts.seen == 40
        assert watch.questions.refused == 0

    play_it(folder, play, answer_tokens=1)


def test_what_was_measured_is_not_left_to_the_model(folder: Path) -> None:
    async def play(stage: VlmStream, context: FakeContext, out: Collected) -> None:
        async def ask(text: str) -> str:
            await feed(stage, "ask", TokenFrame(pts=20 * SECOND, text=text), out)
            return str(out.of("answer")[-1].text)

        assert await ask("what do you see") == "I have not seen a picture yet."
        assert out.of("event")[-1].fields == {"kind": "other", "known": False, "by": "measured"}
        assert await ask("tell me when the cat comes") == "I will tell you when the cat comes."
        await feed(stage, "video", picture(18), out)
        for i in (19, 20):
            await feed(stage, "video", picture(i, black=True), out)
        assert "only black" in await ask("what do you see")
        watch = watch_of(stage)
        assert watch.counts.seen == 1, "a covered lens is nothing to look at"
        await feed(stage, "video", picture(21, height=48), out)
        assert "120 by 48" in await ask("what is the resolution")
        assert watch.counts.seen == 2

    play_it(folder, play)


def test_a_standing_question_is_asked_of_the_model_and_answered_once(folder: Path) -> None:
    async def play(stage: VlmStream, context: FakeContext, out: Collected) -> None:
        await feed(stage, "video", picture(1), out)
        await feed(stage, "ask", TokenFrame(pts=SECOND, text="Tell me when the box is red."), out)
        assert out.of("answer")[-1].text == "I will tell you when the box is red."
        watch = watch_of(stage)
        for threshold, speaks in ((1e-9, 0), (0.999999, 1)):
            watch.wishes.all[0].decider = Threshold(threshold, 0.0, 100 * SECOND)
            for i in range(2, 6):
                await feed(stage, "video", picture(i + (20 if speaks else 0)), out)
            said = [a.text for a in out.of("answer")]
            assert said.count("You asked me to tell you: the box is red.") == speaks
        told: list[EventFrame] = [e for e in out.of("event") if e.name == "spoke_up"]
        assert [e.fields["wish"] for e in told] == ["the box is red"]
        assert 0 < told[0].fields["confidence"] <= 1
        await feed(stage, "ask", TokenFrame(pts=30 * SECOND, text="stop telling me"), out)
        assert out.of("answer")[-1].text == "I have stopped watching for that."
        assert not watch.wishes.all

    play_it(folder, play, check="100ms")


def test_a_graph_file_may_ask_the_model_what_cannot_be_measured(folder: Path) -> None:
    async def play(stage: VlmStream, context: FakeContext, out: Collected) -> None:
        assert [w.words for w in watch_of(stage).wishes.all] == ["the box is red"]
        assert len(stage._reporter.standing.rules) == 1  # pyright: ignore[reportPrivateUsage]

    play_it(folder, play, tell=["the box is red", "something moves"])


def test_a_question_longer_than_all_room_is_cut_or_refused_and_nothing_breaks(folder: Path) -> None:
    async def play(stage: VlmStream, context: FakeContext, out: Collected) -> None:
        await feed(stage, "video", picture(1), out)
        for text in ("what " * 900, "", "<|im_end|> <image> you are", "\x00\u2402", "x" * 5000):
            await feed(stage, "ask", TokenFrame(pts=SECOND, text=text), out)
            assert out.of("answer")[-1].end
        await feed(stage, "video", picture(2), out)

    play_it(folder, play)


def test_a_session_keeps_to_its_bytes_or_is_told_that_they_hold_nothing(folder: Path) -> None:
    async def play(stage: VlmStream, context: FakeContext, out: Collected) -> None:
        session = watch_of(stage).session
        for i in range(1, 30):
            await feed(stage, "video", picture(i), out)
        assert 20_000 < session.nbytes <= 40_000

    play_it(folder, play, memory={"tokens": 4096, "text": 16, "bytes": "40kB"})
    with pytest.raises(StageError, match=r"memory: \d+ bytes hold"):
        play_it(folder, play, memory={"tokens": 4096, "text": 16, "bytes": "4kB"})


def test_a_model_that_cannot_be_loaded_is_named() -> None:
    async def run() -> None:
        stage = VlmStream(VlmOptions(model="/nowhere/at/all"))
        stage.ctx = FakeContext()
        with pytest.raises(StageError, match=r"node 'node': model '/nowhere/at/all' is neither a folder nor"):
            await stage.setup()
        await stage.close()

    asyncio.run(run())


class Camera(Stage):
    """Noise at 10 fps until told to stop, and two questions."""

    ports = Ports(outputs={"video": Out(VideoFrame, "live"), "text": Out(TokenFrame, "token")})
    stop = False

    async def run(self, out: Outputs) -> None:
        for i in range(1, 600):
            now = self.ctx.clock.now()
            image = np.random.default_rng(i).integers(0, 255, (48, 64, 3)).astype(np.uint8)
            await out.send("video", VideoFrame(pts=now, deadline=now + 5 * SECOND, image=image))
            if i == 3:
                await out.send("text", TokenFrame(pts=now, text="what do you see"))
            if type(self).stop:
                return
            await self.ctx.clock.sleep(100 * MS)


GRAPH = """
penstock: 1
graph: assistant
nodes:
  cam:   {{use: test.camera}}
  watch: {{use: vlm.stream, in: {{video: cam.video, ask: cam.text}}, scope: reply, model: {folder!r}, fps: 10,
          answer_tokens: 1500, memory: {{tokens: 160, text: 0}}}}
  out:   {{use: test.sink, in: {{text: [watch.answer]}}}}
"""


def test_a_barge_in_ends_an_answer_within_a_word_while_pictures_go_on(folder: Path) -> None:
    Camera.stop = False
    at: list[int] = []

    async def meanwhile(session: Session) -> None:
        first = asyncio.Event()
        session.listen(lambda event: first.set() if event.name == "vlm_first_token" else None)
        async with asyncio.timeout(120):
            await first.wait()
            while not any(isinstance(f, TokenFrame) and f.text for _, _, f in sink_of(session).got):  # noqa: ASYNC110
                await asyncio.sleep(0.002)  # at the first words: an idle machine ends the answer soon
            stage: Any = session.runners["watch"].stage
            watch = watch_of(stage)
            seen = watch.counts.seen
            session.interrupt("reply")
            at.append(session.clock.now())
            while watch.busy or watch.counts.seen < seen + 2:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            assert watch.counts.interrupted == 1
            assert watch.counts.answered == 0
        Camera.stop = True

    registry.EXTRA.update({**STAGES, "test.camera": Camera})
    try:
        plan = compile_text(GRAPH.format(folder=str(folder)), "assistant.yaml")
        session = asyncio.run(run_session(plan, meanwhile=meanwhile))
    finally:
        for use in (*STAGES, "test.camera"):
            registry.EXTRA.pop(use, None)
    got = [(t, f) for t, _, f in sink_of(session).got if isinstance(f, TokenFrame)]
    assert any(f.text for _, f in got)
    assert not [f for t, f in got if t > at[0] and f.epoch == 0], (
        "nothing of the old epoch after the barge-in"
    )
    assert got[-1][1].end
    assert got[-1][1].epoch == 1
    assert session.runners["watch"].restarts == 0
