"""Graphs that run as long as the daemon does: started when it is ready, and again when they end."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from ..pipeline.clock import SECOND, Clock
from ..pipeline.row_pool import error_words
from ..pipeline.stage import StageError
from .desk import Desk
from .headless import HeadlessSession, NotNow

log = logging.getLogger(__name__)

LONGEST = 60 * SECOND  # pause between two tries
STEADY = 60 * SECOND  # a run of this length was a good one: pauses begin anew


class Autostart:
    """names: of graphs with sources of their own. Raises, when made: StageError for one that cannot be started
    by command, before anything runs."""

    def __init__(self, names: Sequence[str], desk: Desk, clock: Clock) -> None:
        self.names = tuple(dict.fromkeys(names))
        self._desk = desk
        self._clock = clock
        self._tasks: list[asyncio.Task[None]] = []
        self._live: dict[str, HeadlessSession] = {}
        self._untried = set(self.names)
        self.tried = asyncio.Event()  # each of them once: it runs, or what it lacks is known
        if not self.names:
            self.tried.set()
        for name in self.names:
            desk.headless.check(name)
        desk.headless.kept = dict.fromkeys(self.names, clock.now())

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._keep(name), name=f"autostart/{name}") for name in self.names]

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def close(self) -> None:
        """End the graphs: they would not end by themselves."""
        self.stop()
        await asyncio.gather(*(live.close("the server stops") for live in self._live.values()))

    async def _keep(self, name: str) -> None:
        pause = SECOND
        while True:
            began = self._clock.now()
            why = "it ended"
            try:
                live = self._live[name] = await self._desk.start(name)
                self._tell(name, running=True, reason="")
                self._has_tried(name)
                await live.session.wait()
                why = live.session.failure or why
            except NotNow as e:  # nothing is wrong with the graph
                why = str(e)
            except StageError as e:
                why = self._desk.sessions.broken[name] = str(e)
            # the supervisor's boundary: a stage's own fault is tried again as any other
            except Exception as e:
                log.exception("graph %s cannot start", name)
                why = self._desk.sessions.broken[name] = error_words(e)
            self._has_tried(name)
            self._live.pop(name, None)
            if self._clock.now() - began >= STEADY:
                pause = SECOND
            log.warning("graph %s: %s; again in %d s", name, why, pause // SECOND)
            self._tell(name, running=False, reason=why)
            self._desk.headless.kept[name] = self._clock.now() + pause
            await self._clock.sleep(pause)
            pause = min(2 * pause, LONGEST)

    @property
    def untried(self) -> list[str]:
        return sorted(self._untried)

    def _has_tried(self, name: str) -> None:
        self._untried.discard(name)
        if not self._untried:
            self.tried.set()

    def _tell(self, name: str, *, running: bool, reason: str) -> None:
        fields = {"running": running, "reason": reason}
        self._desk.bus.publish("autostart", fields, graph=name, node="daemon")
