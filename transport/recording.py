"""One session's recording: segments of media and a file of what happened, side by side. Blocking.

`FOLDER/0001.mkv` holds pictures and sound, `0001.voice.mka` a second sound (a reply's), `events.jsonl` one JSON object
a line. A segment is `NNNN.part.mkv` while it is written and plays as it is when the process dies; the end of it that is
lost is a second at most.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av.error

from ..pipeline.clock import MS, SECOND
from ..pipeline.frame import AudioFrame, Frame, VideoFrame
from ..pipeline.stage import StageError
from .disk_room import DiskRoom
from .media_writer import MediaWriter

LOOK = 5 * SECOND  # between two looks at the disk
RETRY = 10 * SECOND  # after one that found no room
LATE_START = 2 * SECOND  # a stream that has not begun by then starts with silence, or not at all


class Recording:
    """connected: which of "video", "audio" and "voice" the graph gives. segment: ns of media in one file.

    What cannot be written is left out and told by `why`; nothing raises after the start.
    """

    def __init__(self, folder: Path, connected: frozenset[str], segment: int, room: DiskRoom) -> None:
        self.folder = folder
        self.segment = segment
        self.room = room
        self.why = ""  # nothing is written now, because; empty while all is well
        self.segments = 0  # begun so far
        self.lost = 0  # frames that were not written
        self._main = connected & {"video", "audio"}
        self._voice = "voice" in connected
        self._writers: dict[str, MediaWriter] = {}  # by suffix
        self._began = 0  # pts of the first frame of this segment
        self._looked = 0
        self._origin: int | None = None
        self._events = -1
        try:
            folder.mkdir(parents=True, mode=0o700, exist_ok=True)
            self._events = os.open(folder / "events.jsonl", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        except OSError as e:
            raise StageError(f"cannot record to {str(folder)!r}: {e.strerror}") from e

    def media(self, port: str, frame: Frame) -> None:
        """Take a picture, sound, or sound of the port `voice`."""
        if self._origin is None:
            self._origin = frame.pts
        if not self._may_write(frame.pts):
            self.lost += 1
            return
        suffix = ".voice.mka" if port == "voice" else ".mkv"
        try:
            writer = self._writers.get(suffix) or self._open(suffix)
            if isinstance(frame, VideoFrame):
                writer.video(frame)
            elif isinstance(frame, AudioFrame):
                writer.audio(frame)
        except (StageError, av.error.FFmpegError, OSError) as e:
            self.lost += 1
            self._give_up(e, frame.pts)

    def event(self, pts: int, line: Mapping[str, Any]) -> None:
        """Append one line. Lost, and counted, when the disk does not take it."""
        at = max(0, pts - (pts if self._origin is None else self._origin)) // MS
        try:
            data = json.dumps({"at_ms": at, "segment": self.segments, **line}, default=str).encode() + b"\n"
            while data:
                data = data[os.write(self._events, data) :]
        except OSError as e:
            self.lost += 1
            self.why = self.why or f"cannot write {self.folder / 'events.jsonl'}: {e.strerror}"

    def finish_segment(self) -> None:
        """Complete the files that are being written; the next frame begins new ones."""
        writers, self._writers = self._writers, {}
        for writer in writers.values():
            try:
                writer.finish()
            except (StageError, av.error.FFmpegError, OSError) as e:
                self.why = self.why or str(e)

    def close(self) -> None:
        """Idempotent."""
        self.finish_segment()
        if self._events >= 0:
            os.close(self._events)
            self._events = -1

    # ------------------------------------------------------------ inside

    def _may_write(self, pts: int) -> bool:
        if self._writers and pts - self._began >= self.segment:
            self.finish_segment()
        if pts - self._looked >= (RETRY if self.why else LOOK) or not (self._writers or self.why):
            self._looked = pts
            self.why = self.room.lacks()
            if self.why:
                self.finish_segment()
        if self.why:
            return False
        if not self._writers:
            self.segments += 1
            self._began = pts
        return True

    def _open(self, suffix: str) -> MediaWriter:
        path = self.folder / f"{self.segments:04}{suffix}"
        expected = frozenset({"audio"}) if suffix.endswith("mka") else self._main
        self._writers[suffix] = made = MediaWriter(str(path), expected, self._began, late_start=LATE_START)
        return made

    def _give_up(self, error: Exception, pts: int) -> None:
        """Keep what is there, and try again later: the disk may have room then."""
        self.why = str(error)
        self._looked = pts
        self.finish_segment()
