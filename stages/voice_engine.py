"""What speaks for `tts.stream`, clause by clause: the embedded voices, or whatever else has this interface."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Protocol, TypeAlias
from weakref import WeakKeyDictionary

from ..models.tts_session import TtsSession
from ..models.voice import Spoken, SteppedVoice
from ..pipeline.clock import SECOND

if TYPE_CHECKING:
    from ..models.voice import Voice
    from ..pipeline.stage import Context

_PATIENCE = 30 * SECOND  # a deadline that no call misses, so that speech goes before work that has none

Put: TypeAlias = Callable[[Spoken, int], Awaitable[None]]  # a piece of speech and its Hz


class Engine(Protocol):
    ahead: int  # pieces that may be made before they are put on

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
    """A voice of this machine, off the loop: flite and espeak-ng a clause at a time, others step by step.

    Of all sessions that speak, the one whose sound ends soonest goes first.
    """

    def __init__(self, voice: Voice, ctx: Context) -> None:
        self._voice, self._ctx = voice, ctx
        # of 40 ms (flite) or 50 to 80: 6 s, and 3 to 5 s of voices that cost more. A barge-in throws away as much: 100 ms of
        # flite's CPU; with half of it, four sessions in step were short of time on a machine at load 13
        self.ahead = 60 if isinstance(voice, SteppedVoice) else 150
        self._reply: Stop | None = None  # what `_sounds_until` is of
        self._sounds_until = 0
        self.in_turn = False  # another session's clause is made before ours

    async def warm(self) -> None:
        """The first call of a voice reads its tables from disk."""
        await self._ctx.pool().call(self._voice.synthesise, "Ready.", _unheard, lambda: False)

    async def speak(self, text: str, rate: float, stop: Stop, put: Put) -> None:
        if self._reply is not stop:
            self._reply, self._sounds_until = stop, 0

        async def count(piece: Spoken, rate_hz: int) -> None:
            self._sounds_until = max(self._sounds_until, self._ctx.clock.now())
            self._sounds_until += len(piece.pcm) * SECOND // rate_hz
            await put(piece, rate_hz)

        if isinstance(self._voice, SteppedVoice):
            await self._in_steps(text, rate, stop, count)
        else:
            await self._at_once(text, rate, stop, count)

    @property
    def _deadline(self) -> int:
        return max(self._sounds_until, self._ctx.clock.now()) + _PATIENCE

    async def _in_steps(self, text: str, rate: float, stop: Stop, put: Put) -> None:
        session = TtsSession(self._voice, rate=rate)
        session.say(text)
        pool = self._ctx.pool()
        while not stop.is_set():
            chunk = (
                session.step() if session.ready else await pool.call(session.step, deadline=self._deadline)
            )
            if chunk is None or stop.is_set():
                return
            await put(Spoken(chunk.pcm, chunk.text), self._voice.rate_hz)

    async def _at_once(self, text: str, rate: float, stop: Stop, put: Put) -> None:
        pieces = _Handoff(asyncio.get_running_loop())

        def synthesise() -> None:
            self._voice.synthesise(text, pieces.put, stop.is_set, rate=rate)

        async def produce() -> None:
            try:
                self.in_turn = True
                async with _turns().turn(self._deadline):
                    self.in_turn = False
                    await self._ctx.pool().call(synthesise, deadline=self._deadline)
            finally:
                self.in_turn = False
                pieces.close()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(produce(), name=f"{self._ctx.session}/{self._ctx.node}/voice")
            while (piece := await pieces.get()) is not None:
                if not stop.is_set():
                    await put(piece, self._voice.rate_hz)


class _Turns:
    """One clause at a time: flite and espeak-ng are one synthesiser for the whole process. Whoever's sound ends first is
    next, where the libraries' locks would let the same session make its second clause before another's first."""

    def __init__(self) -> None:
        self._taken = False
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    @asynccontextmanager
    async def turn(self, due: int) -> AsyncGenerator[None]:
        """due: ns, the earliest goes first."""
        if self._taken:
            mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            heapq.heappush(self._waiting, (due, next(self._order), mine))
            try:
                await mine
            except asyncio.CancelledError:
                if mine.done() and not mine.cancelled():  # it was given to a waiter that goes
                    self._next()
                raise
        self._taken = True
        try:
            yield
        finally:
            self._next()

    def _next(self) -> None:
        self._taken = False
        while self._waiting:
            waiter = heapq.heappop(self._waiting)[2]
            if not waiter.done():
                self._taken = True
                waiter.set_result(None)
                return


_by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, _Turns] = WeakKeyDictionary()


def _turns() -> _Turns:
    return _by_loop.setdefault(asyncio.get_running_loop(), _Turns())


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
