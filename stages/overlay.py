"""`video.overlay`: captions drawn on the picture: committed words white, words still in doubt gray.

A caption is rendered once, when its words change; each frame then pays only for laying the strip on.
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..pipeline.clock import SECOND
from ..pipeline.frame import Frame, TokenFrame, VideoFrame
from ..pipeline.stage import In, Out, Outputs, Ports, Stage
from .lettering import Strip, lay_on, render

_FADE = SECOND // 2
_KEEP = 400  # characters of what was committed that can still be in the last two lines


class OverlayParams(BaseModel):
    """Live parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    size: Annotated[float, Field(title="Text size", ge=0.02, le=0.15, description="Share of the height")] = (
        0.055
    )
    position: Annotated[Literal["bottom", "top"], Field(title="Position")] = "bottom"
    hold: Annotated[float, Field(title="Hold", ge=0.5, le=30, description="Seconds a caption stays")] = 4.0
    show: Annotated[bool, Field(title="Show captions")] = True


class CaptionOverlay(Stage):
    """Draws what its `text` edges say. A source port named `partial` replaces; any other commits.

    A text in deltas (`end` False) grows in gray until its last delta. Time is that of the pictures: a caption
    stays `hold` seconds from the first picture that shows it, then fades.
    """

    ports = Ports(
        {"video": In(VideoFrame), "text": In(TokenFrame, required=False, many=True)},
        {"video": Out(VideoFrame)},
    )
    Params = OverlayParams

    def __init__(self, options: BaseModel | None = None, params: BaseModel | None = None) -> None:
        super().__init__(options, params)
        self._committed = ""
        self._partial: dict[str, str] = {}  # by source: words still in doubt
        self._changed = False
        self._since = 0  # pts of the first picture with the present words
        self._drawn: tuple[object, ...] = ()  # what the strip shows
        self._strip: Strip | None = None

    def process(self, port: str, frame: Frame, out: Outputs) -> Awaitable[None] | None:
        if isinstance(frame, TokenFrame):
            self._hear(frame, out.source)
            return None
        assert isinstance(frame, VideoFrame)
        params: OverlayParams = self.params
        if self._changed:
            self._changed, self._since = False, frame.pts
        age = frame.pts - self._since
        hold = round(params.hold * SECOND)
        if age > hold + _FADE:
            self._committed, self._partial = "", {}
        partial = " ".join(p for p in self._partial.values() if p)
        if not params.show or not (self._committed or partial):
            out.post("video", frame)
            return None
        wanted = (self._committed, partial, frame.width, frame.height, params.size)
        if wanted != self._drawn:
            return self._draw(wanted, frame, out)
        self._post(frame, age, hold, out)
        return None

    async def _draw(self, wanted: tuple[str, str, int, int, float], frame: VideoFrame, out: Outputs) -> None:
        # no deadline: the words are new, and the next picture needs the strip as much as this one
        self._strip = await self.ctx.pool().call(render, *wanted)
        self._drawn = wanted
        params: OverlayParams = self.params
        self._post(frame, frame.pts - self._since, round(params.hold * SECOND), out)

    def _post(self, frame: VideoFrame, age: int, hold: int, out: Outputs) -> None:
        if self._strip is not None:
            opacity = 1.0 if age <= hold else max(0.0, 1 - (age - hold) / _FADE)
            params: OverlayParams = self.params
            image = lay_on(frame.image, frame.format, self._strip, params.position, opacity)
            frame = replace(frame, image=image)
        out.post("video", frame)

    def _hear(self, frame: TokenFrame, source: str) -> None:
        node, _, port = source.rpartition(".")
        text = " ".join(frame.text.split())
        if port == "partial":
            self._partial[node] = text
        elif not frame.end:
            self._partial[source] = (self._partial.get(source, "") + frame.text)[-_KEEP:]
        else:
            self._partial[node] = ""
            grown = self._partial.pop(source, "")
            line = " ".join((grown + frame.text).split()) if grown else text
            self._committed = f"{self._committed} {line}".strip()[-_KEEP:]
        self._changed = True
