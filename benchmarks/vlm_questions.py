"""`vlm.stream` with a model under bad input: no picture yet, black, frozen, another size, and 1,000 questions in a row."""

from __future__ import annotations

import gc
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from penstock.pipeline.clock import SECOND
from penstock.pipeline.frame import TokenFrame, VideoFrame
from penstock.stages.vlm import VlmOptions, VlmStream
from report import line, rss_mb

sys.path.append(str(Path(__file__).parent.parent / "tests"))
QUESTIONS = 1_000


def main() -> dict[str, object]:
    from fakes import Collected, FakeContext, feed
    from tiny_vlms import write_checkpoint
    from vlm_play import in_a_file_run, watch_of

    figures: dict[str, object] = {}
    rng = np.random.default_rng(0)

    async def play(stage: VlmStream, context: FakeContext, out: Collected) -> None:
        now = 0
        image = np.zeros((90, 120, 3), np.uint8)

        async def show(picture: np.ndarray | None = None, times: int = 1) -> None:
            nonlocal now, image
            image = rng.integers(0, 255, (90, 120, 3)).astype(np.uint8) if picture is None else picture
            for _ in range(times):
                now += SECOND
                await feed(stage, "video", VideoFrame(pts=now, image=image), out)

        async def ask(text: str) -> str:
            out.frames.clear()
            await feed(stage, "ask", TokenFrame(pts=now, text=text), out)
            return "".join(f.text for f in out.of("answer"))

        said = {"before_the_first_picture": await ask("what do you see")}
        await show(times=3)
        await show(np.zeros((90, 120, 3), np.uint8), 3)
        said["black"] = await ask("what do you see")
        await show()
        await show(image, 4)
        said["frozen"] = await ask("what do you see")
        await show(rng.integers(0, 255, (48, 64, 3)).astype(np.uint8), 2)
        said["another_size"] = await ask("what is the resolution")
        await show(times=2)
        right = (
            said["before_the_first_picture"] == "I have not seen a picture yet.",
            "only black" in said["black"],
            "may be frozen" in said["frozen"],
            "64 by 48" in said["another_size"],
        )
        line(bad_input=said, right=sum(right), of=len(right))
        figures["bad_input_right"] = f"{sum(right)} of {len(right)}"
        watch, start, spent = watch_of(stage), 0.0, time.process_time()
        for i in range(QUESTIONS):
            if i % 25 == 0:
                await show()
            await ask(("is it red", "what do you see", "yes or no")[i % 3])
            if i == QUESTIONS // 5:
                gc.collect()
                start = rss_mb()
        gc.collect()
        grown = round(rss_mb() - start, 2)
        ms = round(1e3 * (time.process_time() - spent) / QUESTIONS, 1)
        line(questions_in_a_row=QUESTIONS, answered=watch.counts.answered, refused=watch.questions.refused,
             visible_tokens=watch.session.cache.visible, session_kb=watch.session.nbytes // 1000,
             rss_growth_mb_last_800=grown, cpu_ms_each=ms)  # fmt: skip
        figures["questions_in_a_row_answered"] = watch.counts.answered
        figures["questions_in_a_row_rss_growth_mb"] = grown

    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), "smolvlm", layers=1)
        options = {"model": folder, "answer_tokens": 2, "memory": {"tokens": 160, "text": 48}}
        in_a_file_run(VlmStream(VlmOptions.model_validate(options)), play)
    return figures
