"""A graph's output for any number of viewers: one encode for each rung that is in use, one for the sound.

    frames ──► Rung 3 (VP8, 1.2 Mb/s up) ──► viewers whose paths carry that
           ├─► Rung 1 (VP8, 150–450 kb/s) ──► those on slow ones
           └─► Rung 3 (H.264) …              rungs without viewers do not exist

Keyframes are asked for by whoever joins, moves to another rung or has lost too much, and made once for all who asked.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..pipeline.clock import MS, SECOND, Clock
from ..pipeline.frame import VideoFrame
from .audio_out import AUDIO_RATE, SAMPLES
from .bandwidth import CEILING_BPS
from .encoded_audio import Sound
from .encoders import PictureScaler, encode_scaled, make_video_encoder
from .levels import level_dbov
from .opus_encoder import OpusEncoder
from .picture_rate import FrameGate, PictureRate, Shape
from .rung_choice import LEAST_BPS, rate_bps
from .shared_tracks import Encoded, SharedAudio, SharedVideo
from .video_out import VideoOut

log = logging.getLogger(__name__)

KEYFRAME_APART = 500 * MS  # of one rung, whoever asks
OFF = AUDIO_RATE // 10  # samples that sound may lag behind the clock before its time jumps


class SharedRung:
    """Encodes from `start` until its last viewer has left."""

    def __init__(self, codec: str, number: int, clock: Clock, stamps_capture: bool = False) -> None:
        """stamps_capture: see `VideoOut`. Raises: ValueError for a codec that we do not encode."""
        self.codec = codec
        self.number = number
        self.clock = clock
        self.encoder = make_video_encoder(codec, 300_000)
        self.source = VideoOut()
        self.source.stamps_capture = stamps_capture
        self.viewers: dict[SharedVideo, None] = {}  # in the order of coming
        self.encoded = self.keyframes = 0
        self.shape: Shape | None = None
        self._rate = PictureRate()
        self._wanted = True
        self._next_keyframe = 0
        self._later: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self.closed = False

    @property
    def bitrate_bps(self) -> int:
        """What it is encoded at."""
        return self.encoder.bitrate_bps

    def _fitting_bps(self) -> int:
        # one that only tries whether its path carries this rung does not hold others down
        told = [v.bps for v in self.viewers if v.choice is not None and not v.choice.is_trying]
        return rate_bps(self.number, told or [LEAST_BPS[self.number]], CEILING_BPS)

    def ask(self) -> None:
        """Make a keyframe soon; several who ask get one."""
        self._wanted = True
        early = self._next_keyframe - self.clock.now()
        if early <= 0:
            self.source.wake()
        elif self._later is None:  # pictures may have stopped coming by then
            self._later = asyncio.get_running_loop().call_later(early / SECOND, self._again)

    def _again(self) -> None:
        self._later = None
        self.source.wake()

    def join(self, viewer: SharedVideo) -> None:
        self.viewers[viewer] = None
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name=f"rung-{self.codec}-{self.number}")
            self._task.add_done_callback(self._ended)

    def leave(self, viewer: SharedVideo) -> None:
        self.viewers.pop(viewer, None)
        if not self.viewers:
            self.close()

    def close(self) -> None:
        self.closed = True
        self.source.stop()
        if self._later is not None:
            self._later.cancel()
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        scaler, gate = PictureScaler(), FrameGate()
        while True:
            await self.source.wait()
            now = self.clock.now()
            frame, pts = self.source.take()
            bps = self.encoder.bitrate_bps = self._fitting_bps()
            fps = self.source.fps
            shape = self.shape = self._rate.shape(bps, frame.width & ~1, frame.height & ~1, now, fps)
            keyframe = self._wanted and now >= self._next_keyframe
            if not (keyframe or shape.fps >= fps or gate(now, shape.fps)):
                continue
            if keyframe:
                self._wanted = False
            data, is_keyframe = await loop.run_in_executor(
                None, encode_scaled, self.encoder, scaler, frame, shape, pts, keyframe, now
            )
            if is_keyframe:
                self.keyframes += 1
                self._next_keyframe = now + KEYFRAME_APART
            if not data:
                continue
            self.encoded += 1
            captured = frame.pts if self.source.stamps_capture else None
            picture = Encoded(data, is_keyframe, frame.pts, captured)
            for viewer in list(self.viewers):
                viewer.deliver(self, picture)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.closed = True
        if not task.cancelled() and (error := task.exception()) is not None and self.viewers:
            # an encoder that fails ends those who watch it, nobody else
            log.error("encoding %s for %d viewers failed", self.codec, len(self.viewers), exc_info=error)
            for viewer in list(self.viewers):
                viewer.lose(self)


class Broadcast:
    """show, hear: what the graph makes, dropped at no cost while nobody watches."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.stamps_capture = False  # of pictures, see `VideoOut`
        self._rungs: dict[tuple[str, int], SharedRung] = {}
        self._listeners: dict[SharedAudio, None] = {}
        self._newest: VideoFrame | None = None
        self._opus: OpusEncoder | None = None
        self._at = 0  # samples, of the next sound

    @property
    def has_listeners(self) -> bool:
        return bool(self._listeners)

    def video(self) -> SharedVideo:
        return SharedVideo(self._rung, self.clock.now)

    def audio(self) -> SharedAudio:
        track = SharedAudio(self._deaf)
        self._listeners[track] = None
        return track

    def show(self, frame: VideoFrame) -> None:
        self._newest = frame
        for rung in self._rungs.values():
            rung.source.show(frame)

    def hear(self, pcm: NDArray[np.int16], captured: int | None = None) -> None:
        """20 ms of sound at 48 kHz, (960, 1 or 2), as it is played."""
        if not self._listeners:
            self._opus = None
            return
        now = self.clock.now() * AUDIO_RATE // SECOND
        at = self._at if abs(now - self._at) < OFF else max(self._at, now)
        self._at = at + SAMPLES
        self._opus = self._opus or OpusEncoder()
        data = self._opus.encode(pcm)
        if data:
            sound = Sound(data, at, -level_dbov(pcm), captured)
            for track in self._listeners:
                track.deliver(sound)

    def close(self) -> None:
        for rung in list(self._rungs.values()):
            rung.close()
        self._rungs.clear()
        self._newest = None

    def _rung(self, codec: str, number: int) -> SharedRung:
        rung = self._rungs.get((codec, number))
        if rung is None or rung.closed:
            rung = self._rungs[codec, number] = SharedRung(codec, number, self.clock, self.stamps_capture)
            if self._newest is not None:  # who comes while nothing moves sees what there is
                rung.source.show(self._newest)
        self._forget()
        return rung

    def _forget(self) -> None:
        for key in [key for key, rung in self._rungs.items() if rung.closed]:
            del self._rungs[key]

    def _deaf(self, track: SharedAudio) -> None:
        self._listeners.pop(track, None)

    def stats(self) -> list[dict[str, Any]]:
        """docs/protocol.md, `transport.shared`: one row a rung."""
        self._forget()
        return [
            {
                "codec": rung.codec,
                "kbps": rung.bitrate_bps // 1000,
                "width": rung.shape.width if rung.shape else 0,
                "height": rung.shape.height if rung.shape else 0,
                "viewers": len(rung.viewers),
                "pictures": rung.encoded,
                "keyframes": rung.keyframes,
            }
            for rung in self._rungs.values()
        ]
