"""The client's side of the OpenAI speech protocol: text in, sound out while it is being made.

Source: OpenAI API reference, "Audio: create speech"; Kokoro-FastAPI, vLLM-Omni, LocalAI and others speak it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from ..pipeline.clock import SECOND
from .endpoint_http import EndpointFailed, check_status, failures_in_words, open_http
from .speech_sound import BadSound, Format, Pcm, Sound

_PIECE = 4096  # bytes read at a time: 85 ms of 24 kHz PCM, so that no decoding holds the loop for long
_LONGEST = 60  # s of sound for one clause, which has at most 200 characters


@dataclass(frozen=True, slots=True)
class SpeechLimits:
    """Times in ns."""

    connect: int
    first_byte: int  # of sound, from the request on, connecting included
    between_bytes: int
    response_bytes: int


class SpeechClient:
    """One endpoint. Use it inside a running loop, close it at the end."""

    def __init__(self, base_url: str, key: str, limits: SpeechLimits) -> None:
        self._url = f"{base_url.rstrip('/')}/audio/speech"
        self._limits = limits
        self._http = open_http(key, limits.connect)

    async def close(self) -> None:
        await self._http.close()

    async def stream(
        self,
        request: Mapping[str, Any],
        format: Format,
        pcm_rate_hz: int,
        put: Callable[[Pcm, int], Awaitable[None]],
    ) -> None:
        """Ask, and put the sound (with its Hz) as it comes; the time that `put` takes is not counted.

        Cancelling closes the connection, by which servers learn to stop.
        Raises: EndpointFailed.
        """
        limits, sound = self._limits, Sound(format, pcm_rate_hz)
        body = {**request, "response_format": format}
        began = False
        loop = asyncio.get_running_loop()
        left, samples = limits.response_bytes, 0

        async def give(pcm: Pcm) -> None:
            nonlocal samples
            samples += len(pcm)
            if samples > _LONGEST * sound.rate_hz:
                raise EndpointFailed(f"the response has over {_LONGEST} s of sound for one clause")
            if len(pcm):
                await put(pcm, sound.rate_hz)

        def late() -> str:
            if began:
                return f"no further sound in {limits.between_bytes / SECOND:g} s"
            return f"no sound in {limits.first_byte / SECOND:g} s"

        with failures_in_words(limits.connect, late, BadSound):
            async with asyncio.timeout(limits.first_byte / SECOND) as limit:
                # a redirect would carry the key and what was said to somewhere that nobody configured
                async with self._http.post(self._url, json=body, allow_redirects=False) as response:
                    check_status(response)
                    _check_type(response)
                    while data := await response.content.read(_PIECE):
                        left -= len(data)
                        if left < 0:
                            raise EndpointFailed(f"the response is over {limits.response_bytes} bytes")
                        began = True
                        limit.reschedule(None)  # a slow listener is no fault of the endpoint
                        await give(sound.feed(data))
                        limit.reschedule(loop.time() + limits.between_bytes / SECOND)
                    limit.reschedule(None)
                    await give(sound.finish())
        if not samples:
            raise EndpointFailed("the response ended without sound")


def _check_type(response: aiohttp.ClientResponse) -> None:
    """Servers call PCM all sorts of things, but an error's text or JSON would be a loud noise."""
    kind = response.content_type
    if kind.startswith("text/") or kind.endswith(("json", "xml", "html")):
        raise EndpointFailed(f"{kind[:80]!r} came; sound is accepted")
