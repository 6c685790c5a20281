"""`file.in`: a file, URL or capture device as a graph's source; stands in for `webrtc.in` in file runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from ..pipeline.clock import SECOND
from ..pipeline.frame import AudioFrame, Frame, PixelFormat, TokenFrame, VideoFrame
from ..pipeline.stage import Out, Outputs, Ports, Stage, StageError
from ..pipeline.thread_pool import ThreadPool
from ..pipeline.units import Audio, AudioFormat, Duration, Video
from .chat_file import ChatFile
from .media_reader import MediaReader, is_live

log = logging.getLogger(__name__)

PORTS = Ports(
    outputs={
        "video": Out(VideoFrame, "live"),
        "audio": Out(AudioFrame, "live"),
        "text": Out(TokenFrame, "token"),
    }
)


class FileInOptions(BaseModel):
    """path: a media file, URL (rtsp, http, ...), device (/dev/video0), or .txt whose lines are chat. video:
    pictures are fitted inside, never faster than its fps; left out: as they are. audio: 48k/mono/20ms."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = ""
    video: Video | None = None
    audio: Audio | None = None
    format: PixelFormat = "i420"
    realtime: bool | None = None  # pace by the clock; default: in live sessions
    timeout: Duration = Field(default=10 * SECOND, gt=0)  # of a URL that says nothing


class _Reader(Protocol):
    duration: int
    warnings: list[str]

    def read(self) -> list[tuple[str, Frame]] | None: ...
    def close(self) -> None: ...


class FileIn(Stage):
    """Reads media in its own thread and waits for room downstream, so a file run loses nothing.

    In a file run times are the media's, from 0. In a live session they are on the session's clock and a file is
    paced by it; a live source paces itself. `on_progress(pts, duration)` in ns, duration 0 when unknown.
    A damaged or truncated file gives what is there and then a `warning` event.
    """

    ports = PORTS
    Options = FileInOptions

    def __init__(
        self,
        options: BaseModel | None = None,
        params: BaseModel | None = None,
        *,
        path: str | None = None,
        chat: str = "",
        on_progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """chat: a text file whose lines are typed while the media runs."""
        super().__init__(options, params)
        self._chat = ChatFile(chat) if chat else None
        self._path = path or str(getattr(self.options, "path", ""))
        self._on_progress = on_progress
        self._worker = ThreadPool("file-in", 1)
        self._reader: _Reader | None = None

    async def setup(self) -> None:
        """Raises: StageError when there is nothing to read, in words."""
        if not self._path:
            raise StageError("file.in needs path: FILE, URL or device")
        self._reader = await self._worker.call(self._open)

    def _open(self) -> _Reader:
        if Path(self._path).suffix.lower() == ".txt":
            return _Lines(self._path)
        # the options may be those of webrtc.in, which this stage stands in for
        given: Any = self.options
        return MediaReader(
            self._path,
            given.video,
            given.audio or AudioFormat(48_000),
            format=given.format,
            ports=self.ctx.connected & {"video", "audio"},
            timeout_s=getattr(given, "timeout", 10 * SECOND) / SECOND,
        )

    async def run(self, out: Outputs) -> None:
        """Until the media ends. Raises: StageError when a live source breaks off."""
        reader = self._reader
        assert reader is not None
        realtime: bool | None = getattr(self.options, "realtime", None)
        paced = (self.ctx.realtime if realtime is None else realtime) and not is_live(self._path)
        shift: int | None = None
        ahead = asyncio.create_task(self._worker.call(reader.read), name="file.in/read")
        try:
            while (batch := await ahead) is not None:
                ahead = asyncio.create_task(self._worker.call(reader.read), name="file.in/read")
                for port, frame in batch:
                    if shift is None:
                        shift = self.ctx.clock.now() - frame.pts
                    wait = frame.pts + shift - self.ctx.clock.now() if paced else 0
                    if wait > 0:
                        await self.ctx.clock.sleep(wait)
                    for line in self._chat.due(frame.pts) if self._chat else ():
                        await out.send("text", self._timed(line, shift))
                    await out.send(port, self._timed(frame, shift))
                if batch and self._on_progress:
                    self._on_progress(batch[-1][1].pts + batch[-1][1].duration, reader.duration)
            for line in self._chat.due() if self._chat else ():
                await out.send("text", self._timed(line, shift or 0))
        finally:
            ahead.cancel()
        for warning in reader.warnings:
            log.warning("%s", warning)
            self.ctx.emit("warning", message=warning)

    def _timed(self, frame: Frame, shift: int) -> Frame:
        return replace(frame, pts=frame.pts + shift) if self.ctx.realtime else frame

    async def close(self) -> None:
        if self._reader is not None:
            # a read that hangs in the network ends by its own timeout; nobody waits that long
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await self._worker.call(self._reader.close)
            self._reader = None
        self._worker.close()


class _Lines:
    """A text file in the place of media."""

    def __init__(self, path: str) -> None:
        self._chat = ChatFile(path)
        self.duration = self._chat.duration
        self.warnings: list[str] = []

    def read(self) -> list[tuple[str, Frame]] | None:
        line = self._chat.next()
        return [("text", line)] if line else None

    def close(self) -> None:
        self._chat.due()  # nothing more is read
