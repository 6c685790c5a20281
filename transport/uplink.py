"""All that one connection sends: numbered, paced, and measured by what the far end reports.

One `Uplink` for each DTLS transport: sound and picture share the path, so they share the estimate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakMethod, ref

from aiortc import clock as ntp
from aiortc.rtp import HeaderExtensionsMap, RtpPacket

from ..pipeline.clock import MS, SECOND, LoopClock
from .bandwidth import Bandwidth, Received
from .feedback import parse_feedback
from .pacer import MAX_WAIT, Pacer

SENT = 4096  # packets that feedback may still tell of: 10 s at 3 Mb/s
AUDIO_SHARE_BPS = 45_000  # kept free of video while there is sound, with its headers
LEAST_VIDEO_BPS = (
    8_000  # a picture now and then: sound comes first, and on a path this narrow it takes nearly all
)
PAYLOAD_SHARE = 0.92  # of the rest: RTP, SRTP and extension headers, and a few repeats
ROOM = 15 * MS  # a picture is encoded when it would wait no longer than this
LOOK = 30 * MS
RTT_ALPHA = 0.85
PATIENT = (
    2.5  # times as long as usual a picture may take where its rate is granted: its size was made for that
)
LOSSY = (
    10 * SECOND
)  # after a loss a last packet is sent twice; on other paths it would be an eighth more bits
OVERRUN_APART = 2 * SECOND  # keyframes made because so much was lost


class Transport(Protocol):
    """aiortc's RTCDtlsTransport."""

    async def _send_rtp(self, data: bytes) -> None: ...


class Uplink:
    """`send` sound at once; `queue` video, which leaves as the pacer allows."""

    def __init__(self, transport: Transport) -> None:
        self.bandwidth = Bandwidth()
        self.pacer: Pacer[tuple[RtpPacket, HeaderExtensionsMap]] = Pacer(self.bandwidth.target_bps)
        self.rtt_ms: float | None = None
        self.has_audio = False
        self.granted_bps = 0
        self.lossy_until = 0  # ns
        self._held_bps = 0  # of the grant before, while pictures that were made for it wait
        self._on_shed: list[WeakMethod[Callable[[], None]]] = []
        self._overrun_at = -OVERRUN_APART
        self._fell_ms = self.bandwidth.fell_ms
        self.sent_bytes = 0
        self.repeated = 0  # packets
        self._transport = ref(transport)  # it is the key under which we are found: it must be free to go
        self._loop = asyncio.get_running_loop()
        self._clock = LoopClock(self._loop)
        self._number = 0  # of the next packet, not wrapped
        self._sent: dict[int, tuple[float, int]] = {}  # number → (sent ms, bytes)
        self._timer: asyncio.TimerHandle | None = None
        self._flushing: asyncio.Task[None] | None = None

    def when_shed(self, method: Callable[[], None]) -> None:
        """To call when pictures are beyond repair. Kept weakly: its object holds the transport, our key."""
        self._on_shed = [kept for kept in self._on_shed if kept() not in (None, method)] + [
            WeakMethod(method)
        ]

    @property
    def video_bps(self) -> int:
        """What a video encoder may make."""
        audio = AUDIO_SHARE_BPS if self.has_audio else 0
        return round(max(LEAST_VIDEO_BPS, self.bandwidth.target_bps - audio) * PAYLOAD_SHARE)

    def grant(self, bps: int) -> None:
        """Of a link that others use too, by who divides it: keyframes are spread for it. 0: all that the path carries."""
        self.granted_bps = bps
        self._held_bps = 0 if not bps else max(bps, self._held_bps)
        self._follow()

    async def send(self, packet: RtpPacket, extensions: HeaderExtensionsMap) -> None:
        size = await self._write(packet, extensions)
        self.pacer.spent(size, self._clock.now())

    async def queue(self, lane: str, packets: list[RtpPacket], extensions: HeaderExtensionsMap) -> None:
        """lane: "video", or "again" for repeats."""
        now = self._clock.now()
        for packet in packets:
            self.pacer.push(lane, (packet, extensions), len(packet.payload) + 24, now)
        if lane == "again":
            self.repeated += len(packets)
        await self._flush()

    async def room(self) -> None:
        """Until a new picture would soon leave."""
        while (delay := self.pacer.delay(self._clock.now())) > ROOM:  # noqa: ASYNC110 - the time is known ...
            await asyncio.sleep(min(LOOK, delay - ROOM // 2) / SECOND)  # ... but may become shorter

    async def _flush(self) -> None:
        for packet, extensions in self.pacer.pop(self._clock.now()):
            await self._write(packet, extensions)
        now = self._clock.now()
        wake = self.pacer.wake(now)
        if wake is not None and self._timer is None:
            self._timer = self._loop.call_later((wake - now) / 1e9, self._awake)

    def _awake(self) -> None:
        self._timer = None
        self._flushing = self._loop.create_task(self._flush_later(), name="uplink")

    async def _flush_later(self) -> None:
        try:
            await self._flush()
        except ConnectionError:
            self.close()

    async def _write(self, packet: RtpPacket, extensions: HeaderExtensionsMap) -> int:
        packet.extensions.transport_sequence_number = self._number & 0xFFFF
        packet.extensions.abs_send_time = ntp.current_ntp_time() >> 14 & 0x00FFFFFF
        data = packet.serialize(extensions)
        self._sent[self._number] = (self._clock.now() / MS, len(data))
        self._number += 1
        if len(self._sent) > SENT:
            del self._sent[next(iter(self._sent))]
        self.sent_bytes += len(data)
        transport = self._transport()
        if transport is None:
            raise ConnectionError("the transport is gone")
        await transport._send_rtp(data)  # pyright: ignore[reportPrivateUsage]
        return len(data)

    # ------------------------------------------------------------ what the far end says

    def on_feedback(self, fci: bytes) -> None:
        """Transport-wide feedback; what cannot be read is no feedback."""
        try:
            feedback = parse_feedback(fci)
        except ValueError:
            return
        # its 16 bits, nearest below the next number
        first = self._number - ((self._number - feedback.base) & 0xFFFF)
        packets: list[Received] = []
        for k, arrival_us in enumerate(feedback.arrivals):
            if (sent := self._sent.get(first + k)) is None:
                continue
            if arrival_us is not None:
                del self._sent[first + k]  # told of twice it would count twice
            packets.append(Received(sent[0], arrival_us / 1000 if arrival_us is not None else None, sent[1]))
        if packets:
            self.bandwidth.on_feedback(packets, self._clock.now() / MS, self.rtt_ms or 100.0)
            self._follow()

    def on_remb(self, bps: float) -> None:
        self.bandwidth.on_remb(bps, self._clock.now() / MS)
        self._follow()

    def on_report(self, fraction_lost: float, rtt_ms: float | None) -> None:
        if rtt_ms is not None and rtt_ms > 0:
            before = self.rtt_ms if self.rtt_ms is not None else rtt_ms
            self.rtt_ms = RTT_ALPHA * before + (1 - RTT_ALPHA) * rtt_ms
        self.bandwidth.on_report(fraction_lost, self._clock.now() / MS)
        self._follow()

    def _follow(self) -> None:
        target_bps = self.bandwidth.target_bps
        if self.bandwidth.loss > 0:
            self.lossy_until = self._clock.now() + LOSSY
        if not self.pacer.waiting:
            self._held_bps = self.granted_bps
        granted = 0 < self._held_bps < target_bps
        self.pacer.target_bps = self._held_bps if granted else target_bps
        # several that send their pictures fast at once overrun the link that they share: slowly, then, and with patience
        self.pacer.congested = granted or self.bandwidth.congested
        self.pacer.patience = PATIENT if granted else 1.0
        self.pacer.draining = self.bandwidth.is_standing
        now = self._clock.now()
        fell, self._fell_ms = self.bandwidth.fell_ms > self._fell_ms, self.bandwidth.fell_ms
        overrun = self.bandwidth.is_overrun and now - self._overrun_at > OVERRUN_APART
        if overrun or fell:
            self._overrun_at = now
        shed = self.pacer.shed(now, 0 if fell else MAX_WAIT)
        if shed or overrun or fell:
            for kept in self._on_shed:
                if (tell := kept()) is not None:
                    tell()

    def close(self) -> None:
        """Nothing more leaves by itself. Idempotent."""
        self.pacer.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def figures(self) -> dict[str, Any]:
        """docs/protocol.md, `transport.sending`."""
        return {
            "target_kbps": self.bandwidth.target_bps // 1000,
            "by": self.bandwidth.source,
            "rtt_ms": round(self.rtt_ms, 1) if self.rtt_ms is not None else None,
            "loss_pct": round(100 * self.bandwidth.loss, 1),
            "bytes": self.sent_bytes,
            "repeated": self.repeated,
            "dropped": self.pacer.dropped,
        }


_uplinks: WeakKeyDictionary[Any, Uplink] = WeakKeyDictionary()


def uplink_of(transport: Any) -> Uplink:
    """The one of this DTLS transport."""
    uplink = _uplinks.get(transport)
    if uplink is None:
        uplink = _uplinks[transport] = Uplink(transport)
    return uplink
