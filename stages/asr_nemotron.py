"""`asr.nemotron`: streaming recognition by a cache-aware FastConformer transducer, with capitals and punctuation where
its vocabulary has them. Bring a checkpoint of the kind that transformers calls `nemotron_asr_streaming`."""

from __future__ import annotations

from functools import cache

from pydantic import Field

from ..models import nemotron_stream
from ..models.asr_session import AsrRows
from ..models.devices import pick
from .asr_stream import StreamedAsr


class NemotronAsr(StreamedAsr):
    """`asr_stream` on a transducer: what it has written is final, a partial is the word that is being said."""

    class Options(StreamedAsr.Options):
        model: str = Field(
            description="A folder, a hub id such as nvidia/nemotron-speech-streaming-en-0.6b, or a name of `penstock models`"
        )
        lookahead_ms: int = Field(
            default=560, description="Audio a step; the released models know 80, 160, 560 and 1120"
        )

    async def load(self) -> tuple[str, AsrRows]:
        o = self.options
        key = (o.model, o.lookahead_ms, o.device)
        return "asr.nemotron " + "/".join(map(str, key)), await self.ctx.pool().call(_load, *key)


@cache
def _load(model: str, lookahead_ms: int, device: str) -> AsrRows:
    """One set of weights for all sessions with the same options. Raises: ValueError."""
    return AsrRows(nemotron_stream.load(model, lookahead_ms=lookahead_ms, device=pick(device)))
