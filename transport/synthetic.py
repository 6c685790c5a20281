"""`synthetic.in`: a test picture that moves and a beep that flashes with it: no camera, no file.

The beep begins with the flash of each second, so that both ends of any path can be checked for lip sync. It holds
no speech.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from ..pipeline.clock import MS, SECOND
from ..pipeline.frame import AudioFrame, Frame, PixelFormat, VideoFrame
from ..pipeline.pixels import i420_from_rgb
from ..pipeline.stage import Outputs, Stage
from ..pipeline.units import Audio, AudioFormat, Duration, Video, VideoFormat
from .chat_file import ChatFile
from .file_in import PORTS

BEEP = 100 * MS  # at the start of each second
BEEP_HZ = 440
_BARS = (
    (235, 235, 235),
    (235, 235, 16),
    (16, 235, 235),
    (16, 235, 16),
    (235, 16, 235),
    (235, 16, 16),
    (16, 16, 235),
)


class SyntheticOptions(BaseModel):
    """duration: how long; left out: until the session ends. video 640x480@30, audio 48k/mono/20ms."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    duration: Duration | None = None
    video: Video | None = None
    audio: Audio | None = None
    format: PixelFormat = "rgb24"


def picture(pts: int, video: VideoFormat) -> NDArray[np.uint8]:
    """(H, W, 3) RGB: colour bars, a bouncing ball, the time, and a white square for the first 100 ms of a second."""
    height, width = video.height, video.width
    image = np.empty((height, width, 3), np.uint8)
    edges = [width * n // len(_BARS) for n in range(len(_BARS) + 1)]
    for left, right, colour in zip(edges, edges[1:], _BARS, strict=False):
        image[:, left:right] = colour
    image[height * 3 // 4 :] = np.linspace(0, 255, width).astype(np.uint8)[None, :, None]
    radius = max(2, height // 12)
    seconds = pts / SECOND
    x = round(radius + (width - 2 * radius) * (0.5 + 0.5 * np.sin(seconds * 1.1)))
    y = round(radius + (height * 3 // 4 - 2 * radius) * abs(np.cos(seconds * 2.3)))
    cv2.circle(image, (x, y), radius, (250, 120, 20), -1, cv2.LINE_AA)
    cv2.circle(image, (x, y), radius, (20, 20, 20), max(1, radius // 10), cv2.LINE_AA)
    side = height // 8
    image[:side, :side] = 255 if pts % SECOND < BEEP else 0
    clock = f"{int(seconds) // 60:02}:{seconds % 60:06.3f}"
    place, size = (side + 8, round(side * 0.75)), height / 480
    cv2.putText(
        image, clock, place, cv2.FONT_HERSHEY_DUPLEX, size, (0, 0, 0), max(1, round(5 * size)), cv2.LINE_AA
    )
    cv2.putText(
        image, clock, place, cv2.FONT_HERSHEY_DUPLEX, size, (255,) * 3, max(1, round(size)), cv2.LINE_AA
    )
    return image


def sound(first: int, count: int, audio: AudioFormat) -> NDArray[np.int16]:
    """(count, C) int16 from sample `first` on: a quarter-scale tone in the first 100 ms of each second."""
    n = first + np.arange(count)
    on = n % audio.rate_hz < audio.rate_hz * BEEP // SECOND
    tone = np.where(on, 8000 * np.sin(2 * np.pi * BEEP_HZ * n / audio.rate_hz), 0).astype(np.int16)
    return np.repeat(tone[:, None], audio.channels, axis=1)


class SyntheticIn(Stage):
    """The test source, with the ports of `webrtc.in`. Paced by the clock in live sessions only."""

    ports = PORTS
    Options = SyntheticOptions

    def __init__(
        self,
        options: BaseModel | None = None,
        params: BaseModel | None = None,
        *,
        duration: int | None = None,
        chat: str = "",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """chat: a text file whose lines are typed meanwhile."""
        super().__init__(options, params)
        self._chat = ChatFile(chat) if chat else None
        self._duration = duration if duration is not None else getattr(self.options, "duration", None)
        self._on_progress = on_progress

    async def run(self, out: Outputs) -> None:
        """Until the duration is over."""
        given = self.options
        video: VideoFormat = given.video or VideoFormat(640, 480, 30.0)
        audio: AudioFormat = given.audio or AudioFormat(48_000)
        fps = video.fps or 30.0
        start = self.ctx.clock.now() if self.ctx.realtime else 0
        step = audio.rate_hz * audio.frame // SECOND
        pictures = blocks = 0
        wanted = self.ctx.connected & {"video", "audio"}
        while wanted:
            at_picture, at_block = round(pictures * SECOND / fps), blocks * step * SECOND // audio.rate_hz
            sound_next = "video" not in wanted or ("audio" in wanted and at_block <= at_picture)
            at = at_block if sound_next else at_picture
            if self._duration is not None and at >= self._duration:
                break
            if self.ctx.realtime:
                await self.ctx.clock.sleep(max(0, start + at - self.ctx.clock.now()))
            for line in self._chat.due(at) if self._chat else ():
                await out.send("text", replace(line, pts=start + line.pts))
            frame: Frame
            if sound_next:
                pcm = sound(blocks * step, step, audio)
                frame = AudioFrame(pts=start + at, pcm=pcm, rate_hz=audio.rate_hz)
                blocks += 1
            else:
                image = await self.ctx.pool().call(_draw, at, video, given.format)
                frame = VideoFrame(pts=start + at, image=image, format=given.format)
                pictures += 1
            await out.send("audio" if sound_next else "video", frame)
            if self._on_progress:
                self._on_progress(at, self._duration or 0)
        for line in self._chat.due() if self._chat else ():
            await out.send("text", replace(line, pts=start + line.pts))


def _draw(pts: int, video: VideoFormat, format: PixelFormat) -> NDArray[np.uint8]:
    image = picture(pts, video)
    return i420_from_rgb(image) if format == "i420" else image
