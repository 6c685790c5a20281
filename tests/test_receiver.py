"""The receiver in a real connection through a bad network, and its feedback on scripted packets."""

import asyncio
import itertools
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiortc import RTCSessionDescription
from aiortc.rtcrtpparameters import RTCRtpCodecParameters, RTCRtpReceiveParameters
from aiortc.rtp import HeaderExtensions, RtcpPacket, RtcpPsfbPacket, RtcpRrPacket, RtcpRtpfbPacket, RtpPacket
from client import Client, Colour, Tone, until, within
from penstock.pipeline.clock import MS, MonotonicClock
from penstock.pipeline.virtual_loop import run_virtual
from penstock.transport.impairment import Conditions, Link
from penstock.transport.ingress import IngressTrack
from penstock.transport.peer import Peer
from penstock.transport.receiver import RtpReceiver
from penstock.transport.relay import Relay

VP8 = RTCRtpCodecParameters(mimeType="video/VP8", clockRate=90_000, payloadType=97)
OPUS = RTCRtpCodecParameters(mimeType="audio/opus", clockRate=48_000, channels=2, payloadType=96)
KEY = b"\x10" + b"\x10\x02\x00\x9d\x01\x2a\x10\x00\x10\x00 not decodable"
INTER = b"\x10\x11\x02\x00 not decodable"


class Wire:
    """A transport that keeps what is sent."""

    state = "connected"
    _stats_id = "wire"

    def __init__(self) -> None:
        self.sent: list[tuple[float, Any]] = []
        self.feedback: list[bytes] = []

    def _register_rtp_receiver(self, receiver: Any, parameters: Any) -> None: ...
    def _unregister_rtp_receiver(self, receiver: Any) -> None: ...

    async def _send_rtp(self, data: bytes) -> None:
        if data[1] == 205 and data[0] & 31 == 15:
            self.feedback.append(data)
        else:
            self.sent += [(asyncio.get_running_loop().time(), p) for p in RtcpPacket.parse(data)]

    def of(self, kind: type, fmt: int = 0) -> list[tuple[float, Any]]:
        return [(t, p) for t, p in self.sent if isinstance(p, kind) and (not fmt or p.fmt == fmt)]


@asynccontextmanager
async def receiving(codec: RTCRtpCodecParameters):
    wire = Wire()
    receiver = RtpReceiver(codec.mimeType.split("/")[0], wire)  # type: ignore[arg-type]
    receiver._track = IngressTrack(receiver.kind)  # type: ignore[reportPrivateUsage]
    receiver._set_rtcp_ssrc(99)  # type: ignore[reportPrivateUsage]
    await receiver.receive(RTCRtpReceiveParameters(codecs=[codec]))
    try:
        yield receiver, wire
    finally:
        await receiver.stop()


async def give(
    receiver: RtpReceiver, seq: int, payload: bytes, ticks: int, number: int | None = None, ssrc: int = 7
):
    kind = 97 if receiver.kind == "video" else 96
    packet = RtpPacket(kind, 1, seq & 0xFFFF, ticks & 0xFFFFFFFF, ssrc, payload)
    packet.extensions = HeaderExtensions(transport_sequence_number=number)
    await receiver._handle_rtp_packet(packet, 0)  # type: ignore[reportPrivateUsage]


def test_a_lost_packet_is_asked_for_until_its_deadline_then_a_keyframe():
    async def main() -> None:
        async with receiving(VP8) as (receiver, wire):
            for k in range(40):
                if k != 5:
                    await give(receiver, 65_530 + k, KEY if k == 0 else INTER, k * 3000)
                await asyncio.sleep(0.033)
            asked = [(t, p.lost) for t, p in wire.of(RtcpRtpfbPacket, 1)]
            assert {tuple(lost) for _, lost in asked} == {(65_535,)}
            assert len(asked) == 6
            assert 0.03 < asked[1][0] - asked[0][0] < 0.12
            assert wire.of(RtcpPsfbPacket, 1), "no keyframe was asked for"
            assert receiver.track is not None
            assert receiver.track.counts["lost"] == 1
            (_, report), *_ = wire.of(RtcpRrPacket)
            assert report.reports[0].ssrc == 7

    run_virtual(main())


def test_keyframes_are_asked_for_at_a_bounded_rate_and_not_of_a_silent_source():
    async def main() -> None:
        async with receiving(VP8) as (receiver, wire):
            for k in range(60):  # never a keyframe
                await give(receiver, k, INTER, k * 3000)
                await asyncio.sleep(0.033)
            times = [t for t, _ in wire.of(RtcpPsfbPacket, 1)]
            assert 5 <= len(times) <= 10
            assert min(b - a for a, b in itertools.pairwise(times)) >= 0.199
            await asyncio.sleep(60)
            assert len(wire.of(RtcpPsfbPacket, 1)) <= len(times) + 6

    run_virtual(main())


def test_arrivals_are_reported_every_50_ms_and_no_remb_is_sent():
    async def main() -> None:
        async with receiving(VP8) as (receiver, wire):
            for k in range(100):
                await give(receiver, k, KEY if k == 0 else INTER, k * 900, number=k)
                await asyncio.sleep(0.01)
            assert 17 <= len(wire.feedback) <= 21
            assert not wire.of(RtcpPsfbPacket, 15)

    run_virtual(main())


def test_another_source_takes_over_only_when_the_first_is_silent():
    async def main() -> None:
        silence = b"\xfc\xff\xfe"
        async with receiving(OPUS) as (receiver, _):
            assert receiver.track is not None
            for k in range(10):
                await give(receiver, k, silence, k * 960)
                await give(receiver, 30_000 + k, silence, k * 960, ssrc=8)
                await asyncio.sleep(0.02)
            assert receiver.track.counts["delivered"] == 10
            await asyncio.sleep(1)
            last = receiver.track.capture.media(round(asyncio.get_running_loop().time() * 1e9))
            await give(receiver, 40_000, silence, 5, ssrc=8)
            assert receiver.track.counts["delivered"] == 11
            assert last >= 1150 * MS, "media time goes on"

    run_virtual(main())


def test_more_sources_than_a_track_has_are_not_kept():
    async def main() -> None:
        async with receiving(OPUS) as (receiver, _):
            for ssrc in range(1, 1000):
                await give(receiver, 1, b"\xfc\xff\xfe", 1, ssrc=ssrc)
            assert len(receiver._sources) <= 8  # type: ignore[reportPrivateUsage]

    run_virtual(main())


@pytest.mark.net
def test_pictures_and_sound_come_through_a_tenth_of_losses():
    async def main() -> None:
        clock = MonotonicClock()
        up = Link(Conditions(loss=0.1, delay_ms=10), seed=1)
        relay = await Relay(clock, up, Link(Conditions(delay_ms=10))).start()
        peer, client = Peer("s-test", clock), Client()
        client.pc.addTrack(Colour())
        client.pc.addTrack(Tone())
        answer = await peer.accept(relay.to_server(await client.offer()))
        await client.pc.setRemoteDescription(RTCSessionDescription(relay.to_client(answer), "answer"))
        video, audio = peer.tracks["video"], peer.tracks["audio"]

        async def drain(track: IngressTrack) -> None:
            while True:
                await track.recv()

        drains = [asyncio.create_task(drain(track)) for track in (video, audio)]
        await until(lambda: audio.counts["concealed"] >= 5 and video.counts["asked"] >= 3, 20)
        await until(lambda: video.capture.is_synchronized and audio.capture.is_synchronized, 20)
        assert audio.counts["delivered"] > audio.counts["concealed"]
        for task in drains:
            task.cancel()
        await asyncio.gather(*drains, return_exceptions=True)
        await client.pc.close()
        await within(peer.close())
        relay.close()

    asyncio.run(main())


def test_after_an_outage_a_keyframe_is_asked_for_at_once_and_nothing_else():
    async def main() -> None:
        async with receiving(VP8) as (receiver, wire):
            for k in range(60):
                if not 10 <= k < 30:
                    await give(receiver, k, KEY if k == 0 else INTER, k * 3000)
                await asyncio.sleep(0.033)
            asked = [t for t, _ in wire.of(RtcpPsfbPacket, 1)]
            assert any(t <= 30 * 0.033 + 0.001 for t in asked)
            assert not wire.of(RtcpRtpfbPacket, 1)

    run_virtual(main())
