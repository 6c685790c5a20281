"""The client's side of the OpenAI chat-completions protocol, streaming.

Source: OpenAI API reference, "Chat: streaming"; vLLM, llama.cpp's server and Ollama (`/v1`) speak it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import aiohttp

from ..pipeline.clock import SECOND
from .chat_calls import BadCall, CallAssembler, FunctionCall
from .endpoint_http import EndpointFailed, check_status, failures_in_words, open_http
from .sse import EventStreamParser, EventTooLong, ServerEvent


@dataclass(frozen=True, slots=True)
class Limits:
    """Times in ns. Only text counts as a token: neither comments nor hidden reasoning do."""

    connect: int
    first_token: int  # from the request on, connecting included
    between_tokens: int
    response_bytes: int


class ChatClient:
    """One endpoint. Use it inside a running loop, close it at the end."""

    def __init__(self, base_url: str, key: str, limits: Limits) -> None:
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._limits = limits
        self._http = open_http(key, limits.connect, Accept="text/event-stream")

    async def close(self) -> None:
        await self._http.close()

    async def stream(
        self, request: Mapping[str, Any], put: Callable[[str], Awaitable[None]]
    ) -> list[FunctionCall]:
        """Ask, and put each piece of the answer as it comes; the time that `put` takes is not counted.

        Returns the functions that the model wants called before it goes on; none when the answer is whole.

        Cancelling closes the connection, by which servers learn to stop generating.
        Raises: EndpointFailed.
        """
        limits = self._limits
        progress = _Progress()

        def late() -> str:
            if progress.tokens:
                return f"no further token in {limits.between_tokens / SECOND:g} s"
            return f"no token in {limits.first_token / SECOND:g} s"

        with failures_in_words(limits.connect, late, EventTooLong, BadCall):
            async with asyncio.timeout(limits.first_token / SECOND) as limit:
                # a redirect would carry the key and what was said to somewhere that nobody configured
                async with self._http.post(
                    self._url, json={**request, "stream": True}, allow_redirects=False
                ) as response:
                    check_status(response)
                    _check_type(response)
                    return await self._read(response, put, limit, progress)

    async def _read(
        self,
        response: aiohttp.ClientResponse,
        put: Callable[[str], Awaitable[None]],
        limit: asyncio.Timeout,
        progress: _Progress,
    ) -> list[FunctionCall]:
        """Until the answer is whole: at a finish reason, [DONE], or a clean end after some text or call."""
        loop = asyncio.get_running_loop()
        parser, calls = EventStreamParser(), CallAssembler()
        left = self._limits.response_bytes
        async for data in response.content.iter_any():
            left -= len(data)
            if left < 0:
                raise EndpointFailed(f"the response is over {self._limits.response_bytes} bytes")
            finished = False
            for event in parser.feed(data):
                delta = read_event(event)
                if delta.calls is not None:
                    calls.feed(delta.calls)
                if delta.text or delta.calls:
                    progress.tokens += 1
                    limit.reschedule(None)  # a slow listener is no fault of the endpoint
                    if delta.text:
                        await put(delta.text)
                    limit.reschedule(loop.time() + self._limits.between_tokens / SECOND)
                finished |= delta.ends
            if finished:
                return calls.calls  # at once: what may follow is usage figures
        if not progress.tokens:
            raise EndpointFailed("the response ended without an answer")
        return calls.calls


@dataclass(slots=True)
class _Progress:
    tokens: int = 0


def _check_type(response: aiohttp.ClientResponse) -> None:
    if response.content_type != "text/event-stream":
        raise EndpointFailed(f"{response.content_type[:80]!r} came; text/event-stream is accepted")


@dataclass(frozen=True, slots=True)
class ChatDelta:
    """What one event of the stream brings. `calls`: its `tool_calls`, unchecked."""

    text: str = ""
    calls: object = None
    ends: bool = False


def read_event(event: ServerEvent) -> ChatDelta:
    """Raises: EndpointFailed when it is no chat chunk."""
    if event.data.strip() == "[DONE]":
        return ChatDelta(ends=True)
    try:
        chunk = json.loads(event.data)
    except (ValueError, RecursionError) as e:
        raise EndpointFailed("an event is not JSON") from e
    if not isinstance(chunk, dict):
        raise EndpointFailed("an event is not a JSON object")
    fields = cast("dict[str, Any]", chunk)
    if fields.get("error"):
        raise EndpointFailed("the endpoint reported an error in the stream")
    choices = fields.get("choices")
    if not isinstance(choices, list):
        raise EndpointFailed("an event has no list of choices")
    if not choices:
        return ChatDelta()  # usage figures
    choice = cast("list[Any]", choices)[0]
    if not isinstance(choice, dict):
        raise EndpointFailed("a choice is not a JSON object")
    parts = cast("dict[str, Any]", choice)
    delta = parts.get("delta")
    said = cast("dict[str, Any]", delta) if isinstance(delta, dict) else {}
    content = said.get("content")
    if content is not None and not isinstance(content, str):
        raise EndpointFailed("the content of a delta is not text")
    # JSON can spell half a character (a lone surrogate), which no further stage could encode
    text = (content or "").encode(errors="replace").decode()
    return ChatDelta(text, said.get("tool_calls") or None, parts.get("finish_reason") is not None)
