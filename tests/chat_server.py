"""A server of chat completions and speech that plays scripts: the real wire format, and all ways to break it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

Write = Callable[[bytes], Awaitable[None]]
Script = Callable[[Write], Awaitable[None]]
DONE = b"data: [DONE]\n\n"


def delta(content: str | None, finish: str | None = None) -> bytes:
    """One chunk as vLLM writes it."""
    choice = {"index": 0, "delta": {"content": content}, "logprobs": None, "finish_reason": finish}
    body = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n".encode()


ROLE = b'data: {"choices":[{"index":0,"delta":{"role":"assistant"},"finish_reason":null}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"total_tokens":9}}\n\n'
HELLO = ROLE + delta("Hel") + delta("lo é☃.") + delta(None, "stop") + USAGE + DONE


class Server:
    """Plays one script for each request, the last again and again."""

    def __init__(self, *scripts: Script | web.Response, content_type: str) -> None:
        self.scripts = list(scripts)
        self.content_type = content_type
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.gone = asyncio.Event()  # a client hung up
        self.asked = asyncio.Event()

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(await request.json())
        self.asked.set()
        self.headers.append(dict(request.headers))
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        if isinstance(script, web.Response):
            return web.Response(status=script.status, headers=script.headers, body=script.body)
        response = web.StreamResponse(headers={"Content-Type": self.content_type})
        await response.prepare(request)
        try:
            await script(response.write)
        except Drop:
            assert request.transport is not None
            request.transport.abort()
        except asyncio.CancelledError:
            self.gone.set()
            raise
        return response


class Drop(Exception):
    """The script wants the connection cut."""


def sends(*pieces: bytes) -> Script:
    async def play(write: Write) -> None:
        for piece in pieces:
            await write(piece)

    return play


def drops(*pieces: bytes) -> Script:
    async def play(write: Write) -> None:
        await sends(*pieces)(write)
        raise Drop

    return play


def stalls(*pieces: bytes) -> Script:
    async def play(write: Write) -> None:
        await sends(*pieces)(write)
        await asyncio.Event().wait()

    return play


@asynccontextmanager
async def serving(
    *scripts: Script | web.Response, content_type: str = "text/event-stream; charset=utf-8"
) -> AsyncGenerator[tuple[Server, str], None]:
    """A server of these scripts, and its base URL."""
    server = Server(*scripts, content_type=content_type)
    app = web.Application()
    app.router.add_post("/v1/chat/completions", server.handle)
    app.router.add_post("/v1/audio/speech", server.handle)
    runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        yield server, f"http://{host}:{port}/v1"
    finally:
        await runner.cleanup()
