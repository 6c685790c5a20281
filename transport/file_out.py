"""`file.out`: media and text files as a graph's sink; stands in for `webrtc.out` in file runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from ..pipeline.errors import LastingError
from ..pipeline.frame import AudioFrame, Frame, TokenFrame, VideoFrame
from ..pipeline.stage import In, Outputs, Ports, Stage, StageError
from ..pipeline.thread_pool import ThreadPool
from .captions import TEXT_SUFFIXES, CaptionFile
from .media_writer import MediaWriter, container_of

log = logging.getLogger(__name__)

_AHEAD = 4  # frames given to the encoder's thread before the graph waits for it


class FileOutOptions(BaseModel):
    """path: .mp4 .mkv .webm .mov .ts .m3u8 (HLS), sound .wav .flac .mp3 .m4a .ogg, text .vtt .srt .txt .jsonl, or a URL."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str = ""


class FileOut(Stage):
    """Encodes in its own thread. Each path takes what it can hold: pictures and sound, or text.

    The graph waits for the encoder, so nothing is lost. What is there when a run is stopped is kept; a run that
    gave a file nothing leaves no file.
    """

    ports = Ports(
        {
            "video": In(VideoFrame, required=False),
            "audio": In(AudioFrame, required=False),
            "text": In(TokenFrame, required=False, many=True),
        }
    )
    Options = FileOutOptions

    def __init__(
        self,
        options: BaseModel | None = None,
        params: BaseModel | None = None,
        *,
        paths: Sequence[str] = (),
    ) -> None:
        super().__init__(options, params)
        own = str(getattr(self.options, "path", ""))
        self._paths = list(paths) or ([own] if own else [])
        self._worker = ThreadPool("file-out", 1)
        self._pending: deque[asyncio.Task[None]] = deque()
        self._media: list[MediaWriter] = []
        self._text: list[CaptionFile] = []
        self._origin: int | None = None
        self._closed = False

    async def setup(self) -> None:
        """Raises: StageError when a path cannot be written, before anything runs."""
        if not self._paths:
            raise StageError("file.out needs path: FILE or URL")
        if len(set(self._paths)) < len(self._paths):
            raise StageError(f"one file is named twice: {', '.join(self._paths)}")
        await self._worker.call(self._open)

    def _open(self) -> None:
        for path in self._paths:
            if Path(path).suffix.lower() in TEXT_SUFFIXES:
                if "text" not in self.ctx.connected:
                    raise StageError(f"{path!r} holds text, and the graph has none")
                try:
                    self._text.append(CaptionFile(Path(path)))
                except OSError as e:
                    raise StageError(f"cannot write {path!r}: {e.strerror}") from e
                continue
            kind = container_of(path)
            held = {port for port, codec in (("video", kind.video), ("audio", kind.audio)) if codec}
            if not held & self.ctx.connected:
                raise StageError(f"{path!r} holds {' and '.join(sorted(held))}, and the graph has none")
            self._media.append(MediaWriter(path, self.ctx.connected, live=self.ctx.realtime))

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        if self._origin is None:
            # a live session's clock starts anywhere; a file run's at 0
            self._origin = frame.pts if self.ctx.realtime else 0
            for writer in self._media:
                writer.origin = self._origin
        if isinstance(frame, TokenFrame):
            if self._text:
                await self._submit(self._write_text, frame, out.source)
        elif isinstance(frame, (VideoFrame, AudioFrame)) and self._media:
            await self._submit(self._write_media, frame)

    def _write_media(self, frame: Frame) -> None:
        for writer in self._media:
            try:
                if isinstance(frame, VideoFrame):
                    writer.video(frame)
                elif isinstance(frame, AudioFrame):
                    writer.audio(frame)
            except StageError as e:
                if writer.to_url:
                    raise
                raise LastingError(str(e)) from e  # a new writer would write over the file

    def _write_text(self, frame: TokenFrame, source: str) -> None:
        for file in self._text:
            try:
                file.write(frame, source, self._origin or 0)
            except OSError as e:
                raise LastingError(f"cannot write {str(file.path)!r}: {e.strerror}") from e

    async def _submit(self, fn: Callable[..., None], *args: Any) -> None:
        """Hand work to the thread, in order; wait when it is `_AHEAD` behind. Raises what earlier work raised."""
        while len(self._pending) >= _AHEAD or (self._pending and self._pending[0].done()):
            await self._pending.popleft()
        self._pending.append(asyncio.create_task(self._worker.call(fn, *args), name="file.out/write"))

    async def finish(self, out: Outputs) -> None:
        """The graph has ended: complete the files."""
        while self._pending:
            await self._pending.popleft()
        await self._worker.call(self._finish, True)

    def _finish(self, ended: bool) -> None:
        media, self._media = self._media, []
        text, self._text = self._text, []
        for file in text:
            try:
                file.close(ended)
            except OSError as e:
                log.error("the end of %s could not be written: %s", file.path, e.strerror)
        failed: StageError | None = None
        for writer in media:
            try:
                if not writer.finish() and ended:
                    log.warning("%s was not written: the graph gave it nothing", writer.path)
            except StageError as e:
                failed = e
            if writer.skipped:
                log.warning("%s: %d pictures had no new time and were skipped", writer.path, writer.skipped)
        if failed is not None:
            raise LastingError(str(failed)) from failed

    async def close(self) -> None:
        """Also after a failure or a stop: what was written so far becomes a valid file."""
        for task in self._pending:
            task.cancel()
        # what the cancelled tasks raise is of no use: the run has ended already
        await asyncio.gather(*self._pending, return_exceptions=True)
        self._pending.clear()
        if self._closed:
            return
        self._closed = True
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.9):  # of the session's second for closing
                    await self._worker.call(self._finish, False)
        finally:
            self._worker.close()
