"""Has the next clause made while the last still goes out: sessions that all ask at the end of theirs would wait for each
other, and an endpoint's first byte is too slow for gapless speech."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ..models.voice import Spoken
from .voice_engine import Engine, Stop

_CLAUSES = 4  # that wait; then whoever writes the text does


@dataclass(frozen=True, slots=True)
class Clause:
    text: str
    pts: int  # ns; it is not spoken earlier
    utterance: int


Emit = Callable[[Clause, Spoken, int, bool], Awaitable[None]]  # clause, piece, Hz, is it the clause's first


class SpeechAhead:
    """One utterance, from its first clause to `end` or `cancel`. Clauses are asked for one after the other."""

    def __init__(
        self, engine: Engine, rate: Callable[[], float], stop: Stop, epoch: int, emit: Emit, name: str
    ) -> None:
        self.epoch = epoch
        self._engine, self._rate, self._stop, self._emit, self._name = engine, rate, stop, emit, name
        self._clauses: asyncio.Queue[Clause | None] = asyncio.Queue(_CLAUSES)
        self._pieces: asyncio.Queue[tuple[Clause, Spoken, int, bool] | None] = asyncio.Queue(engine.ahead)
        self._making = False
        self._task = asyncio.create_task(self._run(), name=name)

    @property
    def busy(self) -> bool:
        """Is there anything to be spoken?"""
        return self._making or not (self._clauses.empty() and self._pieces.empty())

    @property
    def over(self) -> bool:
        """Ended, cancelled or failed."""
        return self._task.done()

    async def say(self, clause: Clause) -> None:
        """Raises what the engine did."""
        await self._put(clause)

    async def end(self) -> None:
        """No more clauses; returns when all has gone out. Raises what the engine did."""
        await self._put(None)
        await asyncio.wait([self._task])
        self._check()

    def cancel(self) -> None:
        """The request ends at the loop's next turn, and nothing more goes out."""
        self._stop.set()
        self._task.cancel()
        if self._task.done() and not self._task.cancelled():
            self._task.exception()  # nobody asks for it any more

    async def cancelled(self) -> None:
        """Cancel, and wait until it is over."""
        self.cancel()
        await asyncio.wait([self._task])
        self.cancel()

    async def _put(self, clause: Clause | None) -> None:
        self._check()
        if not self._task.done():
            await self._clauses.put(clause)

    def _check(self) -> None:
        if self._task.done() and not self._task.cancelled():
            self._task.result()

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._make(), name=f"{self._name}/make")
                tasks.create_task(self._give(), name=f"{self._name}/give")
        finally:
            while not self._clauses.empty():  # whoever waits for room goes on
                self._clauses.get_nowait()

    async def _make(self) -> None:
        while (clause := await self._clauses.get()) is not None:
            first = True

            async def put(piece: Spoken, rate_hz: int, clause: Clause = clause) -> None:
                nonlocal first
                await self._pieces.put((clause, piece, rate_hz, first))
                first = False

            self._making = True
            if not self._stop.is_set():
                await self._engine.speak(clause.text, self._rate(), self._stop, put)
            self._making = False
        await self._pieces.put(None)

    async def _give(self) -> None:
        while (piece := await self._pieces.get()) is not None:
            if not self._stop.is_set():
                await self._emit(*piece)
