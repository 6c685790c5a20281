"""Sends one track of ours: encoded here, paced, repeated when lost, at the rate that the path carries.

Takes the place of aiortc's sender, whose own loop stays for tracks that are not ours and for codecs we do not
encode (G.711, G.722). Only its overridable methods are touched; test_compat.py holds them to it.
"""
# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import OrderedDict
from fractions import Fraction
from typing import Any

import av
from aiortc import clock as ntp
from aiortc.codecs import get_encoder, is_rtx
from aiortc.rtcrtpparameters import RTCRtpCodecParameters, RTCRtpSendParameters
from aiortc.rtcrtpsender import RTCEncodedFrame, RTCRtpSender
from aiortc.rtp import (
    RTCP_PSFB_APP,
    RTCP_PSFB_FIR,
    RTCP_PSFB_PLI,
    RTCP_RTPFB_NACK,
    HeaderExtensionsMap,
    RtcpPsfbPacket,
    RtcpRrPacket,
    RtcpRtpfbPacket,
    RtcpSrPacket,
    RtpPacket,
    unpack_remb_fci,
    wrap_rtx,
)

from ..pipeline.clock import MS, SECOND, LoopClock
from .audio_out import SAMPLES, AudioOut
from .encoded_audio import EncodedAudio
from .encoders import PictureScaler, encode_scaled
from .feedback import TRANSPORT_CC
from .picture_rate import FrameGate, PictureRate, Shape
from .red import Redundancy
from .shared_tracks import SharedAudio, SharedVideo
from .uplink import Uplink, uplink_of
from .video_out import VIDEO_RATE, VideoOut

HISTORY = 768  # packets kept for repeats: 2 s at 3 Mb/s
# up to so many pictures a second the last packet of each is sent twice, so much later
TAIL_FPS, TAIL_AFTER = 12.0, 20 * MS
REPEAT_APART = 20 * MS  # the same packet again: a NACK that crossed the repeat
# requests in between are answered once, at its end; or later, while the last keyframe is on its way
KEYFRAME_APART = 300 * MS


class PacedSender(RTCRtpSender):
    """aiortc makes one for each media section, and calls what is overridden here."""

    def __init__(self, trackOrKind: Any, transport: Any) -> None:
        super().__init__(trackOrKind, transport)
        self.keyframes = 0
        self.encoded = 0
        self.shape: Shape | None = None
        self._extensions = HeaderExtensionsMap()
        self._mid = ""
        self._rtx_type: int | None = None
        self._red: RTCRtpCodecParameters | None = None
        self._rtx_number = random.randrange(1 << 15)  # the lower half: no early wrap, as in libwebrtc
        self._number = random.randrange(1 << 15)
        self._origin = random.getrandbits(32)
        self._history: OrderedDict[int, tuple[RtpPacket, int]] = OrderedDict()  # → when last sent, ns
        self._wants_keyframe = True
        self._hurries = False  # is the next one made for a path that is full?
        self._keyframe_at = -SECOND
        self._next_keyframe = 0  # ns, before which none is made for a request
        self._keyframe_lands = 0  # ns, when the last one can have come
        self._tail: asyncio.Task[None] | None = None
        self._packets = 0
        self._octets = 0
        self._stamp = (0, 0)  # (RTP timestamp, when captured in ns) of the newest packet
        self._rate_hz = VIDEO_RATE
        self._report = (0, 0)  # (middle of the NTP time, when sent in ns) of the last sender report

    @property
    def ours(self) -> bool:
        return isinstance(self.track, VideoOut | AudioOut | SharedVideo | SharedAudio)

    @property
    def uplink(self) -> Uplink:
        return uplink_of(self.transport)

    async def send(self, parameters: RTCRtpSendParameters) -> None:
        self._clock = LoopClock(asyncio.get_running_loop())
        self._extensions.configure(parameters)
        self._mid = parameters.muxId
        main = parameters.codecs[0].payloadType
        for codec in parameters.codecs:
            if is_rtx(codec) and codec.parameters.get("apt") == main:
                self._rtx_type = codec.payloadType
                break
        self._red = next((codec for codec in parameters.codecs if codec.name == "red"), None)
        await super().send(parameters)

    async def stop(self) -> None:
        await super().stop()
        self.uplink.close()
        self._history.clear()

    # ------------------------------------------------------------ media

    async def _next_encoded_frame(self, codec: RTCRtpCodecParameters) -> RTCEncodedFrame | None:
        """For a track of ours this is its whole life: it ends with MediaStreamError."""
        track = self.track
        if isinstance(track, VideoOut):
            await self._send_video(track, codec)
        if isinstance(track, SharedVideo):
            await self._send_shared_video(track, codec)
        if isinstance(track, AudioOut | SharedAudio) and codec.name.lower() == "opus":
            await self._send_audio(track, codec)
        return await super()._next_encoded_frame(codec)

    async def _send_audio(self, track: AudioOut | SharedAudio, codec: RTCRtpCodecParameters) -> None:
        redundancy = Redundancy(codec.payloadType or 0)
        uplink = self.uplink
        uplink.has_audio = True
        after = None  # the time at which the next sound follows without a pause
        source = EncodedAudio(track) if isinstance(track, AudioOut) else track
        while True:
            sound = await source.next()
            if not self._enabled:
                continue
            doubled = redundancy.wrap(sound.data, sound.at, uplink.bandwidth.loss) if self._red else None
            kind, payload = (codec, sound.data) if doubled is None else (self._red or codec, doubled)
            packet = self._packet(kind, payload, sound.at, sound.at != after, sound.captured)
            packet.extensions.audio_level = (False, sound.level)
            after = sound.at + SAMPLES
            await uplink.send(packet, self._extensions)

    async def _send_video(self, track: VideoOut, codec: RTCRtpCodecParameters) -> None:
        loop = asyncio.get_running_loop()
        uplink = self.uplink
        uplink.when_shed(self._shed)
        encoder = track.make_encoder(codec.name, uplink.video_bps)
        packer: Any = get_encoder(codec)
        scaler = PictureScaler()
        rate = PictureRate()
        gate = FrameGate()
        while True:
            await track.wait()
            await uplink.room()
            now = self._clock.now()
            frame, timestamp = track.take()  # the newest: those that came while there was no room are gone
            bps = max(uplink.video_bps - track.beside_bps, uplink.video_bps // 2)
            bps = min(bps, track.limit_bps or bps)
            if track.keyframe_gap and now - self._keyframe_at >= track.keyframe_gap:
                self._wants_keyframe = True
            shape = self.shape = rate.shape(bps, frame.width & ~1, frame.height & ~1, now, track.fps)
            keyframe = self._wants_keyframe and now >= self._next_keyframe
            # pictures that come unevenly pass while there is room for all of them
            passes = keyframe or shape.fps >= track.fps or gate(now, shape.fps)
            if not self._enabled or not passes:
                track.skipped += 1
                continue
            encoder.bitrate_bps = bps
            if keyframe:
                self._wants_keyframe = False
                encoder.hurried, self._hurries = self._hurries, False
            data, is_keyframe = await loop.run_in_executor(
                None, encode_scaled, encoder, scaler, frame, shape, timestamp, keyframe, now
            )
            if is_keyframe:
                self._keyframe_at = now
                on_its_way = len(data) * 8 * SECOND // bps + round((uplink.rtt_ms or 0) * MS)
                self._keyframe_lands = now + on_its_way
                self._next_keyframe = now + max(KEYFRAME_APART, on_its_way)
            if not data:
                continue
            captured = frame.pts if track.stamps_capture else None
            number = await self._send_picture(packer, codec, data, is_keyframe, timestamp, captured)
            if track.fps <= TAIL_FPS and now < uplink.lossy_until:
                loop.call_later(TAIL_AFTER / SECOND, self._repeat_tail, number)

    async def _send_shared_video(self, track: SharedVideo, codec: RTCRtpCodecParameters) -> None:
        uplink = self.uplink
        uplink.when_shed(self._shed)
        packer: Any = get_encoder(codec)
        track.join(codec.name, lambda: uplink.video_bps)
        while True:
            await track.wait()
            await uplink.room()
            if not self._enabled:
                track.skip()
            elif (taken := track.take()) is not None:
                picture, timestamp = taken
                await self._send_picture(
                    packer, codec, picture.data, picture.keyframe, timestamp, picture.captured
                )

    async def _send_picture(
        self,
        packer: Any,
        codec: RTCRtpCodecParameters,
        data: bytes,
        is_keyframe: bool,
        timestamp: int,
        captured: int | None,
    ) -> int:
        """Returns its last packet's sequence number."""
        if is_keyframe:
            self.keyframes += 1
            self._history.clear()  # nobody needs what was before it
        self.encoded += 1
        packed = av.Packet(data)
        packed.pts, packed.time_base = timestamp, Fraction(1, VIDEO_RATE)
        payloads: list[bytes] = packer.pack(packed)[0]
        last = len(payloads) - 1
        packets = [self._packet(codec, p, timestamp, k == last, captured) for k, p in enumerate(payloads)]
        await self.uplink.queue("video", packets, self._extensions)
        return packets[-1].sequence_number

    def _repeat_tail(self, number: int) -> None:
        """The far end learns of a lost last packet by the next picture, and that is far at few pictures a second."""
        if number in self._history and self._enabled:
            self._tail = asyncio.get_running_loop().create_task(self._repeat([number]), name="tail")

    def _packet(
        self,
        codec: RTCRtpCodecParameters,
        payload: bytes,
        timestamp: int,
        marker: bool,
        captured: int | None = None,
    ) -> RtpPacket:
        """captured: when, ns; None: now."""
        packet = RtpPacket(
            payload_type=codec.payloadType or 0,
            sequence_number=self._number,
            timestamp=(self._origin + timestamp) & 0xFFFFFFFF,
            ssrc=self._ssrc,
            payload=payload,
            marker=int(marker),
        )
        packet.extensions.mid = self._mid
        if self.kind == "video":
            self._history[self._number] = (packet, 0)
            if len(self._history) > HISTORY:
                self._history.popitem(last=False)
        self._number = (self._number + 1) & 0xFFFF
        self._packets += 1
        self._octets += len(payload)
        self._stamp = (packet.timestamp, self._clock.now() if captured is None else captured)
        self._rate_hz = codec.clockRate
        return packet

    # ------------------------------------------------------------ what the far end says

    async def _handle_rtcp_packet(self, packet: Any) -> None:
        if not self.ours:
            await super()._handle_rtcp_packet(packet)
        elif isinstance(packet, RtcpRrPacket | RtcpSrPacket):
            await super()._handle_rtcp_packet(packet)  # for getStats
            for report in packet.reports:
                if report.ssrc == self._ssrc:
                    self.uplink.on_report(report.fraction_lost / 256, self._rtt_ms(report.lsr, report.dlsr))
        elif isinstance(packet, RtcpRtpfbPacket) and packet.fmt == TRANSPORT_CC:
            self.uplink.on_feedback(getattr(packet, "fci", b""))
        elif isinstance(packet, RtcpRtpfbPacket) and packet.fmt == RTCP_RTPFB_NACK:
            await self._repeat(packet.lost)
        elif isinstance(packet, RtcpPsfbPacket) and packet.fmt in (RTCP_PSFB_PLI, RTCP_PSFB_FIR):
            # who asks before the last one can have come has it already, then; if not, it asks again
            if self._clock.now() >= self._keyframe_lands:
                self._send_keyframe()
        elif isinstance(packet, RtcpPsfbPacket) and packet.fmt == RTCP_PSFB_APP:
            try:
                bps, ssrcs = unpack_remb_fci(packet.fci)
            except ValueError:
                return
            if self._ssrc in ssrcs:
                self.uplink.on_remb(bps)

    def _send_keyframe(self) -> None:
        self._wants_keyframe = True
        if isinstance(self.track, VideoOut | SharedVideo):
            self.track.wake()
        super()._send_keyframe()

    def _shed(self) -> None:
        """What the far end waits for never left, or will not come: only a picture made for the rate of now helps."""
        self._history.clear()
        self._next_keyframe = self._keyframe_lands = 0
        self._hurries = True
        self._send_keyframe()

    def _rtt_ms(self, lsr: int, dlsr: int) -> float | None:
        middle, sent = self._report
        if not lsr or lsr != middle:
            return None
        return (self._clock.now() - sent) / MS - dlsr * 1000 / 65536

    async def _repeat(self, numbers: list[int]) -> None:
        now = self._clock.now()
        packets: list[RtpPacket] = []
        for number in numbers[:HISTORY]:
            packet, last = self._history.get(number, (None, 0))
            if packet is None or (last and now - last < REPEAT_APART):
                continue
            self._history[number] = (packet, now)
            # asked for once more, it is what a picture that stands still waits for: one of two copies will come
            packets += [self._again(packet) for _ in range(2 if last else 1)]
        if packets:
            with contextlib.suppress(ConnectionError):  # the far end is gone; the connection tells it
                await self.uplink.queue("again", packets, self._extensions)

    def _again(self, packet: RtpPacket) -> RtpPacket:
        if self._rtx_type is None:
            return packet
        again = wrap_rtx(
            packet, payload_type=self._rtx_type, sequence_number=self._rtx_number, ssrc=self._rtx_ssrc
        )
        again.extensions.mid = self._mid
        self._rtx_number = (self._rtx_number + 1) & 0xFFFF
        return again

    async def _send_rtcp(self, packets: list[Any]) -> None:
        """Its sender reports know nothing of what we send: ours are put in."""
        if self.ours:
            for packet in packets:
                if isinstance(packet, RtcpSrPacket):
                    if not self._packets:
                        return  # no media yet: a report would map time to nothing
                    info = packet.sender_info
                    # the media time of this moment (RFC 3550 section 6.4.1), counted from when media was captured: what
                    # the graph's and the encoder's work took is not in it, and differs between sound and picture
                    now = self._clock.now()
                    timestamp, captured = self._stamp
                    info.ntp_timestamp = ntp.current_ntp_time()
                    info.rtp_timestamp = (timestamp + (now - captured) * self._rate_hz // SECOND) & 0xFFFFFFFF
                    info.packet_count = self._packets & 0xFFFFFFFF
                    info.octet_count = self._octets & 0xFFFFFFFF
                    self._report = (info.ntp_timestamp >> 16 & 0xFFFFFFFF, now)
        await super()._send_rtcp(packets)

    async def getStats(self) -> Any:
        report = await super().getStats()
        if self.ours:
            for entry in report.values():
                if entry.type == "outbound-rtp":
                    entry.packetsSent, entry.bytesSent = self._packets, self._octets
        return report
