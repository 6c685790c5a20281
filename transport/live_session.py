"""One client's session: its peer, its running graph and its data channel, which live and end together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from aiortc import RTCDataChannel

from ..pipeline.clock import SECOND, Clock
from ..pipeline.graph import Plan
from ..pipeline.session import Binding, Session
from .datachannel import ControlChannel
from .peer import Peer
from .webrtc_stages import WebRtcIn, WebRtcOut

log = logging.getLogger(__name__)

LAST_WORDS = SECOND // 4  # for the error that ends a session to reach the client


class SessionFactory(Protocol):
    """Makes a session that is not yet started; `Session` itself is one."""

    def __call__(
        self, plan: Plan, session_id: str, clock: Clock, /, *, bindings: Mapping[str, Binding]
    ) -> Session: ...


def media_of(plan: Plan) -> tuple[frozenset[str], frozenset[str]]:
    """The kinds of media ("audio", "video") that a graph takes from and gives to its peer."""
    takes: set[str] = set()
    gives: set[str] = set()
    for node in plan.nodes.values():
        if node.use == "webrtc.in":
            takes |= {kind for kind in ("audio", "video") if plan.uses_port(node.name, kind)}
        elif node.use == "webrtc.out":
            gives |= {edge.port for edge in node.inputs} & {"audio", "video"}
    return frozenset(takes), frozenset(gives)


def hears_live(plan: Plan) -> bool:
    """Is the sound that the graph sends of live origin? Such edges drop their oldest, generated ones wait."""
    sounds = [e for e in plan.edges() if e.port == "audio" and plan.nodes[e.node].use == "webrtc.out"]
    return bool(sounds) and all(edge.bound.full == "drop_oldest" for edge in sounds)


class LiveSession:
    """Life: `open` an offer → `run` until either side ends → all is closed."""

    def __init__(
        self, plan: Plan, session_id: str, clock: Clock, factory: SessionFactory, remote: str = ""
    ) -> None:
        self.id = session_id
        self.graph = plan.name
        self.remote = remote
        takes, gives = media_of(plan)
        self.peer = Peer(session_id, clock, receive=takes, send=gives)
        self.session = factory(
            plan, session_id, clock, bindings={"webrtc.in": self._bind_in, "webrtc.out": self._bind_out}
        )
        self.channel = ControlChannel(
            self.session, session_id, plan.name, clock, chat=self.peer.chat.put_nowait
        )
        self._live_audio = hears_live(plan)
        self._closing: asyncio.Task[None] | None = None
        self._unlisten: Callable[[], None] = lambda: None

    def _bind_in(self, options: Any, params: Any) -> WebRtcIn:
        return WebRtcIn(options, params, self.peer)

    def _bind_out(self, options: Any, params: Any) -> WebRtcOut:
        return WebRtcOut(options, params, self.peer, self.channel, self._live_audio)

    async def open(self, sdp: str) -> str:
        """Start the graph and answer the offer. Raises: OfferError, StageError; then all is closed."""
        try:
            self.peer.on_channel = self._channel_opened
            answer = await self.peer.accept(sdp)
            self._unlisten = self.session.listen(
                lambda event: self.channel.event(event.node, event.name, event.fields, event.pts)
            )
            await self.session.start()
        except BaseException:
            await self.close("not started")
            raise
        return answer

    async def run(self) -> None:
        """Until the client is gone or the graph has ended, then everything is closed."""
        left = asyncio.create_task(self.peer.run(), name=f"{self.id}/peer")
        ended = asyncio.create_task(self.session.wait(), name=f"{self.id}/wait")
        stats = asyncio.create_task(self.channel.run_stats(), name=f"{self.id}/stats")
        reason = "closed"
        try:
            await asyncio.wait([left, ended], return_when=asyncio.FIRST_COMPLETED)
            reason = left.result() if left.done() else self.session.failure or "the graph has ended"
            if not left.done():
                self.channel.send("error", message=reason, about="session")
        finally:
            stats.cancel()
            await self.close(reason)
            left.cancel()
            await asyncio.gather(left, ended, stats, return_exceptions=True)

    async def close(self, reason: str) -> None:
        """End now: within two seconds, idempotent."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(reason), name=f"{self.id}/close-all")
        await asyncio.shield(self._closing)

    async def _close(self, reason: str) -> None:
        closing = asyncio.create_task(self.session.close(reason), name=f"{self.id}/session-close")
        await asyncio.wait([closing], timeout=LAST_WORDS / SECOND)
        await self.peer.close()
        await closing
        self._unlisten()
        self.channel.closed()

    def stats(self) -> dict[str, Any]:
        """docs/protocol.md `stats`, and what the wire did."""
        stats = dict(self.session.stats())
        video, audio = self.peer.video_out, self.peer.audio_out
        stats["transport"] = {
            "state": self.peer.state,
            "received_dropped": {kind: track.decoded.dropped for kind, track in self.peer.tracks.items()},
            "received": {kind: dict(track.counts) for kind, track in self.peer.tracks.items()},
            "video_sent": video.sent if video else 0,
            "video_replaced": video.replaced if video else 0,
            "audio_underruns": audio.underruns if audio else 0,
            "audio_shortened_ms": audio.shortened // 48 if audio else 0,
            "sending": self.peer.sending(),
            "messages_dropped": self.channel.dropped,
        }
        return stats

    def _channel_opened(self, channel: RTCDataChannel) -> None:
        channel.on("message", self._message)
        channel.on("close", self.channel.closed)
        self.channel.opened(channel)

    def _message(self, message: str | bytes) -> None:
        self.channel.receive(message)
