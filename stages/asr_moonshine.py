"""`asr.moonshine`: streaming recognition by Moonshine streaming (English, 34 to 245 M), with capitals and punctuation.
Bring a checkpoint of the kind that transformers calls `moonshine_streaming`."""

from __future__ import annotations

from functools import cache

from pydantic import Field

from ..models import moonshine_stream
from ..models.asr_session import AsrRows
from ..models.devices import pick
from .asr_stream import StreamedAsr


class MoonshineAsr(StreamedAsr):
    """`asr_stream` on a windowed encoder: hears 240 ms ahead (published weights), costs the same after an hour."""

    class Options(StreamedAsr.Options):
        model: str = Field(
            description="A folder, a hub id such as UsefulSensors/moonshine-streaming-tiny, or a name of `penstock models`"
        )
        chunk_ms: int = Field(default=320, ge=80, le=1000, description="Audio a step, a multiple of 20")

    async def load(self) -> tuple[str, AsrRows]:
        o = self.options
        key = (o.model, o.chunk_ms, o.device)
        return "asr.moonshine " + "/".join(map(str, key)), await self.ctx.pool().call(_load, *key)


@cache
def _load(model: str, chunk_ms: int, device: str) -> AsrRows:
    """One set of weights for all sessions with the same options. Raises: ValueError."""
    return AsrRows(moonshine_stream.load(model, chunk_ms=chunk_ms, device=pick(device)))
