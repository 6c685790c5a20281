"""One far end: our own object around aiortc's connection, with a bounded life.

`accept` answers an offer, `run` returns when the far end is gone and says why, `close` gives everything back
within two seconds, however often and from wherever it is called.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

from aiortc import (
    RTCDataChannel,
    RTCPeerConnection,
    RTCRtpTransceiver,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamTrack

from ..pipeline.clock import MS, SECOND, Clock
from . import _compat
from .audio_out import AudioOut
from .broadcast import Broadcast
from .capture_clock import SenderClock
from .ice import NO_ICE, Ice, with_public
from .ingress import IngressTrack
from .liveness import CONNECT, PROBE, Liveness
from .offer import MAX_CANDIDATES, MAX_SECTIONS, OfferError, check_offer
from .trickle import Fragment, RestartRefused
from .video_out import VideoOut

log = logging.getLogger(__name__)

CLOSE_BUDGET = 1500 * MS
LEFT = "the client left"  # it said so itself: it closed the connection

_compat.install()


class PeerFactory(Protocol):
    """`Peer` itself, or one with settings of the server's filled in."""

    def __call__(
        self, name: str, clock: Clock, /, *, receive: frozenset[str], send: frozenset[str]
    ) -> Peer: ...


class Peer:
    """receive, send: the media kinds ("audio", "video") that the graph takes and gives; others are declined. "crop" in
    receive: a second video section, of a client with a data channel, is taken too (crop_track.py).

    Attributes: `tracks`, by kind, hold what the far end sends, after `accept`; `video_out` and `audio_out`
    what it asked for. `channels`, by label, are given the data channels that the far end opens, each label
    once; others are closed.
    """

    def __init__(
        self,
        name: str,
        clock: Clock,
        *,
        receive: frozenset[str] = frozenset({"audio", "video"}),
        send: frozenset[str] = frozenset({"audio", "video"}),
        ice: Ice = NO_ICE,
    ) -> None:
        self.name = name
        self.etag = f'"{secrets.token_hex(8)}"'  # of this connection's ICE session (RFC 9725 section 4.3.1)
        self.clock = clock
        self.tracks: dict[str, IngressTrack] = {}
        self.video_out: VideoOut | None = None
        self.audio_out: AudioOut | None = None
        self.broadcast: Broadcast | None = (
            None  # set before `accept`: what is sent is encoded there, for many
        )
        self.channels: dict[str, Callable[[RTCDataChannel], None]] = {}
        self.gone = ""  # why the far end is lost; empty while it is not
        self.connected = False  # now, or before it was lost
        self._sender_clock = SenderClock()
        self._outs: dict[str, MediaStreamTrack] = {}
        self._receive = receive
        self._send = send
        self._talks = False  # it offers data channels
        self._ended = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None
        self._ice = ice
        self._ufrags: set[str] = set()
        self._trickled = 0
        self._adding: set[asyncio.Task[None]] = set()
        self._pc = RTCPeerConnection(ice.ours())
        self._pc.on("connectionstatechange", self._state_changed)
        self._pc.on("datachannel", self._channel_opened)

    @property
    def state(self) -> str:
        """aiortc's: new, connecting, connected, closed, failed."""
        return self._pc.connectionState

    async def accept(self, sdp: str) -> str:
        """Take an offer, return the full answer with all candidates. Raises: OfferError.

        A STUN server that does not answer holds it up by `_compat.GATHER` at most.
        """
        offer = check_offer(sdp)
        self._ufrags = {media.ice.usernameFragment or "" for media in offer.media if media.ice is not None}
        self._talks = any(media.kind == "application" for media in offer.media)
        try:
            await self._pc.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
            for transceiver in self._pc.getTransceivers():
                self._choose(transceiver)
            if not any(media.dtls is not None and media.dtls.role == "server" for media in offer.media):
                _compat.be_dtls_server(self._pc)  # FFmpeg insists on being it (setup:passive)
            await self._pc.setLocalDescription(await self._pc.createAnswer())
        except Exception as e:
            # boundary: SDP from outside fails in many ways inside aiortc
            raise OfferError(f"the offer cannot be answered: {str(e)[:200] or type(e).__name__}") from e
        return with_public(self._pc.localDescription.sdp, self._ice.public)

    def trickle(self, fragment: Fragment, *, restart: bool = False) -> None:
        """Take candidates that came later. Raises: RestartRefused, OfferError."""
        if restart or fragment.ufrags - self._ufrags:
            raise RestartRefused(
                "ICE restarts are not supported; open a new connection, with the session's resume token to go on"
            )
        self._trickled += len(fragment.candidates)
        if self._trickled > MAX_CANDIDATES * MAX_SECTIONS:
            raise OfferError(f"more than {MAX_CANDIDATES * MAX_SECTIONS} candidates came for one connection")
        if self._closing is None:
            # beside the request: names of mDNS take their time
            task = asyncio.create_task(self._add(fragment), name=f"{self.name}/trickle")
            self._adding.add(task)
            task.add_done_callback(self._adding.discard)

    async def _add(self, fragment: Fragment) -> None:
        for candidate in fragment.candidates:
            try:
                await self._pc.addIceCandidate(candidate)
            except (ValueError, OSError) as e:
                log.info("%s: a candidate was not taken: %s", self.name, e)
        if fragment.end:
            await self._pc.addIceCandidate(None)

    def _choose(self, transceiver: RTCRtpTransceiver) -> None:
        """Take and give each kind once, on the first section that offers it; decline the rest."""
        kind = transceiver.kind
        ours = _compat.offered(transceiver)
        sends = ours in ("recvonly", "sendrecv")
        takes = kind in self._receive and kind not in self.tracks and sends
        crop = kind == "video" and "video" in self.tracks and self._talks and sends
        if crop and "crop" in self._receive and "crop" not in self.tracks:
            kind, takes = "crop", True
        gives = kind in self._send and not self._sends(kind) and ours in ("sendonly", "sendrecv")
        if takes:
            track = self.tracks[kind] = cast("IngressTrack", transceiver.receiver.track)
            track.capture.sender = self._sender_clock
        if gives:
            transceiver.sender.replaceTrack(self._make_out(kind))
        transceiver.direction = {
            (True, True): "sendrecv",
            (True, False): "recvonly",
            (False, True): "sendonly",
        }.get((takes, gives), "inactive")

    @property
    def outs(self) -> Mapping[str, MediaStreamTrack]:
        """What is sent, by kind: its own, or those of `broadcast`."""
        return self._outs

    def sending(self) -> dict[str, Any]:
        """What the wire carries of ours: docs/protocol.md, `transport.sending`. Empty while nothing is sent."""
        return _compat.sending(self._pc)

    def _sends(self, kind: str) -> bool:
        return kind in self._outs

    def _make_out(self, kind: str) -> MediaStreamTrack:
        out = self._outs[kind] = self._shared(self.broadcast, kind) if self.broadcast else self._own(kind)
        return out

    def _shared(self, broadcast: Broadcast, kind: str) -> MediaStreamTrack:
        return broadcast.video() if kind == "video" else broadcast.audio()

    def _own(self, kind: str) -> VideoOut | AudioOut:
        if kind == "video":
            self.video_out = VideoOut()
            return self.video_out
        self.audio_out = AudioOut(self.clock)
        return self.audio_out

    async def run(self) -> str:
        """Until the far end is lost. Returns why, in words."""
        deadline = self.clock.now() + CONNECT
        liveness: Liveness | None = None
        while not self.gone:
            try:
                async with asyncio.timeout(PROBE / SECOND):
                    await self._ended.wait()
            except TimeoutError:
                now = self.clock.now()
                if self.state != "connected":
                    if liveness is None and now >= deadline:
                        self._lost(f"no connection within {CONNECT // SECOND} s")
                    continue
                if liveness is None:
                    liveness = Liveness(now)
                if liveness.count(_compat.packets_received(self._pc), now):
                    if await _compat.consents(self._pc):
                        liveness.answered(self.clock.now())
                    elif liveness.is_gone(self.clock.now()):
                        self._lost("the client vanished")
        return self.gone

    async def close(self) -> None:
        """Give everything back: bounded, idempotent, also with a dead far end."""
        if self._closing is None:
            self._lost("closed")
            self._closing = asyncio.create_task(self._close(), name=f"{self.name}/peer-close")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        for out in self._outs.values():
            out.stop()
        for task in self._adding:
            task.cancel()
        closing = asyncio.create_task(self._pc.close(), name=f"{self.name}/pc-close")
        _, pending = await asyncio.wait([closing], timeout=CLOSE_BUDGET / SECOND)
        if pending:
            log.error("%s: the connection did not close within %d ms", self.name, CLOSE_BUDGET // MS)
            closing.cancel()
        elif (error := closing.exception()) is not None:
            log.error("%s: closing the connection failed", self.name, exc_info=error)
        for track in self.tracks.values():
            track.end()
        self._pc.remove_all_listeners()
        self.channels.clear()

    def _lost(self, why: str) -> None:
        self.gone = self.gone or why
        self._ended.set()

    def _state_changed(self) -> None:
        if self.state in ("closed", "failed"):
            self._lost(LEFT if self.state == "closed" else "the connection failed")
        self.connected = self.connected or self.state == "connected"

    def _channel_opened(self, channel: RTCDataChannel) -> None:
        opened = self.channels.pop(channel.label, None)
        if opened is None:
            log.info("%s: a data channel that is not known was closed", self.name)
            channel.close()
        else:
            opened(channel)
