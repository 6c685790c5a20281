"""A prompt told in words to `diffusion.stream` while it runs."""

from __future__ import annotations

from pathlib import Path

from diffusion_rig import Rig, play, random_weights
from fakes import feed
from penstock.pipeline.frame import TokenFrame


def test_a_line_becomes_the_prompt_and_one_without_a_known_style_changes_nothing(tmp_path: Path) -> None:
    async def scenario(rig: Rig) -> None:
        for text, end in (("oil ", False), ("painting ", True), ("a purple dinosaur", True), ("  ", True)):
            await feed(rig.stage, "prompt", TokenFrame(pts=0, text=text, end=end), rig.out)

    rig = play(Rig(random_weights(tmp_path), prompt="neon"), scenario)
    assert rig.ctx.params == [(rig.ctx.node, {"prompt": "oil painting"})]
    told = [fields for name, fields in rig.ctx.events if name == "diffusion.unknown_style"]
    assert len(told) == 1
    assert "watercolor" in str(told[0]["known"])
