"""The edge client's pictures: a device, a file, a URL or a test picture, read on a thread of its own."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from dataclasses import replace

from ..pipeline.clock import SECOND, Clock
from ..pipeline.frame import VideoFrame
from ..pipeline.pixels import i420_from_rgb
from ..pipeline.stage import StageError
from ..pipeline.units import AudioFormat, VideoFormat
from .media_reader import MediaReader
from .synthetic import picture

log = logging.getLogger(__name__)

STOP = 2.0  # s that a reading thread may take to end
REOPEN = 2.0  # s between tries, when a device has gone


class Camera:
    """`start` gives each picture (4:2:0, pts on the clock) to `on_picture`, on the loop, at the source's own pace.

    A file is played in a loop unless `once`. `ended` is set when there is no more to come; `failure` says why, empty
    after the end of a file. A device or stream that breaks off is opened again.
    """

    def __init__(
        self,
        source: str,
        form: VideoFormat,
        clock: Clock,
        on_picture: Callable[[VideoFrame], None],
        *,
        once: bool = False,
    ) -> None:
        self.source = source
        self.form = form
        self.clock = clock
        self.once = once
        self.ended = asyncio.Event()
        self.failure = ""
        self._on_picture = on_picture
        self._loop = asyncio.get_running_loop()
        self._stop = threading.Event()
        self._waiting: VideoFrame | None = None  # only the newest waits for the loop
        self._thread: threading.Thread | None = None

    async def start(self) -> None:
        """Raises: StageError when the source cannot be opened."""
        reader = None
        if self.source != "synthetic":
            reader = await self._loop.run_in_executor(None, self._open)
        self._thread = threading.Thread(target=self._run, args=(reader,), name="camera", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Bounded by STOP, idempotent."""
        self._stop.set()
        if self._thread is not None:
            await self._loop.run_in_executor(None, self._thread.join, STOP)

    def _open(self) -> MediaReader:
        reader = MediaReader(
            self.source, self.form, AudioFormat(48_000), format="i420", ports=frozenset({"video"})
        )
        if not reader.has_video:
            reader.close()
            raise StageError(f"{self.source!r} has no pictures")
        return reader

    # ------------------------------------------------------------ on the thread

    def _run(self, reader: MediaReader | None) -> None:
        try:
            if reader is None:
                self._draw()
            while reader is not None and not self._stop.is_set():
                reader = self._play(reader)
        except StageError as e:
            self.failure = str(e)
        except Exception as e:  # boundary: the client must hear that its camera is gone
            log.exception("the camera's thread failed")
            self.failure = f"{type(e).__name__}: {e}"
        self._call(self.ended.set)

    def _draw(self) -> None:
        start = self.clock.now()
        number = 0
        period = round(SECOND / (self.form.fps or 30))
        while not self._stop.wait(max(0, start + number * period - self.clock.now()) / SECOND):
            image = i420_from_rgb(picture(number * period, self.form))
            self._give(VideoFrame(pts=start + number * period, image=image, format="i420"))
            number = max(number + 1, (self.clock.now() - start) // period)  # late ones are left out

    def _play(self, reader: MediaReader) -> MediaReader | None:
        """Once through; returns the reader to go on with."""
        start = self.clock.now()
        try:
            while not self._stop.is_set() and (batch := reader.read()) is not None:
                for _, frame in batch:
                    if not isinstance(frame, VideoFrame):
                        continue
                    if reader.live:
                        self._give(replace(frame, pts=self.clock.now()))
                    elif self._stop.wait(max(0, start + frame.pts - self.clock.now()) / SECOND):
                        return None
                    else:
                        self._give(replace(frame, pts=start + frame.pts))
        except StageError as e:
            if not reader.live:
                raise
            log.warning("%s; trying again", e)
        finally:
            reader.close()
        if self._stop.is_set() or (self.once and not reader.live):
            return None
        if not reader.live:
            return self._open()
        while not self._stop.wait(REOPEN):
            try:
                return self._open()
            except StageError as e:
                log.info("%s", e)
        return None

    def _give(self, frame: VideoFrame) -> None:
        before, self._waiting = self._waiting, frame
        if before is None:
            self._call(self._arrive)

    def _arrive(self) -> None:
        frame, self._waiting = self._waiting, None
        if frame is not None:
            self._on_picture(frame)

    def _call(self, function: Callable[[], None]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function)
