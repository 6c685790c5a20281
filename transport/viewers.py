"""Those who watch what a running graph sends, beside its own client: by WHEP, any number of them, encoded once for all
(`broadcast.py`). They send nothing, and the graph does not know of them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from typing import Protocol

from aiohttp import web

from ..pipeline.clock import SECOND, Clock
from ..pipeline.session import Session
from .budgets import Pictures
from .caller import Caller
from .line import Line
from .live_session import media_of, pictures_of
from .offer import OfferError, check_offer
from .peer import Peer, PeerFactory

log = logging.getLogger(__name__)

RETRY_S = "5"


class Watched(Protocol):
    """A running graph with a live end: a client's, or one started by command."""

    id: str
    graph: str
    line: Line
    session: Session


class Viewer:
    """One connection. Life: `open` → `run` until it or the graph ends."""

    def __init__(self, watched: Watched, caller: Caller, clock: Clock, make_peer: PeerFactory) -> None:
        self.id = f"v-{secrets.token_hex(8)}"
        self.watched = watched
        self.graph = watched.graph
        self.caller = caller
        _, gives = media_of(watched.session.plan)
        self.peer = make_peer(self.id, clock, receive=frozenset(), send=gives)
        self.peer.broadcast = watched.line.broadcast
        self._until = clock.now() + caller.longest if caller.longest else None
        self._clock = clock

    async def open(self, sdp: str) -> str:
        """Returns the answer. Raises: OfferError."""
        try:
            answer = await self.peer.accept(sdp)
            if not self.peer.outs:
                _, gives = media_of(self.watched.session.plan)
                raise OfferError(
                    "the offer asks for nothing that is sent here; there is: "
                    + (", ".join(sorted(gives)) or "nothing, as the graph has no webrtc.out")
                )
        except BaseException:
            await self.peer.close()
            raise
        if "audio" in self.peer.outs:
            self.watched.line.stand()
        return answer

    async def run(self) -> None:
        left = asyncio.create_task(self.peer.run(), name=f"{self.id}/peer")
        ended = asyncio.create_task(self.watched.session.wait(), name=f"{self.id}/graph")
        timeout = max(0, self._until - self._clock.now()) / SECOND if self._until is not None else None
        try:
            await asyncio.wait([left, ended], return_when=asyncio.FIRST_COMPLETED, timeout=timeout)
        finally:
            left.cancel()
            ended.cancel()
            await asyncio.gather(left, ended, return_exceptions=True)
            await self.peer.close()

    async def close(self, reason: str) -> None:
        log.info("viewer %s: %s", self.id, reason)
        await self.peer.close()

    def pictures(self) -> Pictures | None:
        """As `pictures_of` its connection."""
        return pictures_of(self.peer)


class Viewers:
    """All of a server. total: at a time. per_client: from one address. taken: how many sessions a token has."""

    def __init__(
        self,
        clock: Clock,
        make_peer: PeerFactory = Peer,
        total: int = 64,
        per_client: int = 8,
        taken: Callable[[str], int] = lambda name: 0,
    ) -> None:
        self.clock = clock
        self.total = total
        self.per_client = per_client
        self.live: dict[str, Viewer] = {}
        self.opened = 0
        self._taken = taken
        self._make_peer = make_peer
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False

    async def open(self, watched: Watched, sdp: str, caller: Caller) -> tuple[Viewer, str]:
        """Returns the viewer and the SDP answer. Raises: HTTPTooManyRequests, HTTPServiceUnavailable, OfferError."""
        check_offer(sdp)
        self._check_room(caller)
        viewer = Viewer(watched, caller, self.clock, self._make_peer)
        self.live[viewer.id] = viewer
        try:
            answer = await viewer.open(sdp)
        except BaseException:
            self.live.pop(viewer.id, None)
            raise
        task = asyncio.create_task(self._keep(viewer), name=f"{viewer.id}/keep")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.opened += 1
        log.info("viewer %s: watches %s", viewer.id, watched.id)
        return viewer, answer

    def _check_room(self, caller: Caller) -> None:
        headers = {"Retry-After": RETRY_S}
        viewers = list(self.live.values())
        mine = self._taken(caller.name) + sum(v.caller.name == caller.name for v in viewers)
        here = sum(v.caller.address == caller.address for v in viewers)
        if self._stopping:
            raise web.HTTPServiceUnavailable(text="the server is shutting down")
        if caller.sessions and mine >= caller.sessions:
            words = f"too many sessions: {caller.sessions} with this token are taken; close one first"
            raise web.HTTPTooManyRequests(text=words, headers=headers)
        if here >= self.per_client:
            words = f"too many viewers: {self.per_client} from one address watch already; close one first"
            raise web.HTTPTooManyRequests(text=words, headers=headers)
        if len(viewers) >= self.total:
            words = f"the server is full: {self.total} watch already"
            raise web.HTTPServiceUnavailable(text=words, headers=headers)

    def of(self, session_id: str) -> int:
        """How many watch that running graph."""
        return sum(v.watched.id == session_id for v in self.live.values())

    def pictures(self) -> list[Pictures]:
        return [p for v in self.live.values() if (p := v.pictures()) is not None]

    async def _keep(self, viewer: Viewer) -> None:
        try:
            await viewer.run()
        except Exception:
            # boundary: what one viewer does must not reach the others
            log.exception("viewer %s failed", viewer.id)
        finally:
            self.live.pop(viewer.id, None)

    async def close_all(self) -> None:
        """End all and take no more. Bounded as each peer's close is."""
        self._stopping = True
        viewers = list(self.live.values())
        await asyncio.gather(*(v.close("the server stops") for v in viewers), return_exceptions=True)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1)
