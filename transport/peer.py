"""One far end: our own object around aiortc's connection, with a bounded life.

`accept` answers an offer, `run` returns when the far end is gone and says why, `close` gives everything back
within two seconds, however often and from wherever it is called.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

from aiortc import (
    RTCConfiguration,
    RTCDataChannel,
    RTCPeerConnection,
    RTCRtpTransceiver,
    RTCSessionDescription,
)

from ..pipeline.clock import MS, SECOND, Clock
from . import _compat
from .capture_clock import SenderClock
from .ingress import IngressTrack, Mailbox
from .liveness import CONNECT, PROBE, Liveness
from .offer import OfferError, check_offer
from .outgoing import AudioOut, VideoOut

log = logging.getLogger(__name__)

CLOSE_BUDGET = 1500 * MS
CHANNEL = "penstock"
CHAT_LINES = 64  # that wait for the graph

_compat.install()


class Peer:
    """receive, send: the media kinds ("audio", "video") that the graph takes and gives; others are declined.

    Attributes: `tracks`, by kind, hold what the far end sends, after `accept`; `video_out` and `audio_out`
    what it asked for; `chat` its lines of text, None at the end.
    """

    def __init__(
        self,
        name: str,
        clock: Clock,
        *,
        receive: frozenset[str] = frozenset({"audio", "video"}),
        send: frozenset[str] = frozenset({"audio", "video"}),
    ) -> None:
        self.name = name
        self.clock = clock
        self.tracks: dict[str, IngressTrack] = {}
        self.video_out: VideoOut | None = None
        self.audio_out: AudioOut | None = None
        self.chat = Mailbox(CHAT_LINES)
        self.on_channel: Callable[[RTCDataChannel], None] = lambda channel: channel.close()
        self.gone = ""  # why the far end is lost; empty while it is not
        self._sender_clock = SenderClock()
        self._receive = receive
        self._send = send
        self._has_channel = False
        self._ended = asyncio.Event()
        self._closing: asyncio.Task[None] | None = None
        self._pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self._pc.on("connectionstatechange", self._state_changed)
        self._pc.on("datachannel", self._channel_opened)

    @property
    def state(self) -> str:
        """aiortc's: new, connecting, connected, closed, failed."""
        return self._pc.connectionState

    async def accept(self, sdp: str) -> str:
        """Take an offer, return the full answer with all candidates. Raises: OfferError."""
        check_offer(sdp)
        try:
            await self._pc.setRemoteDescription(RTCSessionDescription(sdp, "offer"))
            for transceiver in self._pc.getTransceivers():
                self._choose(transceiver)
            _compat.be_dtls_server(self._pc)
            await self._pc.setLocalDescription(await self._pc.createAnswer())
        except Exception as e:
            # boundary: SDP from outside fails in many ways inside aiortc
            raise OfferError(f"the offer cannot be answered: {str(e)[:200] or type(e).__name__}") from e
        return self._pc.localDescription.sdp

    def _choose(self, transceiver: RTCRtpTransceiver) -> None:
        """Take and give each kind once, on the first section that offers it; decline the rest."""
        kind = transceiver.kind
        ours = _compat.offered(transceiver)
        takes = kind in self._receive and kind not in self.tracks and ours in ("recvonly", "sendrecv")
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

    def sending(self) -> dict[str, Any]:
        """What the wire carries of ours: docs/protocol.md, `transport.sending`. Empty while nothing is sent."""
        return _compat.sending(self._pc)

    def _sends(self, kind: str) -> bool:
        return (self.video_out if kind == "video" else self.audio_out) is not None

    def _make_out(self, kind: str) -> VideoOut | AudioOut:
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
        for out in (self.video_out, self.audio_out):
            if out is not None:
                out.stop()
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
        self.on_channel = lambda channel: None

    def _lost(self, why: str) -> None:
        self.gone = self.gone or why
        self.chat.put_nowait(None)
        self._ended.set()

    def _state_changed(self) -> None:
        if self.state in ("closed", "failed"):
            self._lost("the client left" if self.state == "closed" else "the connection failed")

    def _channel_opened(self, channel: RTCDataChannel) -> None:
        if channel.label != CHANNEL or self._has_channel:
            log.info("%s: a data channel that is not %r was closed", self.name, CHANNEL)
            channel.close()
            return
        self._has_channel = True
        self.on_channel(channel)
