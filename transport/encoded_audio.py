"""Sound as it goes over the wire, 20 ms of Opus at a time."""

from __future__ import annotations

from dataclasses import dataclass

from .audio_out import AudioOut
from .levels import level_dbov
from .opus_encoder import OpusEncoder


@dataclass(frozen=True, slots=True)
class Sound:
    """at: its time in samples at 48 kHz. level: dB of full scale below it, 0 to 127. captured: ns, where it is known."""

    data: bytes
    at: int
    level: int
    captured: int | None


class EncodedAudio:
    """What one connection is sent of a track, silence left out."""

    def __init__(self, track: AudioOut) -> None:
        self._track = track
        self._encoder = OpusEncoder()

    async def next(self) -> Sound:
        """When it is due. Raises: MediaStreamError at the end."""
        while True:
            pcm, at = await self._track.pull()
            # 0.1 ms: a hop to another thread and back costs more than it frees
            if data := self._encoder.encode(pcm):
                return Sound(data, at, -level_dbov(pcm), self._track.captured)
