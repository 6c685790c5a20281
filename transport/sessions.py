"""All live sessions of a server: admits, finds and ends them. One that fails leaves the others alone."""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from aiohttp import web

from ..pipeline.clock import Clock
from ..pipeline.graph import Plan
from .budgets import Budgets, DownlinkBudget, Pictures, UplinkBudget
from .caller import LOCAL, Caller
from .live_session import RESUME, Gone, LiveSession, SessionFactory
from .offer import check_offer
from .peer import Peer, PeerFactory

log = logging.getLogger(__name__)

RETRY_S = "5"  # for who found the server full


@dataclass(frozen=True, slots=True)
class Limits:
    """total: sessions in all; per_client: from one address. resume: ns that a lost client may take to come
    back. longest: ns that a session may last; 0: any time. viewers: that watch sessions, in all."""

    total: int = 16
    per_client: int = 8
    resume: int = RESUME
    longest: int = 0
    viewers: int = 64


class Sessions:
    """graphs: what clients may ask for; the first is the default. make_peer: with the server's ICE settings."""

    def __init__(
        self,
        graphs: Mapping[str, Plan],
        clock: Clock,
        factory: SessionFactory,
        limits: Limits = Limits(),
        make_peer: PeerFactory = Peer,
    ) -> None:
        self.graphs = graphs
        self.clock = clock
        self.factory = factory
        self.limits = limits
        self.resumed = 0  # times a client came back
        self.evicted = 0  # sessions whose client was away, for new ones
        self.live: dict[str, LiveSession] = {}
        self.broken: dict[str, str] = {}  # graphs that could not start when last tried → why
        self.opened: Callable[[LiveSession], None] = lambda live: None
        self.closed: Callable[[LiveSession], None] = lambda live: None
        self.make_peer = make_peer
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._divide: Callable[[int], None] = lambda now: None  # the shared uplink anew

    @property
    def default(self) -> str:
        return next(iter(self.graphs))

    async def open(
        self, graph: str, sdp: str, caller: Caller = LOCAL, *, resumable: bool = True, watches: bool = False
    ) -> tuple[LiveSession, str]:
        """Start a session. Returns it and the SDP answer.

        Raises: HTTPNotFound, HTTPTooManyRequests, HTTPServiceUnavailable, OfferError, StageError.
        """
        plan = self.graphs.get(graph)
        if plan is None:
            raise web.HTTPNotFound(
                text=f"unknown graph {graph[:64]!r}; this server has: {', '.join(self.graphs)}"
            )
        check_offer(sdp)  # before it takes anybody's place
        await self._make_room(caller)
        live = LiveSession(
            plan,
            f"s-{secrets.token_hex(8)}",
            self.clock,
            self.factory,
            caller,
            resume=self.limits.resume if resumable else 0,
            longest=min(filter(None, (self.limits.longest, caller.longest)), default=0),
            watches=watches,
            make_peer=self.make_peer,
        )
        live.focus.joined = lambda: self._divide(self.clock.now())
        self.live[live.id] = live
        try:
            answer = await live.open(sdp)
        except BaseException:
            self.live.pop(live.id, None)
            raise
        task = asyncio.create_task(self._keep(live), name=f"{live.id}/keep")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.opened(live)
        log.info("session %s: open, graph %s", live.id, graph)
        return live, answer

    async def resume(
        self, token: str, sdp: str, after: int, caller: Caller = LOCAL
    ) -> tuple[LiveSession, str]:
        """Go on with a session over another connection. Returns it and the SDP answer.

        Raises: HTTPGone when it has ended or never was, OfferError.
        """
        given = token.encode(errors="replace")
        for live in self.live.values():
            if live.resume and hmac.compare_digest(live.resume.encode(), given):
                break
        else:
            raise web.HTTPGone(text="the session has ended; open a new one")
        if live.caller.name != caller.name:
            raise web.HTTPGone(text="the session has ended; open a new one")
        try:
            answer = await live.reattach(sdp, after)
        except Gone:
            raise web.HTTPGone(text="the session has ended; open a new one") from None
        live.caller = caller  # another network has another address
        self.resumed += 1
        return live, answer

    async def _make_room(self, caller: Caller) -> None:
        """Until one more fits; sessions whose client is away give way, the longest away first.

        Raises: HTTPTooManyRequests, HTTPServiceUnavailable.
        """
        while True:
            if self._stopping:
                raise web.HTTPServiceUnavailable(text="the server is shutting down")
            found = self._full(caller)
            if found is None:
                return
            rivals, error = found
            away = [s for s in rivals if s.parked_at]
            if not away:
                raise error
            victim = min(away, key=lambda s: s.parked_at)
            self.evicted += 1
            await victim.close("a new session took the place of one whose client was away")
            self.live.pop(victim.id, None)

    def _full(self, caller: Caller) -> tuple[list[LiveSession], web.HTTPException] | None:
        """The sessions that fill the limit which is met, and what to tell; None when there is room."""
        sessions = list(self.live.values())
        headers = {"Retry-After": RETRY_S}
        mine = [s for s in sessions if s.caller.name == caller.name]
        if caller.sessions and len(mine) >= caller.sessions:
            words = f"too many sessions: {caller.sessions} with this token are taken; close one first"
            return mine, web.HTTPTooManyRequests(text=words, headers=headers)
        here = [s for s in sessions if s.remote == caller.address]
        if len(here) >= self.limits.per_client:
            words = f"too many sessions: {self.limits.per_client} from one address are taken; close one first"
            return here, web.HTTPTooManyRequests(text=words, headers=headers)
        if len(sessions) >= self.limits.total:
            words = f"the server is full: it runs {self.limits.total} sessions"
            return sessions, web.HTTPServiceUnavailable(text=words, headers=headers)
        return None

    async def _keep(self, live: LiveSession) -> None:
        try:
            await live.run()
        except Exception:
            # boundary: what one session does must not reach the others
            log.exception("session %s failed", live.id)
        finally:
            self.live.pop(live.id, None)
            self.closed(live)

    def budgets(
        self,
        uplink_bps: int = 0,
        downlink_bps: int = 0,
        viewers: Callable[[], list[Pictures]] = list,
    ) -> Budgets:
        """What divides these links among the sessions and viewers; 0: no bound but each path."""

        def seen() -> list[Pictures]:
            return [p for live in self.live.values() if (p := live.pictures()) is not None]

        up = UplinkBudget(lambda: [live.focus for live in self.live.values()], uplink_bps)
        self._divide = lambda now: up.step(now)
        return Budgets(
            up,
            DownlinkBudget(lambda: seen() + viewers(), lambda: len(self.live) - len(seen()), downlink_bps),
            self.clock,
        )

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
