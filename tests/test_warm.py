"""Warm-up: what cannot start is told before the first client comes."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from diffusion_rig import Rig, picture, play, random_weights
from graphs import compile_test
from penstock.pipeline.clock import LoopClock
from penstock.pipeline.errors import LastingError
from penstock.pipeline.graph import Plan
from penstock.pipeline.warm import warm


async def warmed(plan: Plan) -> str:
    return await warm(plan, LoopClock(asyncio.get_running_loop()))


def test_a_broken_checkpoint_is_told_at_warm_up_and_not_tried_again(tmp_path: Path) -> None:
    broken = tmp_path / "trunc.safetensors"
    broken.write_bytes(random_weights(tmp_path).read_bytes()[:5000])
    plan = compile_test(f"""
penstock: 1
graph: restyle
nodes:
  client: {{use: webrtc.in}}
  restyle: {{use: diffusion.stream, in: client.video, weights: {broken}, device: cpu}}
  out: {{use: webrtc.out, in: {{video: restyle.video}}}}
""")
    told = asyncio.run(warmed(plan))
    assert told.startswith(f"node 'restyle': {broken} is no readable safetensors file: ")
    assert "\n" not in told
    rig = Rig(broken)

    async def scenario(rig: Rig) -> None:
        with pytest.raises(LastingError, match="is no readable safetensors file"):
            await rig.stage.loaded()
        with pytest.raises(LastingError):
            await rig.show(picture())

    play(rig, scenario)
