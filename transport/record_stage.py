"""`media.record`: a session's pictures, sound and events on disk, with consent, within a quota."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..pipeline.clock import SECOND
from ..pipeline.frame import AudioFrame, Frame, TokenFrame, VideoFrame
from ..pipeline.stage import Control, In, Outputs, Ports, SetParams, Stage
from ..pipeline.thread_pool import ThreadPool
from ..pipeline.units import Bytes, Duration
from .disk_room import DiskRoom
from .recording import Recording

if TYPE_CHECKING:
    from ..pipeline.session import SessionEvent

log = logging.getLogger(__name__)

AHEAD = 4  # frames given to the thread before the edges fill, and shed their oldest


class RecordOptions(BaseModel):
    """folder: of all recordings; left out: the service's state directory, else ~/.local/state/penstock/recordings. segment:
    length of one file. quota: all recordings together, of all graphs with this folder. keep_free: of the disk. full:
    what to do without room. require_consent: record only while the session's parameter `consent` is true."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: str = ""
    segment: Duration = Field(default=60 * SECOND, ge=2 * SECOND)
    quota: Bytes = Field(default=10 * 10**9, ge=10**6)
    keep_free: Bytes = Field(default=10**9, ge=0)
    full: Literal["delete_oldest", "stop"] = "delete_oldest"
    require_consent: bool = True


class RecordParams(BaseModel):
    """consent: the person in front of the camera agrees to be recorded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    consent: bool = Field(default=False, description="record this session")


def default_folder() -> Path:
    """Where recordings go when the graph does not say."""
    if state := os.environ.get("STATE_DIRECTORY"):  # systemd.exec(5); several are parted by colons
        return Path(state.partition(":")[0]) / "recordings"
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(home).expanduser() / "penstock/recordings"


def folder_of(options: RecordOptions) -> Path:
    return Path(options.folder).expanduser() if options.folder else default_folder()


class Record(Stage):
    """Records a session in segments, with its texts and events: only with consent, never over its quota.

    A slow or full disk costs recorded frames, which are counted and told by the event `recording`; nothing else waits.
    """

    ports = Ports(
        {
            "video": In(VideoFrame, required=False),
            "audio": In(AudioFrame, required=False),
            "voice": In(AudioFrame, required=False),
            "text": In(TokenFrame, required=False, many=True),
        }
    )
    Options = RecordOptions
    Params = RecordParams

    def __init__(self, options: BaseModel | None = None, params: BaseModel | None = None) -> None:
        super().__init__(options, params)
        self._worker = ThreadPool("record", 1)
        self._pending: deque[asyncio.Task[None]] = deque()
        self._recording: Recording | None = None
        self._told: tuple[bool, str] = (False, "")
        self._unlisten: Callable[[], None] = lambda: None

    @property
    def _wanted(self) -> bool:
        return bool(self.params.consent) or not self.options.require_consent

    async def setup(self) -> None:
        """Raises: StageError when the folder cannot be written, before anything runs."""
        self._unlisten = self.ctx.listen(self._heard)
        if self._wanted:
            await self._begin()
        else:
            log.info(
                "%s is not recorded before its parameter %s.consent is true", self.ctx.session, self.ctx.node
            )

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        recording = self._recording
        if recording is None:
            return
        if isinstance(frame, TokenFrame):
            line = {"type": "text", "from": out.source, "text": frame.text, "end": frame.end}
            await self._submit(recording.event, frame.pts, line)
        else:
            await self._submit(recording.media, port, frame)
            self._tell()

    async def control(self, message: Control) -> None:
        await super().control(message)
        if isinstance(message, SetParams):
            if self._wanted and self._recording is None:
                await self._begin()
            elif not self._wanted and self._recording is not None:
                await self._end()

    async def finish(self, out: Outputs) -> None:
        await self._end()

    async def close(self) -> None:
        self._unlisten()
        try:
            async with asyncio.timeout(0.9):  # of the session's second for closing
                await self._end()
        except TimeoutError:
            log.warning("%s: the last segment was not finished in time", self.ctx.session)
        finally:
            self._worker.close()

    # ------------------------------------------------------------ inside

    async def _begin(self) -> None:
        options: RecordOptions = self.options
        root = folder_of(options)
        room = DiskRoom(root, options.quota, options.keep_free, delete=options.full == "delete_oldest")
        # ids are ours, but a path is no place for trust
        folder = root / re.sub(r"[^A-Za-z0-9_-]", "_", self.ctx.session)[:64]
        self._recording = await self._worker.call(
            Recording, folder, self.ctx.connected, options.segment, room
        )
        self._tell()

    async def _end(self) -> None:
        recording, self._recording = self._recording, None
        if recording is None:
            return
        while self._pending:
            await self._pending.popleft()
        await self._worker.call(recording.close)
        if recording.lost:
            log.warning("%s: %d frames were not recorded", self.ctx.session, recording.lost)
        self._tell()

    async def _submit(self, fn: Callable[..., None], *args: object) -> None:
        while len(self._pending) >= AHEAD or (self._pending and self._pending[0].done()):
            await self._pending.popleft()
        self._pending.append(asyncio.create_task(self._worker.call(fn, *args), name="record/write"))

    def _heard(self, event: SessionEvent) -> None:
        """Any event of the session; called on the loop, must not wait."""
        recording = self._recording
        if recording is None or event.name == "recording" or len(self._pending) >= 8 * AHEAD:
            return
        line = {"type": "event", "from": event.node, "name": event.name, "fields": dict(event.fields)}
        task = asyncio.create_task(self._worker.call(recording.event, event.pts, line), name="record/event")
        self._pending.append(task)

    def _tell(self) -> None:
        recording = self._recording
        now = (recording is not None and not recording.why, recording.why if recording else "")
        if now != self._told:
            self._told = now
            self.ctx.emit("recording", on=now[0], reason=now[1])
            if now[1]:
                log.warning("%s is not recorded: %s", self.ctx.session, now[1])
