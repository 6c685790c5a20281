"""Receives one track: RTP packets in, frames to its decoder's thread, and RTCP back to the sender.

It stands in for aiortc's RTCRtpReceiver (`_compat.install`): the same calls, another inside. Packets go through
`VideoBuffer` or `AudioBuffer`; losses are asked for again while that can help (`Nacks`), keyframes are asked
for when nothing else helps, arrivals are reported to the sender's bandwidth estimate (`Arrivals`, else REMB).
"""
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import logging
import queue
import random
import threading
from typing import Protocol
from weakref import WeakKeyDictionary

from aiortc.clock import current_datetime
from aiortc.codecs import depayload, get_capabilities, is_rtx
from aiortc.exceptions import InvalidStateError
from aiortc.rate import RemoteBitrateEstimator
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpparameters import RTCRtpCapabilities, RTCRtpCodecParameters, RTCRtpReceiveParameters
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_PLI,
    RTCP_RTPFB_NACK,
    AnyRtcpPacket,
    RtcpByePacket,
    RtcpPsfbPacket,
    RtcpRrPacket,
    RtcpRtpfbPacket,
    RtcpSrPacket,
    RtpPacket,
    pack_remb_fci,
    unwrap_rtx,
)
from aiortc.stats import RTCInboundRtpStreamStats, RTCStatsReport

from ..pipeline.clock import MS, SECOND, LoopClock
from .checked_rtp import MALFORMED
from .ingress import ENCODED, Decoded, DecodedHere, IngressTrack, decode_loop
from .jitter_buffer import EncodedFrame
from .received_stream import AudioStream, Stream, VideoStream
from .reception import Reception
from .red import unpack as unpack_red
from .sequence import Unwrap
from .stamped_socket import latest_arrival
from .twcc import Arrivals

log = logging.getLogger(__name__)

QUIET = 500 * MS  # after so long without a packet another source may take the track over
REPORT = SECOND  # between receiver reports, varied by half of it (RFC 3550 section 6.2)
MAX_SOURCES = 8  # whose counts are kept, RTX's included
NTP_UNIX = 2_208_988_800  # s from 1900 to 1970

_arrivals: WeakKeyDictionary[RTCDtlsTransport, Arrivals] = WeakKeyDictionary()


class Encoded(Protocol):
    """Where encoded frames go to be decoded; None ends it."""

    def put(self, task: tuple[RTCRtpCodecParameters, EncodedFrame] | None, /) -> None: ...
    def qsize(self) -> int: ...


class RtpReceiver:
    """One media section's receiving half. Public names are those of the ORTC API as aiortc has it."""

    def __init__(self, kind: str, transport: RTCDtlsTransport) -> None:
        if transport.state == "closed":
            raise InvalidStateError
        self.kind = kind
        self._enabled = True
        self._track: IngressTrack | None = None
        self._transport = transport
        self._loop: asyncio.AbstractEventLoop  # from `receive` on
        self._clock: LoopClock
        self._codecs: dict[int, RTCRtpCodecParameters] = {}
        self._rtx: dict[int, int] = {}  # SSRC of retransmissions → that of the stream
        self._ssrc: int | None = None  # ours, in RTCP
        self._stream: VideoStream | AudioStream | None = None
        self._sources: dict[int, tuple[Unwrap, Unwrap, Reception]] = {}
        self._remb = RemoteBitrateEstimator() if kind == "video" else None
        self._outbox: list[bytes] = []
        self._sending: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0
        self._next_report = 0
        self._encoded: Encoded | None = None  # what decodes, from `receive` on
        self._keyframe_wanted = threading.Event()
        self._seen: Arrivals | None = None  # of all that comes over our transport
        self._started = False  # by `receive`
        self._ended = False

    @property
    def track(self) -> IngressTrack | None:
        return self._track

    @property
    def transport(self) -> RTCDtlsTransport:
        return self._transport

    @classmethod
    def getCapabilities(cls, kind: str) -> RTCRtpCapabilities:
        return get_capabilities(kind)

    def setTransport(self, transport: RTCDtlsTransport) -> None:
        self._transport = transport
        self._seen = None

    def _set_rtcp_ssrc(self, ssrc: int) -> None:
        self._ssrc = ssrc

    async def receive(self, parameters: RTCRtpReceiveParameters) -> None:
        """Begin. `_track` is set by then."""
        if self._started:
            return
        assert self._track is not None
        self._started = True
        self._loop = asyncio.get_running_loop()
        self._clock = LoopClock(self._loop)
        self._codecs = {c.payloadType: c for c in parameters.codecs if c.payloadType is not None}
        self._rtx = {e.rtx.ssrc: e.ssrc for e in parameters.encodings if e.rtx}
        if self._encoded is None:
            self._encoded = self._make_decoder(self._track.decoded)
        self._transport._register_rtp_receiver(self, parameters)

    def _make_decoder(self, decoded: Decoded) -> Encoded:
        if self.kind == "audio":
            return DecodedHere(decoded, self._keyframe_wanted)
        waiting: queue.SimpleQueue[tuple[RTCRtpCodecParameters, EncodedFrame] | None] = queue.SimpleQueue()
        threading.Thread(
            target=decode_loop,
            name=f"{self.kind}-decoder",
            args=(self._loop, waiting, decoded, self._keyframe_wanted),
            daemon=True,  # a process that forgets to close a connection ends all the same
        ).start()
        return waiting

    async def stop(self) -> None:
        """End, for good."""
        if self._started:
            self._transport._unregister_rtp_receiver(self)
            self._end()

    def _handle_disconnect(self) -> None:
        self._end()

    def _end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._ended and self._encoded is not None:
            self._ended = True
            self._encoded.put(None)  # the track ends when all before it is decoded

    async def getStats(self) -> RTCStatsReport:
        report = RTCStatsReport()
        for ssrc, (_, _, reception) in self._sources.items():
            report.add(
                RTCInboundRtpStreamStats(
                    timestamp=current_datetime(),
                    type="inbound-rtp",
                    id=f"inbound-rtp_{id(self)}_{ssrc}",
                    ssrc=ssrc,
                    kind=self.kind,
                    transportId=self._transport._stats_id,
                    packetsReceived=reception.received,
                    packetsLost=reception.lost,
                    jitter=round(reception.jitter),
                )
            )
        report.update(self._transport._get_stats())
        return report

    # ---------------------------------------------------------------- packets

    async def _handle_rtcp_packet(self, packet: AnyRtcpPacket) -> None:
        now = self._clock.now()
        if isinstance(packet, RtcpSrPacket) and (source := self._sources.get(packet.ssrc)) is not None:
            _, timestamps, reception = source
            ntp = packet.sender_info.ntp_timestamp
            reception.sender_report(ntp, now)
            stream = self._stream
            if ntp and stream is not None and stream.ssrc == packet.ssrc:
                wall = ((ntp >> 32) - NTP_UNIX) * SECOND + ((ntp & 0xFFFFFFFF) * SECOND >> 32)
                stream.report(wall, timestamps.peek(packet.sender_info.rtp_timestamp), now)
        elif isinstance(packet, RtcpByePacket):
            self._end()

    async def _handle_rtp_packet(self, packet: RtpPacket, arrival_time_ms: int) -> None:
        """arrival_time_ms: of aiortc's wall clock, for REMB."""
        if not self._enabled or self._ended:
            return
        now = self._clock.now()
        arrival = latest_arrival(self._transport, now)
        number = packet.extensions.transport_sequence_number
        if number is not None:
            self._arrivals.received(number, arrival, packet.ssrc)
        elif self._remb is not None and packet.extensions.abs_send_time is not None:
            self._estimate(packet, arrival_time_ms)
        codec = self._codecs.get(packet.payload_type)
        if codec is not None:
            self._take(packet, codec, arrival, now)
        self._service(now)
        if self._outbox:
            await self._flush()

    def _take(self, packet: RtpPacket, codec: RTCRtpCodecParameters, arrival: int, now: int) -> None:
        source = self._sources.get(packet.ssrc)
        if source is None:
            if len(self._sources) >= MAX_SOURCES:
                return
            source = self._sources[packet.ssrc] = (Unwrap(16), Unwrap(32), Reception(codec.clockRate))
        numbers, timestamps, reception = source
        seq, timestamp = numbers(packet.sequence_number), timestamps(packet.timestamp)
        reception.add(seq, timestamp, arrival)
        if is_rtx(codec):
            original = self._sources.get(self._rtx.get(packet.ssrc, -1))
            apt = codec.parameters.get("apt")
            if (
                original is None
                or not isinstance(apt, int)
                or apt not in self._codecs
                or len(packet.payload) < 2
            ):
                return
            packet = unwrap_rtx(packet, payload_type=apt, ssrc=self._rtx[packet.ssrc])
            codec = self._codecs[apt]
            seq, timestamp = original[0].peek(packet.sequence_number), original[1].peek(packet.timestamp)
        stream = self._stream
        if stream is None or (stream.ssrc != packet.ssrc and now - stream.heard > QUIET):
            assert self._track is not None
            make = VideoStream if self.kind == "video" else AudioStream
            stream = self._stream = make(packet.ssrc, codec.clockRate, timestamp, self._track, now)
        if stream.ssrc != packet.ssrc:
            return
        if codec.name == "red":
            self._take_redundant(stream, packet, seq, timestamp, arrival, now)
            return
        try:
            data = depayload(codec, packet.payload) if packet.payload else b""
        except (ValueError, *MALFORMED):
            self._count("malformed")
            return
        stream.insert(codec, seq, timestamp, data, bool(packet.marker), arrival, now)

    def _take_redundant(
        self, stream: Stream, packet: RtpPacket, seq: int, timestamp: int, arrival: int, now: int
    ) -> None:
        """Its own frame, and of those before it what has not come."""
        try:
            *before, own = unpack_red(packet.payload)
        except ValueError:
            self._count("malformed")
            return
        codec = self._codecs.get(own.payload_type)
        if codec is None or codec.name == "red" or not isinstance(stream, AudioStream):
            self._count("malformed")
            return
        for k, block in enumerate(before):
            if block.payload_type == own.payload_type and block.data:
                stream.insert_again(
                    codec, seq - len(before) + k, timestamp - block.offset, block.data, arrival
                )
        stream.insert(codec, seq, timestamp, own.data, bool(packet.marker), arrival, now)

    def _service(self, now: int) -> None:
        """Hand on what is due, queue the RTCP that is due, and set the timer for what will be."""
        due: list[int | None] = [self._arrivals.due]
        if due[0] is not None and due[0] <= now and self._ssrc is not None:
            self._send(self._arrivals.report(now, self._ssrc))
            due[0] = None
        stream = self._stream
        if stream is not None:
            for frame in stream.pop(now):
                self._decode(stream.codec, frame)
            if isinstance(stream, VideoStream):
                self._repair(stream, now)
            due.append(stream.next_due())
        if now >= self._next_report:
            self._report(now)
            self._next_report = now + REPORT // 2 + random.randrange(REPORT)
        due.append(self._next_report)
        self._schedule(min(d for d in due if d is not None), now)

    def _repair(self, stream: VideoStream, now: int) -> None:
        if self._keyframe_wanted.is_set():
            self._keyframe_wanted.clear()
            stream.needs_keyframe = True
        if self._ssrc is None:
            return
        if missing := stream.to_ask(now):
            packet = RtcpRtpfbPacket(fmt=RTCP_RTPFB_NACK, ssrc=self._ssrc, media_ssrc=stream.ssrc)
            packet.lost = missing
            self._send(bytes(packet))
        if stream.asks_keyframe(now):
            self._send(bytes(RtcpPsfbPacket(fmt=RTCP_PSFB_PLI, ssrc=self._ssrc, media_ssrc=stream.ssrc)))

    def _decode(self, codec: RTCRtpCodecParameters, frame: EncodedFrame) -> None:
        assert self._encoded is not None
        if self._encoded.qsize() >= 4 * ENCODED:  # the decoder's thread stands still
            self._count("undecoded")
            self._keyframe_wanted.set()
            return
        self._encoded.put((codec, frame))

    def _estimate(self, packet: RtpPacket, arrival_ms: int) -> None:
        """For senders without transport-cc."""
        assert self._remb is not None
        estimate = self._remb.add(
            abs_send_time=packet.extensions.abs_send_time or 0,
            arrival_time_ms=arrival_ms,
            payload_size=len(packet.payload) + packet.padding_size,
            ssrc=packet.ssrc,
        )
        if estimate is not None and self._ssrc is not None:
            fci = pack_remb_fci(*estimate)
            self._send(bytes(RtcpPsfbPacket(fmt=RTCP_PSFB_APP, ssrc=self._ssrc, media_ssrc=0, fci=fci)))

    def _report(self, now: int) -> None:
        if self._ssrc is not None and self._sources:
            reports = [reception.report(ssrc, now) for ssrc, (_, _, reception) in self._sources.items()]
            self._send(bytes(RtcpRrPacket(ssrc=self._ssrc, reports=reports)))

    @property
    def _arrivals(self) -> Arrivals:
        if self._seen is None:
            self._seen = _arrivals.setdefault(self._transport, Arrivals())
        return self._seen

    def _count(self, what: str) -> None:
        if self._track is not None:
            self._track.counts[what] += 1

    # ---------------------------------------------------------------- timer and sending

    def _schedule(self, at: int, now: int) -> None:
        if self._timer is not None:
            if self._timer_at <= at:  # it fires earlier: it will look again
                return
            self._timer.cancel()
        self._timer_at = max(at, now + MS)
        self._timer = self._loop.call_at(self._timer_at / SECOND, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._ended:
            return
        self._service(self._clock.now())
        if self._outbox:
            task = self._loop.create_task(self._flush(), name=f"{self.kind}/rtcp")
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    def _send(self, packet: bytes | None) -> None:
        if packet is not None:
            self._outbox.append(packet)

    async def _flush(self) -> None:
        packets, self._outbox = self._outbox, []
        try:
            for packet in packets:
                await self._transport._send_rtp(packet)
        except ConnectionError:
            return  # the far end is gone; the connection tells it
