"""All live sessions of a server: admits, finds and ends them. One that fails leaves the others alone."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import Callable, Mapping

from aiohttp import web

from ..pipeline.clock import Clock
from ..pipeline.graph import Plan
from .live_session import LiveSession, SessionFactory
from .memory import give_back

log = logging.getLogger(__name__)


class Sessions:
    """graphs: what clients may ask for; the first is the default. limit: sessions in all; per_client: from
    one address."""

    def __init__(
        self,
        graphs: Mapping[str, Plan],
        clock: Clock,
        factory: SessionFactory,
        *,
        limit: int = 16,
        per_client: int = 8,
    ) -> None:
        self.graphs = graphs
        self.clock = clock
        self.factory = factory
        self.limit = limit
        self.per_client = per_client
        self.live: dict[str, LiveSession] = {}
        self.opened: Callable[[LiveSession], None] = lambda live: None
        self.closed: Callable[[LiveSession], None] = lambda live: None
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    @property
    def default(self) -> str:
        return next(iter(self.graphs))

    async def open(self, graph: str, sdp: str, remote: str) -> tuple[LiveSession, str]:
        """Start a session. Returns it and the SDP answer.

        Raises: HTTPNotFound, HTTPTooManyRequests, HTTPServiceUnavailable, OfferError, StageError.
        """
        plan = self.graphs.get(graph)
        if plan is None:
            raise web.HTTPNotFound(
                text=f"unknown graph {graph[:64]!r}; this server has: {', '.join(self.graphs)}"
            )
        if self._stopping:
            raise web.HTTPServiceUnavailable(text="the server is shutting down")
        if len(self.live) >= self.limit:
            raise web.HTTPServiceUnavailable(text=f"the server is full: it runs {self.limit} sessions")
        if Counter(s.remote for s in self.live.values())[remote] >= self.per_client:
            raise web.HTTPTooManyRequests(
                text=f"too many sessions: {self.per_client} from one address are taken; close one first"
            )
        live = LiveSession(plan, f"s-{secrets.token_hex(8)}", self.clock, self.factory, remote)
        self.live[live.id] = live
        try:
            answer = await live.open(sdp)
        except BaseException:
            del self.live[live.id]
            raise
        task = asyncio.create_task(self._keep(live), name=f"{live.id}/keep")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.opened(live)
        log.info("session %s: open, graph %s", live.id, graph)
        return live, answer

    async def _keep(self, live: LiveSession) -> None:
        try:
            await live.run()
        except Exception:
            # boundary: what one session does must not reach the others
            log.exception("session %s failed", live.id)
        finally:
            self.live.pop(live.id, None)
            self.closed(live)
            if not self.live:
                await asyncio.get_running_loop().run_in_executor(None, give_back)

    def refuse_new(self) -> None:
        """Take no more sessions from now on; those that run go on."""
        self._stopping = True

    async def close(self, session_id: str, reason: str) -> None:
        """End one session; nothing happens when it is gone already."""
        if (live := self.live.get(session_id)) is not None:
            await live.close(reason)

    async def close_all(self) -> None:
        """End all and take no more. Bounded as each session's close is: two seconds."""
        self._stopping = True
        await asyncio.gather(
            *(live.close("the server stops") for live in list(self.live.values())), return_exceptions=True
        )
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)
