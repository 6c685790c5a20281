"""Redundant audio: read and written as RFC 2198 has it, agreed on with browsers, and it fills what the network lost."""

import asyncio
from typing import Any

import numpy as np
import pytest
from aiortc import RTCPeerConnection, RTCSessionDescription
from aiortc.rtcrtpparameters import (
    RTCRtcpParameters,
    RTCRtpCodecParameters,
    RTCRtpReceiveParameters,
    RTCRtpSendParameters,
)
from aiortc.rtp import HeaderExtensionsMap, RtcpPacket, RtpPacket, is_rtcp
from hypothesis import given
from hypothesis import strategies as st
from penstock.pipeline.clock import LoopClock
from penstock.pipeline.frame import AudioFrame
from penstock.pipeline.virtual_loop import run_virtual
from penstock.transport import _compat, impairment
from penstock.transport.audio_out import AudioOut
from penstock.transport.ingress import IngressTrack
from penstock.transport.receiver import RtpReceiver
from penstock.transport.red import HOLD, Block, Redundancy, pack, unpack
from penstock.transport.sender import PacedSender

OPUS = RTCRtpCodecParameters(mimeType="audio/opus", clockRate=48_000, channels=2, payloadType=111)
RED = RTCRtpCodecParameters(mimeType="audio/red", clockRate=48_000, channels=2, payloadType=63)


def test_the_layout_is_that_of_the_rfc():
    payload = pack([Block(111, 960, b"old"), Block(111, 0, b"new")])
    assert payload == bytes([0x80 | 111, 960 >> 6, (960 & 63) << 2, 3, 111]) + b"oldnew"
    assert unpack(payload) == [Block(111, 960, b"old"), Block(111, 0, b"new")]


@given(
    st.lists(st.tuples(st.integers(1, 16_383), st.binary(max_size=1023)), max_size=7), st.binary(max_size=100)
)
def test_what_is_packed_is_unpacked(past: list[tuple[int, bytes]], own: bytes):
    blocks = [Block(111, offset, data) for offset, data in past] + [Block(111, 0, own)]
    assert unpack(pack(blocks)) == blocks


@given(st.binary(max_size=60))
def test_any_payload_is_read_or_refused_in_words(payload: bytes):
    try:
        blocks = unpack(payload)
    except ValueError as e:
        assert "redundant audio" in str(e)
    else:
        assert sum(len(b.data) for b in blocks) <= len(payload)


def test_how_much_is_sent_again_follows_the_loss_and_comes_down_after_a_spell():
    redundancy = Redundancy(111)
    assert [redundancy.wrap(b"x", k * 960, 0.0) for k in range(3)] == [None] * 3
    assert len(unpack(redundancy.wrap(b"x", 3 * 960, 0.05) or b"")) == 2
    blocks = unpack(redundancy.wrap(b"y", 4 * 960, 0.2) or b"")
    assert [b.offset for b in blocks] == [1920, 960, 0]
    for k in range(5, 2 * HOLD + 10):
        redundancy.wrap(b"z", k * 960, 0.0)
    assert redundancy.again == 0


class End:
    state = "connected"
    _stats_id = "end"

    def __init__(self, link: impairment.Link) -> None:
        self.link = link
        self.handler: Any = None
        self.other: Any = None
        self.types: list[int] = []
        self.extensions = HeaderExtensionsMap()
        self.tasks: set[Any] = set()

    def _register_rtp_receiver(self, receiver: Any, parameters: Any) -> None:
        self.handler = receiver

    def _register_rtp_sender(self, sender: Any, parameters: Any) -> None:
        self.handler = sender

    def _unregister_rtp_receiver(self, receiver: Any) -> None: ...
    def _unregister_rtp_sender(self, sender: Any) -> None: ...

    async def _send_rtp(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        if not is_rtcp(data):
            self.types.append(data[1] & 0x7F)
        for at in self.link.offer(loop.time() * 1000, len(data)):
            loop.call_later(at / 1000 - loop.time(), self.other.take, data)

    def take(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        works: list[Any] = []
        if is_rtcp(data):
            works += [self.handler._handle_rtcp_packet(p) for p in RtcpPacket.parse(data)]
        elif isinstance(self.handler, RtpReceiver):
            works.append(self.handler._handle_rtp_packet(RtpPacket.parse(data, self.extensions), 0))  # pyright: ignore[reportPrivateUsage]
        for work in works:
            task = loop.create_task(work)
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)


class Frames:
    def __init__(self) -> None:
        self.real: list[int] = []
        self.lost = 0

    def put(self, item: Any) -> None:
        if item is not None and item[1].lost:
            self.lost += 1
        elif item is not None:
            assert item[0].name == "opus"
            self.real.append(item[1].timestamp // 960)

    def get(self) -> None:
        return None

    def qsize(self) -> int:
        return 0


def hear(
    network: dict[str, Any], codecs: list[RTCRtpCodecParameters], seconds: float = 30
) -> tuple[Frames, End]:
    """Speech from our sender through a network to our receiver."""

    async def main() -> tuple[Frames, End]:
        _compat.install()
        loop = asyncio.get_running_loop()
        up, down = impairment.read(network, 1)
        near, far = End(up), End(down)
        near.other, far.other = far, near
        out = AudioOut(LoopClock(loop), live=True)
        sender: Any = PacedSender(out, near)
        receiver: Any = RtpReceiver("audio", far)  # type: ignore[arg-type]
        receiver._track = IngressTrack("audio")
        receiver._set_rtcp_ssrc(1)
        frames = receiver._encoded = Frames()
        await receiver.receive(RTCRtpReceiveParameters(codecs=codecs))
        await sender.send(RTCRtpSendParameters(codecs=codecs, muxId="0", rtcp=RTCRtcpParameters(cname="x")))
        tone = (8000 * np.sin(np.arange(960) * 0.1)).astype(np.int16)[:, None]
        for k in range(int(seconds * 50)):
            await asyncio.sleep(k / 50 - loop.time())
            await out.write(AudioFrame(pts=k * 20_000_000, pcm=tone, rate_hz=48_000))
        out.stop()
        await asyncio.sleep(1)
        await receiver.stop()
        return frames, near

    return run_virtual(main())


def test_a_clean_network_gets_no_redundancy():
    frames, near = hear({"up": {"delay": "25ms"}, "down": {"delay": "25ms"}}, [OPUS, RED], 6)
    assert set(near.types) == {111}
    assert frames.lost == 0


@pytest.mark.parametrize(
    ("network", "share"), [({"loss": "8%"}, 0.25), ({"loss": "15%", "burst": 1.5}, 0.35)]
)
def test_lost_frames_come_with_their_followers(network: dict[str, Any], share: float):
    path = {"up": network | {"delay": "25ms"}, "down": {"delay": "25ms"}}
    without, _ = hear(path, [OPUS])
    frames, near = hear(path, [OPUS, RED])
    assert 63 in near.types
    assert without.lost > 50
    assert frames.lost < share * without.lost
    assert frames.real == sorted(set(frames.real)), "in order, each once"


def test_it_is_agreed_on_with_the_far_ends_numbers_and_after_opus():
    async def main() -> None:
        _compat.install()
        near, far = RTCPeerConnection(), RTCPeerConnection()
        try:
            near.addTransceiver("audio")
            await near.setLocalDescription(await near.createOffer())
            offer = near.localDescription.sdp
            assert "a=rtpmap:63 red/48000/2" in offer
            assert "a=fmtp:63 96/96" in offer
            browser = offer.replace(":96 ", ":111 ").replace("96/96", "111/111").replace(":63 ", ":62 ")
            browser = browser.replace("SAVPF 96 63", "SAVPF 111 62")
            await far.setRemoteDescription(RTCSessionDescription(browser, "offer"))
            await far.setLocalDescription(await far.createAnswer())
            answer = far.localDescription.sdp
            assert "a=fmtp:62 111/111" in answer
            assert "SAVPF 111 62" in answer
        finally:
            await near.close()
            await far.close()

    asyncio.run(main())


def test_redundancy_around_another_codec_is_declined():
    common = _compat.find_common_codecs(
        [OPUS, RED],
        [
            OPUS,
            RTCRtpCodecParameters(
                mimeType="audio/red", clockRate=48_000, payloadType=63, parameters={"0/8": None}
            ),
        ],
    )
    assert [codec.name for codec in common] == ["opus"]
