"""One client's session: its running graph and its data channel, and the connection that they have now.

A connection that is lost may be followed by another within `RESUME`: the graph and all its state live on.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from aiortc import RTCDataChannel

from ..pipeline.clock import MS, SECOND, Clock
from ..pipeline.graph import Plan
from ..pipeline.session import Binding, Session, SessionEvent
from .budgets import Pictures
from .caller import LOCAL, Caller
from .datachannel import Back, ControlChannel
from .focus import Focus
from .line import Line
from .peer import LEFT, Peer, PeerFactory
from .shared_tracks import SharedVideo
from .video_out import VideoOut
from .webrtc_stages import WebRtcIn, WebRtcOut

log = logging.getLogger(__name__)

LAST_WORDS = SECOND // 4  # for the error that ends a session to reach the client
RESUME = 30 * SECOND  # that a lost client may take to come back
RELOAD = 10 * SECOND  # that a page may take which said it would be back
GOODBYE = SECOND // 2  # in which word of a reload may come after the connection's own end: they race


class SessionFactory(Protocol):
    """Makes a session that is not yet started; `Session` itself is one."""

    def __call__(
        self, plan: Plan, session_id: str, clock: Clock, /, *, bindings: Mapping[str, Binding]
    ) -> Session: ...


class Gone(Exception):
    """The session has ended meanwhile."""


def media_of(plan: Plan) -> tuple[frozenset[str], frozenset[str]]:
    """The kinds of media ("audio", "video") that a graph takes from and gives to its peer. Text: see `words_of`."""
    takes: set[str] = set()
    gives: set[str] = set()
    for node in plan.nodes.values():
        if node.use == "webrtc.in":
            takes |= {kind for kind in ("audio", "video") if plan.uses_port(node.name, kind)}
        elif node.use == "webrtc.out":
            gives |= {edge.port for edge in node.inputs} & {"audio", "video"}
    return frozenset(takes), frozenset(gives)


@dataclass(frozen=True, slots=True)
class Words:
    """reads: a graph reads the lines that its peer types. gives: it sends text. captions: of what the peer says."""

    reads: bool
    gives: bool
    captions: bool


def words_of(plan: Plan) -> Words:
    """What a graph does with words. Only recognisers have the ports `partial` and `commit`."""
    sources = [n.name for n in plan.nodes.values() if n.use == "webrtc.in"]
    told = [e for e in plan.edges() if e.port == "text" and plan.nodes[e.node].use == "webrtc.out"]
    return Words(
        reads=any(plan.uses_port(name, "text") for name in sources),
        gives=bool(told),
        captions=any(e.source_port in ("partial", "commit") for e in told),
    )


def pictures_of(peer: Peer) -> Pictures | None:
    """A connection's way down, for the budget that all share; None while it is sent no pictures."""
    video = peer.outs.get("video")
    if not isinstance(video, VideoOut | SharedVideo):
        return None
    kbps = peer.sending().get("target_kbps")
    return Pictures(
        path_bps=1000.0 * kbps if kbps else math.inf,
        limit=partial(setattr, video, "limit_bps"),
        audio="audio" in peer.outs,
    )


def hears_live(plan: Plan) -> bool:
    """Is the sound that the graph sends of live origin? Such edges drop their oldest, generated ones wait."""
    sounds = [e for e in plan.edges() if e.port == "audio" and plan.nodes[e.node].use == "webrtc.out"]
    return bool(sounds) and all(edge.bound.full == "drop_oldest" for edge in sounds)


class LiveSession:
    """Life: `open` an offer → `run` until either side ends → all is closed.

    caller: who opened it, and may come back. resume: ns that it waits for a lost client; 0: it ends at once.
    longest: ns that it may last; 0: any time. watches: the client only receives media (WHEP).
    """

    def __init__(
        self,
        plan: Plan,
        session_id: str,
        clock: Clock,
        factory: SessionFactory,
        caller: Caller = LOCAL,
        *,
        resume: int = 0,
        longest: int = 0,
        watches: bool = False,
        make_peer: PeerFactory = Peer,
    ) -> None:
        self.id = session_id
        self.graph = plan.name
        self.caller = caller
        self.clock = clock
        self.resume = secrets.token_urlsafe(24) if resume else ""
        self.resumes = 0
        self.line = Line(clock)
        self.parked_at = 0  # on the clock; 0: the client is here
        takes, self._gives = media_of(plan)
        if "video" in takes:
            takes |= {"crop"}
        self._takes = frozenset[str]() if watches else takes
        self._make_peer = make_peer
        self.session = factory(
            plan, session_id, clock, bindings={"webrtc.in": self._bind_in, "webrtc.out": self._bind_out}
        )
        self.channel = ControlChannel(
            self.session, session_id, plan.name, clock, chat=self.line.chat.put_nowait, resume=self.resume
        )
        self.channel.steers = caller.may("talk", "control")
        self.channel.abused = self._abused
        line, send = self.line, self.channel.send
        watched, sounds = (lambda: line.video_out is not None), (lambda: line.sounds)
        self.focus = Focus(session_id, plan, clock, send, watched, sounds)
        self.channel.more = lambda: {"focus": self.focus.stats()}
        self._live_audio = hears_live(plan)
        self._within = resume
        self._until = clock.now() + longest if longest else None
        self._deadline = 0  # of a client that is away
        self._lost = ""  # why it is
        self._barred = ""  # why it may not go on
        self._reloads = False
        self._attaching = asyncio.Lock()
        self._news = asyncio.Event()  # another peer, or the announcement of one
        self._closing: asyncio.Task[None] | None = None
        self._old: set[asyncio.Task[None]] = set()
        self._unlisten: Callable[[], None] = lambda: None

    def _bind_in(self, options: Any, params: Any) -> WebRtcIn:
        return WebRtcIn(options, params, self.line, self.focus.stills)

    def _bind_out(self, options: Any, params: Any) -> WebRtcOut:
        return WebRtcOut(options, params, self.line, self.channel, self._live_audio)

    @property
    def remote(self) -> str:
        """The client's address when it opened the session."""
        return self.caller.address

    @property
    def peer(self) -> Peer | None:
        return self.line.peer

    @property
    def state(self) -> str:
        """aiortc's states of the connection, or "parked" while the client is away."""
        return self.line.peer.state if self.line.peer is not None else "parked"

    # ------------------------------------------------------------ connections

    async def open(self, sdp: str) -> str:
        """Start the graph and answer the offer. Raises: OfferError, StageError; then all is closed."""
        try:
            answer = await self._connect(sdp, None)
            self._unlisten = self.session.listen(self._event)
            await self.session.start()
        except BaseException:
            await self.close("not started")
            raise
        return answer

    async def reattach(self, sdp: str, after: int) -> str:
        """Go on over another connection; the one before is closed. after: the number of the last words that
        the client has. Raises: OfferError, and nothing has changed; Gone."""
        async with self._attaching:
            if self._closing is not None:
                raise Gone
            answer = await self._connect(sdp, Back(after))
            self.resumes += 1
            log.info("session %s: the client is back", self.id)
            self.session.notify("session", "resumed", {"resumes": self.resumes}, self.clock.now())
            return answer

    async def _connect(self, sdp: str, back: Back | None) -> str:
        peer = self._make_peer(self.id, self.clock, receive=self._takes, send=self._gives)
        peer.channels = self._channels(back)
        try:
            answer = await peer.accept(sdp)
            if self._closing is not None:
                raise Gone
        except BaseException:
            await peer.close()
            raise
        before = self.line.peer
        self.line.attach(peer)
        self.parked_at = 0
        self._reloads = False
        if before is not None:
            if before.connected:  # if the new one fails, the client may still try another
                self._deadline = self.clock.now() + self._within
            self._discard(before)
        self._wake()
        return answer

    def _channels(self, back: Back | None) -> dict[str, Callable[[RTCDataChannel], None]]:
        """What is done with each data channel that the far end may open, by its label."""

        def control(channel: RTCDataChannel) -> None:
            channel.on("message", self._message)
            channel.on("close", lambda: self.channel.closed(channel))
            self.channel.opened(channel, back)

        return {"penstock": control, "penstock-rt": self.focus.opened}

    def _message(self, message: str | bytes) -> None:
        if not self.focus.receive(message):
            self.channel.receive(message)

    def _event(self, event: SessionEvent) -> None:
        if not self.focus.told(event.name, event.fields):
            self.channel.event(event.node, event.name, event.fields, event.pts)

    def _discard(self, peer: Peer) -> None:
        """Close a peer that another has replaced, beside what goes on."""
        task = asyncio.create_task(peer.close(), name=f"{self.id}/old-peer")
        self._old.add(task)
        task.add_done_callback(self._old.discard)

    def expect_reload(self) -> None:
        """The page is being left, perhaps to come back at once."""
        self._reloads = bool(self._within)
        self._wake()

    def _abused(self, why: str) -> None:
        self._barred = why
        self._news.set()

    def _wake(self) -> None:
        self._news.set()

    # ------------------------------------------------------------ life

    async def run(self) -> None:
        """Until the client is gone for good or the graph has ended, then everything is closed."""
        ended = asyncio.create_task(self.session.wait(), name=f"{self.id}/wait")
        stats = asyncio.create_task(self.channel.run_stats(), name=f"{self.id}/stats")
        reason = "closed"
        try:
            while not (reason := await self._attended(ended) or await self._away(ended)):
                pass
            if self.line.peer is not None:
                self.channel.send("error", message=reason, about="session")
        finally:
            stats.cancel()
            await self.close(reason)
            await asyncio.gather(ended, stats, return_exceptions=True)

    async def _attended(self, ended: asyncio.Task[None]) -> str:
        """While the client is here. Returns why the session ends; empty when the client may come back."""
        peer = self.line.peer
        if peer is None:
            return ""
        left = asyncio.create_task(peer.run(), name=f"{self.id}/peer")
        try:
            while True:
                self._news.clear()
                await self._wait(self._until, left, ended)
                if (why := self._over(ended)) or self.line.peer is not peer:
                    return why
                if left.done() or self._reloads:
                    break
        finally:
            left.cancel()
            await asyncio.gather(left, return_exceptions=True)
        if self.line.peer is not peer:  # another came in that moment
            return ""
        why = left.result() if left.done() and not left.cancelled() else LEFT
        now = self.clock.now()
        if peer.connected and self._within:
            self._deadline = now + (RELOAD if self._reloads else GOODBYE if why == LEFT else self._within)
        if self._closing is not None or now >= self._deadline:
            return why
        if why != LEFT:
            seconds = (self._deadline - now) // SECOND
            log.info("session %s: %s; it may come back within %d s", self.id, why, seconds)
        self._lost = why
        self.parked_at = now
        self.line.detach()
        self.channel.closed()
        self._discard(peer)
        fields = {"reason": why, "within_ms": (self._deadline - now) // MS}
        self.session.notify("session", "parked", fields, now)
        return ""

    async def _away(self, ended: asyncio.Task[None]) -> str:
        """While the client is not here. Returns why the session ends; empty when the client is back."""
        while self.line.peer is None:
            self._news.clear()
            await self._wait(min(self._deadline, self._until or self._deadline), ended)
            if why := self._over(ended):
                return why
            if self._reloads and self._lost == LEFT:
                self._reloads = False
                self._deadline = self.parked_at + RELOAD
            elif self.line.peer is None and self.clock.now() >= self._deadline:
                return self._lost if self._lost == LEFT else f"{self._lost} and did not come back"
        return ""

    def _over(self, ended: asyncio.Task[None]) -> str:
        if self._closing is not None:
            return "closed"
        if self._barred or ended.done():
            return self._barred or self.session.failure or "the graph has ended"
        if self._until is not None and self.clock.now() >= self._until:
            return "the longest time that a session may last is over"
        return ""

    async def _wait(self, until: int | None, *tasks: asyncio.Task[Any]) -> None:
        """For news, one of the tasks, or that time."""
        news = asyncio.create_task(self._news.wait(), name=f"{self.id}/news")
        timeout = max(0, until - self.clock.now()) / SECOND if until is not None else None
        try:
            await asyncio.wait([news, *tasks], return_when=asyncio.FIRST_COMPLETED, timeout=timeout)
        finally:
            news.cancel()

    async def close(self, reason: str) -> None:
        """End now: within two seconds, idempotent."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(reason), name=f"{self.id}/close-all")
            self._wake()
        await asyncio.shield(self._closing)

    async def _close(self, reason: str) -> None:
        peer = self.line.peer
        closing = asyncio.create_task(self.session.close(reason), name=f"{self.id}/session-close")
        if peer is not None:
            await asyncio.wait([closing], timeout=LAST_WORDS / SECOND)
        self.line.close()
        if peer is not None:
            await peer.close()
        await closing
        if self._old:
            await asyncio.wait(self._old)
        self._unlisten()
        self.focus.close()
        self.channel.closed()

    def pictures(self) -> Pictures | None:
        """As `pictures_of` its connection; None while it has none."""
        return pictures_of(self.line.peer) if self.line.peer is not None else None

    def stats(self) -> dict[str, Any]:
        """docs/protocol.md `stats`, and what the wire did."""
        stats = dict(self.session.stats())
        peer, video, audio = self.line.peer, self.line.video_out, self.line.audio_out
        tracks = peer.tracks if peer is not None else {}
        stats["transport"] = {
            "state": self.state,
            "resumes": self.resumes,
            "received_dropped": {kind: track.decoded.dropped for kind, track in tracks.items()},
            "received": {kind: dict(track.counts) for kind, track in tracks.items()},
            "synchronized": {kind: track.capture.is_synchronized for kind, track in tracks.items()},
            "video_sent": video.sent if video else 0,
            "video_replaced": video.replaced if video else 0,
            "video_skipped": video.skipped if video else 0,
            "audio_underruns": audio.underruns if audio else 0,
            "audio_shortened_ms": audio.shortened // 48 if audio else 0,
            "sending": peer.sending() if peer is not None else {},
            "shared": self.line.broadcast.stats(),
            "messages_dropped": self.channel.dropped,
            "focus": self.focus.stats(),
        }
        return stats
