"""What speaks for `tts.stream`, clause by clause: the embedded voices, or whatever else has this interface."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol, TypeAlias

from ..pipeline.clock import SECOND

if TYPE_CHECKING:
    from ..models.voice import Spoken, Voice
    from ..pipeline.stage import Context

_PATIENCE = 30 * SECOND  # a deadline that no call misses, so that speech goes before work that has none

Put: TypeAlias = "Callable[[Spoken, int], Awaitable[None]]"  # a piece of speech and its Hz


class Engine(Protocol):
    async def speak(self, text: str, rate: float, stop: Stop, put: Put) -> None:
        """Speak a clause at `rate` times the usual speed and put it as it comes.

        All pieces together give the text, unless `stop` was set. Cancelling ends all work for it.
        """
        ...


class Stop:
    """Set by hand, or by a new epoch of the scope, which may come before the control message does."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._epoch = ctx.epoch
        self._set = threading.Event()

    def set(self) -> None:
        self._set.set()

    def is_set(self) -> bool:
        """From any thread."""
        return self._set.is_set() or self._ctx.epoch != self._epoch


class EmbeddedEngine:
    """A voice of this machine. A clause is synthesised whole off the loop (some 10 ms for flite)."""

    def __init__(self, voice: Voice, ctx: Context) -> None:
        self._voice, self._ctx = voice, ctx

    async def warm(self) -> None:
        """The first call of a voice reads its tables from disk."""
        await self._ctx.pool().call(self._voice.synthesise, "Ready.", _unheard, lambda: False)

    async def speak(self, text: str, rate: float, stop: Stop, put: Put) -> None:
        pieces = _Handoff(asyncio.get_running_loop())

        def synthesise() -> None:
            self._voice.synthesise(text, pieces.put, stop.is_set, rate=rate)

        async def produce() -> None:
            try:
                await self._ctx.pool().call(synthesise, deadline=self._ctx.clock.now() + _PATIENCE)
            finally:
                pieces.close()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(produce(), name=f"{self._ctx.session}/{self._ctx.node}/voice")
            while (piece := await pieces.get()) is not None:
                if not stop.is_set():
                    await put(piece, self._voice.rate_hz)


def _unheard(piece: Spoken) -> None:
    """Takes what is spoken to warm the voice up."""


class _Handoff:
    """Pieces from the synthesis thread to the loop. Holds at most one clause, so it never makes the thread
    wait, which holds the lock that all sessions' voices share."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pieces: deque[Spoken] = deque()
        self._closed = False
        self._ready = asyncio.Event()

    def put(self, piece: Spoken) -> None:
        """From any thread."""
        self._pieces.append(piece)
        self._loop.call_soon_threadsafe(self._ready.set)

    def close(self) -> None:
        self._closed = True
        self._ready.set()

    async def get(self) -> Spoken | None:
        """The next piece; None after the last."""
        while not self._pieces:
            if self._closed:
                return None
            self._ready.clear()
            await self._ready.wait()
        return self._pieces.popleft()
