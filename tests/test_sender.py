"""What our sender touches of aiortc, and whole connections that send over loopback."""

# pyright: reportPrivateUsage=false
# the contract with aiortc is about names that it does not call public

import asyncio
import struct
from fractions import Fraction
from typing import Any

import aiortc.rtcpeerconnection
import aiortc.rtp
import av
import numpy as np
import pytest
from aiortc import RTCPeerConnection, RTCRtpSender, RTCSessionDescription
from aiortc.codecs import CODECS, get_encoder
from aiortc.rtp import HeaderExtensionsMap, RtcpPacket, RtcpPsfbPacket, RtcpRtpfbPacket, RtpPacket
from client import Client, Colour, Tone, serving, until, within
from penstock.pipeline.clock import SECOND, LoopClock
from penstock.pipeline.frame import VideoFrame
from penstock.transport import _compat
from penstock.transport._compat import FeedbackPacket
from penstock.transport.bandwidth import Bandwidth
from penstock.transport.feedback import TRANSPORT_CC
from penstock.transport.pacer import SLOW
from penstock.transport.sender import KEYFRAME_APART, PacedSender
from penstock.transport.uplink import AUDIO_SHARE_BPS, LEAST_VIDEO_BPS, PAYLOAD_SHARE, Uplink
from penstock.transport.video_out import VideoOut


def test_our_sender_stands_in_aiortcs_place():
    _compat.install()
    assert aiortc.rtcpeerconnection.RTCRtpSender is PacedSender  # type: ignore[attr-defined]
    assert aiortc.rtp.RtcpRtpfbPacket is FeedbackPacket
    for name in (
        "_next_encoded_frame",
        "_handle_rtcp_packet",
        "_send_keyframe",
        "_send_rtcp",
        "send",
        "stop",
        "getStats",
    ):
        assert callable(getattr(RTCRtpSender, name))


def test_feedback_keeps_its_bytes_and_nacks_stay_nacks():
    _compat.install()
    fci = bytes.fromhex("0001000320000000") + b"\x20\x03\1\2\3\0\0\0"
    body = struct.pack("!LL", 1, 2) + fci
    wire = struct.pack("!BBH", 0x80 | TRANSPORT_CC, 205, len(body) // 4) + body
    (packet,) = RtcpPacket.parse(wire)
    assert isinstance(packet, RtcpRtpfbPacket)
    assert (packet.fmt, packet.media_ssrc, packet.fci) == (TRANSPORT_CC, 2, fci)  # type: ignore[attr-defined]
    nack = RtcpRtpfbPacket(fmt=1, ssrc=1, media_ssrc=2, lost=[5, 7])
    (again,) = RtcpPacket.parse(bytes(nack))
    assert isinstance(again, RtcpRtpfbPacket)
    assert again.lost == [5, 7]


def test_packers_take_encoded_packets():
    for codec in CODECS["video"]:
        if codec.name == "rtx":
            continue
        data = bytes(4) + b"\1" + bytes(3000) if codec.name == "VP8" else b"\0\0\0\1\x65" + b"\7" * 3000
        packet = av.Packet(data)
        packet.pts, packet.time_base = 90, Fraction(1, 90_000)
        payloads, timestamp = get_encoder(codec).pack(packet)  # type: ignore[attr-defined]
        assert len(payloads) == 3
        assert max(map(len, payloads)) <= 1300
        assert timestamp == 90


class Wire:
    """A transport that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    async def _send_rtp(self, data: bytes) -> None:
        self.sent.append(data)


def test_all_tracks_of_a_connection_hear_that_it_was_overrun():
    class Track:
        told = 0

        def shed(self) -> None:
            self.told += 1

    async def main() -> None:
        uplink = Uplink(Wire())
        crop, context, gone = Track(), Track(), Track()
        for track in (crop, context, gone, crop):
            uplink.when_shed(track.shed)
        del gone
        uplink.bandwidth.fell_ms += 1.0
        uplink.grant(0)  # it looks
        assert (crop.told, context.told) == (1, 1)
        uplink.close()

    asyncio.run(main())


def test_uplink_numbers_all_packets_and_reads_feedback():
    async def main() -> None:
        wire = Wire()
        uplink = Uplink(wire)
        extensions = aiortc.rtp.HeaderExtensionsMap()
        for k in range(40):
            await uplink.send(RtpPacket(sequence_number=k, payload=b"x" * 100), extensions)
        assert len(wire.sent) == 40
        chunk = struct.pack("!H", 1 << 13 | 40)
        uplink.on_feedback(struct.pack("!HH", 0, 40) + bytes(4) + chunk + bytes([4] * 40))
        assert uplink.bandwidth.source == "feedback"
        uplink.on_feedback(b"junk")
        uplink.close()

    asyncio.run(main())


@pytest.mark.net
@pytest.mark.parametrize("codec", ["VP8", "H264"])
def test_a_client_of_either_codec_gets_pictures_reports_and_a_keyframe_on_request(codec: str):
    async def main() -> None:
        async with serving() as server:
            client = Client()
            client.pc.addTrack(Colour((40, 160, 60)))
            client.pc.addTrack(Tone())
            video = next(t for t in client.pc.getTransceivers() if t.kind == "video")
            wanted = [c for c in RTCRtpSender.getCapabilities("video").codecs if c.name in (codec, "rtx")]
            video.setCodecPreferences(wanted)
            await client.connect(server.url)
            picture = await within(client.tracks["video"].recv(), 20)
            assert (picture.width, picture.height) == (640, 480)
            for _ in range(5):
                await within(client.tracks["audio"].recv())
            live = server.sessions.live[client.session]
            assert live.peer is not None
            sender: Any = next(t.sender for t in live.peer._pc.getTransceivers() if t.kind == "video")
            assert isinstance(sender, PacedSender)
            await until(lambda: sender._report[0] != 0)
            before = sender.keyframes
            for _ in range(5):  # a burst of requests is one keyframe
                await sender._handle_rtcp_packet(RtcpPsfbPacket(fmt=1, ssrc=1, media_ssrc=sender._ssrc))
            await until(lambda: sender.keyframes > before)
            assert sender.keyframes <= before + 2
            stats = live.stats()["transport"]["sending"]
            assert stats["target_kbps"] >= 50
            assert stats["bytes"] > 0
            report = await sender.getStats()
            sent = [r for r in report.values() if r.type == "outbound-rtp"]
            assert sent[0].packetsSent > 0
            await client.pc.close()
            await until(lambda: not server.sessions.live)

    asyncio.run(main())


@pytest.mark.net
def test_a_still_picture_is_sent_again_for_who_asks():
    async def main() -> None:
        track = VideoOut()
        near, far = RTCPeerConnection(), RTCPeerConnection()
        near.addTrack(track)
        got = asyncio.get_running_loop().create_future()
        far.on("track", got.set_result)
        await near.setLocalDescription(await near.createOffer())
        await far.setRemoteDescription(RTCSessionDescription(near.localDescription.sdp, "offer"))
        await far.setLocalDescription(await far.createAnswer())
        await near.setRemoteDescription(RTCSessionDescription(far.localDescription.sdp, "answer"))
        sender: Any = near.getSenders()[0]
        track.show(VideoFrame(pts=0, image=np.zeros((64, 64, 3), np.uint8)))
        await until(lambda: sender.keyframes == 1)
        await asyncio.sleep(KEYFRAME_APART / 1e9)
        sender._send_keyframe()
        await until(lambda: sender.keyframes == 2)
        await near.close()
        await far.close()

    asyncio.run(main())


def test_a_grant_slows_the_pacer_and_what_waits_leaves_at_the_rate_it_was_made_for():
    async def main() -> None:
        wire = Wire()  # held weakly
        uplink = Uplink(wire)
        assert uplink.pacer.target_bps == uplink.bandwidth.target_bps
        uplink.grant(100_000)
        assert uplink.pacer.target_bps == 100_000
        assert uplink.pacer.rate_bps == SLOW * 100_000  # several share the link
        packets = [RtpPacket(payload_type=97, sequence_number=n, payload=bytes(1000)) for n in range(20)]
        await uplink.queue("video", packets, HeaderExtensionsMap())
        assert uplink.pacer.waiting
        uplink.grant(40_000)
        assert uplink.pacer.target_bps == 100_000  # not shed, and not dropped for its age
        uplink.pacer.clear()
        uplink.grant(40_000)
        assert uplink.pacer.target_bps == 40_000
        uplink.grant(0)
        assert uplink.pacer.target_bps == uplink.bandwidth.target_bps
        assert uplink.pacer.patience == 1
        uplink.close()

    asyncio.run(main())


def test_sound_comes_before_pictures_on_a_narrow_path():
    async def main() -> None:
        wire = Wire()
        uplink = Uplink(wire)
        uplink.has_audio = True
        uplink.bandwidth = Bandwidth(50_000)
        assert uplink.video_bps <= 50_000 - AUDIO_SHARE_BPS + LEAST_VIDEO_BPS
        uplink.bandwidth = Bandwidth(400_000)
        assert uplink.video_bps == round((400_000 - AUDIO_SHARE_BPS) * PAYLOAD_SHARE)
        uplink.close()

    asyncio.run(main())


def test_who_asks_for_a_keyframe_that_is_on_its_way_gets_no_other():
    async def main() -> None:
        wire: Any = Wire()
        wire.state = "connected"
        sender: Any = PacedSender(VideoOut(), wire)
        pli = RtcpPsfbPacket(fmt=1, ssrc=1, media_ssrc=sender._ssrc)
        sender._clock = LoopClock(asyncio.get_running_loop())
        sender._wants_keyframe = False
        sender._keyframe_lands = sender._clock.now() + SECOND
        await sender._handle_rtcp_packet(pli)
        assert not sender._wants_keyframe
        sender._keyframe_lands = sender._clock.now()
        await sender._handle_rtcp_packet(pli)
        assert sender._wants_keyframe
        sender.uplink.close()

    asyncio.run(main())
