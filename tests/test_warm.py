"""Warm-up: what cannot start is told before the first client comes."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from diffusion_rig import Rig, picture, play, random_weights, restyle_graph
from graphs import AudioWork, compile_test
from penstock.pipeline.clock import LoopClock
from penstock.pipeline.errors import LastingError
from penstock.pipeline.graph import Plan
from penstock.pipeline.warm import warm


async def warmed(plan: Plan) -> str:
    return await warm(plan, LoopClock(asyncio.get_running_loop()))


def test_a_broken_checkpoint_is_told_at_warm_up_and_not_tried_again(tmp_path: Path) -> None:
    broken = tmp_path / "trunc.safetensors"
    broken.write_bytes(random_weights(tmp_path).read_bytes()[:5000])
    plan = compile_test(restyle_graph(broken))
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


def test_a_stage_that_breaks_is_told_and_stops_nothing_else() -> None:
    class Work(AudioWork):
        async def setup(self) -> None:
            raise KeyError("weights")

    plan = compile_test("""
penstock: 1
graph: chain
nodes:
  mic:  {use: test.audio, frames: 50}
  work: {use: test.work, in: mic.audio}
  out:  {use: test.sink, in: work.audio}
""")
    work = replace(plan.nodes["work"], cls=Work)
    assert asyncio.run(warmed(replace(plan, nodes={**plan.nodes, "work": work}))) == "KeyError: 'weights'"


def test_cameras_and_files_are_left_alone_while_the_rest_is_tried(tmp_path: Path) -> None:
    written, broken = tmp_path / "kept.vtt", tmp_path / "none.safetensors"
    written.write_text("of the last run")
    text = f"""
penstock: 1
graph: door
nodes:
  cam: {{use: file.in, path: {tmp_path}/no-camera.mp4}}
  watch: {{use: vlm.stream, in: {{video: cam.video}}}}
  out: {{use: file.out, path: {written}, in: {{text: watch.answer}}}}
"""
    assert asyncio.run(warmed(compile_test(text))) == ""
    assert written.read_text() == "of the last run"
    text += f"""
  restyle: {{use: diffusion.stream, in: cam.video, weights: {broken}, device: cpu}}
  shown: {{use: webrtc.out, in: {{video: restyle.video}}}}
"""
    assert "none.safetensors" in asyncio.run(warmed(compile_test(text)))
