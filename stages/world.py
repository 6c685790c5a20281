"""`synthetic.world`: coloured shapes that come, move and leave, with the truth beside the pictures.

A source for trying out streaming vision without a camera: everything that can be asked about it is known exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..models.toy_world import SIZE, World
from ..pipeline.clock import MS, SECOND
from ..pipeline.frame import EventFrame, VideoFrame
from ..pipeline.stage import Out, Outputs, Ports, Stage
from ..pipeline.units import Duration

FILE_RUN = 10 * SECOND  # of world without a `duration`


@dataclass(frozen=True, slots=True, kw_only=True)
class WorldFrame(VideoFrame):
    """A picture of the synthetic world. Stages that know nothing else take only this: a camera does not fit."""


class WorldOptions(BaseModel):
    """seed: which world. every: between two pictures. scale: pixels of the picture for one of the world's 48.
    rate: chance that something comes or leaves. duration: how long; left out: until the session ends, and 10 s
    in a file run, which would have no end otherwise."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(default=0, ge=0)
    every: Duration = Field(default=500 * MS, ge=10 * MS)
    scale: int = Field(default=8, ge=1, le=40)
    rate: float = Field(default=0.2, ge=0, le=1)
    duration: Duration | None = None


class SyntheticWorld(Stage):
    """Pictures, and what came and left as events."""

    ports = Ports(outputs={"video": Out(WorldFrame, "live"), "truth": Out(EventFrame, "token")})
    Options = WorldOptions

    async def run(self, out: Outputs) -> None:
        options: WorldOptions = self.options
        world = World(options.seed, options.rate)
        duration = options.duration
        if duration is None and not self.ctx.realtime:
            duration = FILE_RUN
        start, at = self.ctx.clock.now(), 0
        while duration is None or at < duration:
            if self.ctx.realtime:
                await self.ctx.clock.sleep(max(0, start + at - self.ctx.clock.now()))
            pts = start + at if self.ctx.realtime else at
            tick = world.step()
            image = np.kron(tick.image, np.ones((options.scale, options.scale, 1), np.uint8))
            assert image.shape[0] == SIZE * options.scale
            await out.send("video", WorldFrame(pts=pts, image=image))
            if tick.happening is not None:
                fields = {"thing": tick.happening.name}
                await out.send("truth", EventFrame(pts=pts, name=tick.happening.what, fields=fields))
            at += options.every
