"""The camera assistant in a session: pictures and questions on their edges, answers in order, on virtual time."""

from __future__ import annotations

import numpy as np
from graphs import STAGES, run_session, sink_of
from penstock.pipeline import registry
from penstock.pipeline.clock import SECOND
from penstock.pipeline.compiler import compile_text
from penstock.pipeline.frame import EventFrame, TokenFrame, VideoFrame
from penstock.pipeline.stage import Out, Outputs, Ports, Stage
from penstock.pipeline.virtual_loop import run_virtual

GRAPH = """
penstock: 1
graph: assistant
nodes:
  cam:   {use: test.camera}
  watch: {use: vlm.stream, in: {video: 'cam.video|every(250ms)', ask: cam.text}}
  out:   {use: test.sink, in: {text: [watch.answer, watch.event]}}
"""


class Camera(Stage):
    """Ten seconds at 30 fps: dark, then a square walks, then the feed freezes. Asks at the start and at each second."""

    ports = Ports(outputs={"video": Out(VideoFrame, "live"), "text": Out(TokenFrame, "token")})

    async def run(self, out: Outputs) -> None:
        rng = np.random.default_rng(0)
        start = self.ctx.clock.now()
        await out.send("text", TokenFrame(pts=start, text="tell me when something moves"))
        image = np.zeros((120, 160, 3), np.uint8)
        for n in range(300):
            now = self.ctx.clock.now()
            if n < 210:  # afterwards the same picture again and again
                picture = np.full((120, 160, 3), 40 if n < 90 else 120, np.float64)
                x = 20 + (n - 120) if 120 <= n < 150 else 20 if n < 120 else 50
                picture[50:70, x - 10 : x + 10] = 240
                image = np.clip(picture + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)
            await out.send("video", VideoFrame(pts=now, deadline=now + SECOND // 2, image=image))
            if n % 30 == 29:
                await out.send("text", TokenFrame(pts=now, text="is anything moving?"))
            await self.ctx.clock.sleep(SECOND // 30)


def test_it_watches_answers_and_speaks_up_in_a_session() -> None:
    registry.EXTRA.update({**STAGES, "test.camera": Camera})
    try:
        plan = compile_text(GRAPH, "assistant.yaml")
        session = run_virtual(run_session(plan))
    finally:
        for use in (*STAGES, "test.camera"):
            registry.EXTRA.pop(use, None)
    got = [frame for _, _, frame in sink_of(session).got]
    said = [f.text for f in got if isinstance(f, TokenFrame)]
    assert said[0] == "I will tell you when something moves or changes."
    assert said.count("You asked me to tell you: something moves or changes.") == 1
    told = said.index("You asked me to tell you: something moves or changes.")
    assert all(s == "I see nothing move." or s.startswith("I cannot know") for s in said[1:told])
    assert "moves or changes" in said[told + 1]
    assert "It may be frozen" in said[-1]
    names = [f.name for f in got if isinstance(f, EventFrame) and f.name not in ("answered", "spoke_up")]
    assert names[:2] == ["got_lighter", "motion_started"]
    assert names[-1] == "frozen_started"
    utterances = [f.utterance for f in got if isinstance(f, TokenFrame)]
    assert utterances == list(range(1, len(utterances) + 1))
    assert session.failure is None or session.failure == ""
