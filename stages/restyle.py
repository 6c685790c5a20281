"""`video.restyle`: the picture redrawn in a style, in a few ms a frame.

These are classical filters: they need no weights and no accelerator, know only the styles that are listed, and
read no prompt. A learned model takes this stage's place later, on the same ports.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ..models import styles
from ..pipeline.frame import Frame, Gap, PixelFormat, VideoFrame
from ..pipeline.pixels import rgb_from_i420, with_rgb
from ..pipeline.stage import DeadlineMissed, In, Out, Outputs, Ports, Stage

StyleName = Literal[
    "none", "pencil", "neon", "cartoon", "watercolor", "oil", "thermal", "noir", "pixel", "blueprint"
]
Image = NDArray[np.uint8]


class RestyleParams(BaseModel):
    """Live parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    style: Annotated[StyleName, Field(title="Style")] = "none"
    strength: Annotated[
        float, Field(title="Strength", ge=0, le=1, description="0 shows the camera's picture")
    ] = 1.0
    detail: Annotated[float, Field(title="Detail", ge=0, le=1, description="Broad strokes to fine ones")] = (
        0.5
    )
    steady: Annotated[
        float, Field(title="Steady", ge=0, le=0.9, description="Calms noise where nothing moves")
    ] = 0.6


def redraw(
    image: Image, format: PixelFormat, params: RestyleParams, previous: Image | None
) -> tuple[Image, Image]:
    """One picture → (its redrawing, the steadied picture to pass as `previous` next time), both (H, W, 3)."""
    rgb = rgb_from_i420(image) if format == "i420" else image
    calm = styles.steady(previous, rgb, params.steady)
    return styles.apply(params.style, calm, params.strength, params.detail), calm


class Restyle(Stage):
    """Restyles each picture in the pool. A picture that would come too late is dropped, not queued."""

    ports = Ports({"video": In(VideoFrame)}, {"video": Out(VideoFrame)})
    Params = RestyleParams

    _previous: Image | None = None  # (H, W, 3) the last steadied picture

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        assert isinstance(frame, VideoFrame)
        params: RestyleParams = self.params
        if params.style == "none" or params.strength == 0:
            self._previous = None
            out.post("video", frame)
            return
        try:
            image, self._previous = await self.ctx.pool().call(
                redraw, frame.image, frame.format, params, self._previous, deadline=frame.deadline
            )
        except DeadlineMissed:
            return  # the pool counts it
        out.post("video", with_rgb(frame, image))

    def gap(self, port: str, gap: Gap, out: Outputs) -> None:
        self._previous = None  # what was before the gap may be another scene
