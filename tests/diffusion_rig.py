"""`diffusion.stream` alone, with random weights and the engine's part played by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fakes import Collected, FakeContext, InlinePool, feed
from penstock.models.restyle_net import RestyleNet
from penstock.models.restyle_prompt import SIZE
from penstock.pipeline.clock import MS, NEVER, ManualClock
from penstock.pipeline.frame import VideoFrame
from penstock.pipeline.stage import SetParams
from penstock.stages.diffusion import DiffusionStream
from penstock.stages.diffusion_params import DiffusionOptions, DiffusionParams
from safetensors.torch import save_file


def restyle_graph(weights: Path) -> str:
    """A graph that draws a client's pictures anew with the weights of that file."""
    return f"""
penstock: 1
graph: restyle
nodes:
  client: {{use: webrtc.in}}
  restyle: {{use: diffusion.stream, in: client.video, weights: {weights}, device: cpu}}
  out: {{use: webrtc.out, in: {{video: restyle.video}}}}
"""


def random_weights(folder: Path) -> Path:
    torch.manual_seed(0)
    net = RestyleNet(SIZE)
    state = {k: (v + 0.03 * torch.randn_like(v)).contiguous() for k, v in net.state_dict().items()}
    path = folder / "random.safetensors"
    save_file(state, path)
    return path


class Rig:
    """A stage with the engine's part played by hand."""

    def __init__(
        self, weights: Path, *, realtime: bool = True, pool: InlinePool | None = None, **params: Any
    ) -> None:
        self.clock = ManualClock()
        self.ctx = FakeContext(self.clock, realtime=realtime)
        if pool is not None:
            self.ctx.pool = lambda name=None: pool  # type: ignore[method-assign, assignment]
        options = DiffusionOptions(weights=weights, side=64, engine="torch", device="cpu", precision="fp32")
        params = {"follow_motion": False, "skip_still": False, **params}
        self.stage = DiffusionStream(options, DiffusionParams(**params))
        self.stage.ctx = self.ctx
        self.out = Collected()

    async def start(self) -> None:
        await self.stage.setup()
        await self.rest()

    async def rest(self) -> None:
        """Let the worker do all there is to do."""
        for _ in range(60):
            await asyncio.sleep(0)

    async def show(self, image: np.ndarray[Any, Any], *, step_ms: int = 33, deadline: int = NEVER) -> None:
        self.clock.time += step_ms * MS
        await feed(
            self.stage, "video", VideoFrame(pts=self.clock.now(), image=image, deadline=deadline), self.out
        )
        await self.rest()

    async def set(self, **values: Any) -> None:
        await self.stage.control(SetParams(values))

    @property
    def shown(self) -> list[VideoFrame]:
        return self.out.of("video")


def play(rig: Rig, scenario: Callable[[Rig], Any]) -> Rig:
    async def run() -> None:
        await rig.start()
        try:
            await scenario(rig)
        finally:
            await rig.stage.close()

    asyncio.run(run())
    return rig


def picture(seed: int = 0, height: int = 48, width: int = 64) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
