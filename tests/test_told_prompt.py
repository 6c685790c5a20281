"""A prompt told in words to `diffusion.stream` while it runs."""

from __future__ import annotations

from pathlib import Path

from diffusion_rig import Rig, play, random_weights
from fakes import FakeContext, feed
from penstock.pipeline.frame import TokenFrame
from penstock.stages.told_prompt import LONGEST, ToldPrompt


def test_a_line_becomes_the_prompt_and_one_without_a_known_style_changes_nothing(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        for text, end in (("oil ", False), ("painting ", True), ("a purple dinosaur", True), ("  ", True)):
            await feed(rig.stage, "prompt", TokenFrame(pts=0, text=text, end=end), rig.out)

    rig = play(Rig(random_weights(tmp_path), prompt="neon"), scenario)
    assert rig.ctx.params == [(rig.ctx.node, {"prompt": "oil painting"})]
    told = [fields for name, fields in rig.ctx.events if name == "diffusion.unknown_style"]
    assert len(told) == 1
    assert "watercolor" in str(told[0]["known"])


def test_sources_do_not_mix_and_what_was_not_ended_is_forgotten() -> None:
    ctx = FakeContext()
    told = ToldPrompt(ctx, "")
    for source, utterance, epoch, text, end in (
        ("reply.text", 1, 0, "I will draw an oil pain", False),  # a barge-in: it never ends
        ("chat.text", 1, 0, "a p", False),
        ("reply.text", 2, 1, "sepia", False),
        ("chat.text", 1, 0, "encil", True),
        ("reply.text", 2, 1, " sketch", True),
        ("reply.text", 2, 2, "x" * LONGEST, False),
        ("reply.text", 2, 2, "x" * LONGEST, False),
        ("reply.text", 2, 2, "", True),
    ):
        told.hear(TokenFrame(pts=0, text=text, end=end, utterance=utterance, epoch=epoch), source)
    assert [values["prompt"] for _, values in ctx.params] == ["a pencil", "sepia sketch", "x" * LONGEST]
