"""Pictures on their way out: what the encoder of one connection asks for next is always the newest."""

from __future__ import annotations

import asyncio
import contextlib
from fractions import Fraction

import av
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack

from ..pipeline.clock import SECOND
from ..pipeline.frame import VideoFrame
from .encoders import VideoEncoder, make_video_encoder
from .fit import to_av

VIDEO_RATE = 90_000  # Hz, the RTP clock of all video payloads (RFC 3551 section 5)
STILL = 0.1  # s without a new picture, then a keyframe is made of the last one


class VideoOut(MediaStreamTrack):
    """Sends the newest picture; one that was not yet taken is replaced, never queued."""

    kind = "video"

    def __init__(self) -> None:
        super().__init__()
        self._frame: VideoFrame | None = None
        self._shown: VideoFrame | None = None
        self._fresh = asyncio.Event()
        self._origin: int | None = None
        self._last = -1
        self.fps = 30.0  # at which pictures come, smoothed
        self._came: int | None = None
        self.replaced = 0
        self.sent = 0
        self.skipped = 0  # by the sender, where the network carries less
        self.limit_bps = 0  # that the far end has use for; 0: as much as the path carries
        self.beside_bps = 0  # of what the path carries, that another track of the connection is to have
        self.stamps_capture = (
            False  # sender reports tell when pictures were captured, as those of live sound do
        )
        self.keyframe_gap = 0  # ns, the most between two; 0: only when asked for

    def make_encoder(self, codec: str, bitrate_bps: int) -> VideoEncoder:
        """Raises: ValueError."""
        return make_video_encoder(codec, bitrate_bps)

    def show(self, frame: VideoFrame) -> None:
        if self._frame is not None:
            self.replaced += 1
        if self._came is not None and 0 < frame.pts - self._came < SECOND:
            self.fps += 0.1 * (SECOND / (frame.pts - self._came) - self.fps)
        self._came = frame.pts
        self._frame = frame
        self._fresh.set()

    async def wait(self) -> None:
        """Until there is a picture to take. Raises: MediaStreamError at the end."""
        while self._frame is None:
            if self.readyState != "live":
                raise MediaStreamError
            self._fresh.clear()
            await self._fresh.wait()
            if self._frame is None and self.readyState == "live":
                return await self._woken()

    async def _woken(self) -> None:
        """Somebody asked for a keyframe while no picture is there: the last one serves, if it has to."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STILL):
                while self._frame is None and self.readyState == "live":
                    self._fresh.clear()
                    await self._fresh.wait()
        if self._frame is None:
            self._frame = self._shown
        await self.wait()

    def wake(self) -> None:
        """The far end needs a picture soon, even if nothing moves."""
        if self._frame is None:
            self._fresh.set()

    def take(self) -> tuple[VideoFrame, int]:
        """The newest picture and its time, 1/90,000 s, always after the last. Only after `wait`."""
        frame, self._frame = self._frame, None
        assert frame is not None
        self._shown = frame
        if self._origin is None:
            self._origin = frame.pts
        self._last = max(self._last + 1, (frame.pts - self._origin) * VIDEO_RATE // SECOND)
        self.sent += 1
        return frame, self._last

    async def recv(self) -> av.VideoFrame:
        """The next picture, even-sized, at a timestamp after the last. Raises: MediaStreamError at the end."""
        await self.wait()
        frame, pts = self.take()
        picture = to_av(frame)
        picture.pts = pts
        picture.time_base = Fraction(1, VIDEO_RATE)
        return picture

    def stop(self) -> None:
        super().stop()
        self._fresh.set()
