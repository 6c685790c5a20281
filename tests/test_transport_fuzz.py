"""Hostile input at every door of the transport: refused or ignored, never a crash, never growth, never another session's harm.

More examples: PENSTOCK_FUZZ_EXAMPLES=20000 in the environment; they take minutes.
"""

import asyncio
import os
import struct
from typing import Any

import aiortc.rtcdtlstransport
import pytest
from aioice import Candidate, stun
from aiortc.rtcrtpparameters import (
    RTCRtpCodecParameters,
    RTCRtpHeaderExtensionParameters,
    RTCRtpParameters,
    RTCRtpReceiveParameters,
)
from aiortc.rtp import HeaderExtensionsMap, RtcpByePacket, RtcpSenderInfo, RtcpSrPacket
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.clock import ManualClock
from penstock.pipeline.virtual_loop import run_virtual
from penstock.transport import _compat, stamped_socket, twcc
from penstock.transport.ingress import IngressTrack
from penstock.transport.jitter_buffer import CAPACITY
from penstock.transport.offer import OfferError
from penstock.transport.peer import Peer
from penstock.transport.receiver import RtpReceiver

EXAMPLES = int(os.environ.get("PENSTOCK_FUZZ_EXAMPLES", "0"))
CODECS = [
    RTCRtpCodecParameters(mimeType="video/VP8", clockRate=90_000, payloadType=97),
    RTCRtpCodecParameters(mimeType="video/rtx", clockRate=90_000, payloadType=98, parameters={"apt": 97}),
    RTCRtpCodecParameters(mimeType="video/H264", clockRate=90_000, payloadType=99),
]
EXTENSIONS = HeaderExtensionsMap()
EXTENSIONS.configure(
    RTCRtpParameters(
        headerExtensions=[
            RTCRtpHeaderExtensionParameters(id=1, uri="urn:ietf:params:rtp-hdrext:sdes:mid"),
            RTCRtpHeaderExtensionParameters(id=2, uri="urn:ietf:params:rtp-hdrext:ssrc-audio-level"),
            RTCRtpHeaderExtensionParameters(
                id=3, uri="http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"
            ),
            RTCRtpHeaderExtensionParameters(id=5, uri=twcc.URI),
        ]
    )
)


def rtp(
    payload: bytes, seq: int, timestamp: int, ssrc: int, kind: int, marker: bool, extension: bytes
) -> bytes:
    """A packet whose header is right and whose rest is what it may be."""
    padded = extension + bytes(-len(extension) % 4)
    head = struct.pack("!BBHLL", 0x90 if padded else 0x80, marker << 7 | kind, seq, timestamp, ssrc)
    return head + (struct.pack("!HH", 0xBEDE, len(padded) // 4) + padded if padded else b"") + payload


packets = st.one_of(
    st.binary(max_size=80),
    st.builds(
        rtp,
        st.binary(max_size=40),
        st.integers(0, 65535),
        st.integers(0, 2**32 - 1),
        st.sampled_from([7, 8, 9]),
        st.sampled_from([97, 98, 99, 100]),
        st.booleans(),
        st.binary(max_size=12),
    ),
)


def parsed(kind: Any, data: bytes, *rest: Any) -> Any:
    """As aiortc's transport parses: None where it would drop the packet."""
    try:
        return kind.parse(data, *rest)
    except ValueError:
        return None


class Wire:
    state = "connected"
    _stats_id = "wire"

    def _register_rtp_receiver(self, receiver: Any, parameters: Any) -> None: ...
    def _unregister_rtp_receiver(self, receiver: Any) -> None: ...

    async def _send_rtp(self, data: bytes) -> None:
        assert len(data) < 2000


@settings(max_examples=EXAMPLES or 60, deadline=None)
@given(st.lists(packets, max_size=60))
def test_any_rtp_leaves_a_receiver_that_works_and_is_bounded(datagrams: list[bytes]):
    async def main() -> None:
        _compat.install()
        receiver = RtpReceiver("video", Wire())  # type: ignore[arg-type]
        track = receiver._track = IngressTrack("video")  # type: ignore[reportPrivateUsage]
        receiver._set_rtcp_ssrc(1)  # type: ignore[reportPrivateUsage]
        await receiver.receive(RTCRtpReceiveParameters(codecs=CODECS))
        receiver._rtx[8] = 7  # type: ignore[reportPrivateUsage]
        for data in datagrams:
            packet = parsed(aiortc.rtcdtlstransport.RtpPacket, data, EXTENSIONS)  # type: ignore[attr-defined]
            if packet is not None:
                await receiver._handle_rtp_packet(packet, 0)  # type: ignore[reportPrivateUsage]
            await asyncio.sleep(0.001)
        await asyncio.sleep(5)
        stream = receiver._stream  # type: ignore[reportPrivateUsage]
        assert stream is None or len(stream.buffer) <= CAPACITY
        assert sum(track.counts[k] for k in ("delivered", "dropped", "late", "duplicate")) <= len(datagrams)
        await receiver.stop()

    run_virtual(main())


def rtcp_like(count: int, kind: int, body: bytes, padded: bool) -> bytes:
    words = len(body) // 4
    return struct.pack("!BBH", 0x80 | padded << 5 | count, kind, words) + body[: words * 4]


@settings(max_examples=EXAMPLES or 300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=120),
        st.builds(
            rtcp_like,
            st.integers(0, 31),
            st.integers(200, 207),
            st.binary(max_size=100),
            st.booleans(),
        ),
    )
)
def test_any_rtcp_is_taken_or_refused_in_words(data: bytes):
    _compat.install()
    parsed(aiortc.rtcdtlstransport.RtcpPacket, data)  # type: ignore[attr-defined]


@settings(max_examples=EXAMPLES or 60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)), max_size=30))
def test_any_sender_reports_keep_times_sane(reports: list[tuple[int, int]]):
    async def main() -> None:
        receiver = RtpReceiver("video", Wire())  # type: ignore[arg-type]
        track = receiver._track = IngressTrack("video")  # type: ignore[reportPrivateUsage]
        await receiver.receive(RTCRtpReceiveParameters(codecs=CODECS))
        loop = asyncio.get_running_loop()
        last = -1
        for k, (ntp, timestamp) in enumerate(reports):
            data = rtp(b"\x10\x11\x02", k, k * 3000, 7, 97, True, b"")
            packet = parsed(aiortc.rtcdtlstransport.RtpPacket, data, EXTENSIONS)  # type: ignore[attr-defined]
            await receiver._handle_rtp_packet(packet, 0)  # type: ignore[reportPrivateUsage]
            info = RtcpSenderInfo(ntp, timestamp, 0, 0)
            await receiver._handle_rtcp_packet(RtcpSrPacket(7, info))  # type: ignore[reportPrivateUsage]
            pts = track.capture.at(k * 33_333_333)
            now = round(loop.time() * 1e9)
            assert last <= pts <= max(last, now + 10**9)
            last = pts
            await asyncio.sleep(0.033)
        await receiver._handle_rtcp_packet(RtcpByePacket([7]))  # type: ignore[reportPrivateUsage]
        await receiver.stop()

    run_virtual(main())


class Ice:
    """What aioice's connection is to its sockets."""

    def __init__(self) -> None:
        self.data: list[bytes] = []
        self.requests = 0

    def data_received(self, data: bytes, component: int) -> None:
        self.data.append(data)

    def request_received(self, message: Any, addr: Any, protocol: Any) -> None:
        self.requests += 1


def stun_attribute(kind: int, value: bytes, lie: int) -> bytes:
    return struct.pack("!HH", kind, max(0, len(value) + lie)) + value + bytes(-len(value) % 4)


def stun_like(kind: int, cookie: int, body: bytes, length: int) -> bytes:
    return struct.pack("!HHL", kind, (len(body) + length) & 0xFFFF, cookie) + bytes(12) + body


@settings(max_examples=EXAMPLES or 300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=100),
        st.builds(
            stun_like,
            st.sampled_from([0x0001, 0x0101, 0x0111, 0x0011]),
            st.sampled_from([stun.COOKIE, 0]),
            st.builds(
                stun_attribute,
                st.sampled_from([*(code for code, *_ in stun.ATTRIBUTES), 0x7777]),
                st.binary(max_size=24),
                st.sampled_from([0, 0, 0, 1, -1, 100]),
            ),
            st.sampled_from([0, 0, 4]),
        ),
    )
)
def test_any_datagram_at_the_media_port_raises_nothing_and_an_empty_one_goes_nowhere(data: bytes):
    async def main() -> None:
        ice = Ice()
        protocol = stamped_socket.StampingProtocol(ice)  # type: ignore[arg-type]
        protocol.local_candidate = Candidate.from_sdp("1 1 udp 1 127.0.0.1 1 typ host")
        protocol.datagram_received(data, ("192.0.2.1", 9))
        assert all(ice.data), "aiortc looks at the first byte"

    run_virtual(main())


LINES = [
    "v=0", "o=- 1 1 IN IP4 0.0.0.0", "s=-", "t=0 0", "a=group:BUNDLE 0 1", "m=audio 9 UDP/TLS/RTP/SAVPF 111 0",
    "m=video 9 UDP/TLS/RTP/SAVPF 96 97", "m=application 9 UDP/DTLS/SCTP webrtc-datachannel", "c=IN IP4 0.0.0.0",
    "a=mid:0", "a=mid:1", "a=sendrecv", "a=recvonly", "a=rtcp-mux", "a=setup:actpass", "a=setup:active",
    "a=ice-ufrag:abcd", "a=ice-pwd:abcdefghijklmnopqrstuvwx", "a=rtpmap:111 opus/48000/2", "a=rtpmap:96 VP8/90000",
    "a=rtpmap:97 rtx/90000", "a=fmtp:97 apt=96", "a=fmtp:97 apt=x", "a=rtpmap:96 H264", "a=ssrc:1 cname:x",
    "a=ssrc-group:FID 1 2", "a=ssrc:x", "a=extmap:1 urn:x", "a=extmap:x", "a=sctp-port:5000", "a=max-message-size:-1",
    "a=candidate:1 1 udp 1 192.0.2.1 9 typ host", "a=candidate:1 1 udp x", "a=fingerprint:sha-256 00:11",
    "a=fingerprint:md5", "a=rtcp-fb:96 nack", "a=rtcp-fb:*", "m=audio x", "m=", "a=rtpmap:x", "\0", "a=msid:- -",
]  # fmt: skip


@settings(max_examples=EXAMPLES or 150, deadline=None)
@given(
    st.one_of(
        st.text(max_size=200),
        st.lists(st.sampled_from(LINES), max_size=30).map(
            lambda lines: "v=0\r\n" + "\r\n".join(lines) + "\r\n"
        ),
    )
)
def test_any_offer_is_answered_or_refused_in_words(sdp: str):
    async def main() -> None:
        peer = Peer("s-fuzz", ManualClock())
        try:
            await asyncio.wait_for(peer.accept(sdp), 5)
        except OfferError as e:
            assert str(e)
        finally:
            await peer.close()

    asyncio.run(main())


def test_a_bad_packet_is_a_valueerror_which_aiortc_drops():
    """Without this a wrong length of a header extension ends the transport."""
    _compat.install()
    bad = rtp(b"", 1, 1, 7, 97, False, bytes([0x30, 1, 0, 0]))  # abs-send-time of one byte
    with pytest.raises(ValueError, match="RTP"):
        aiortc.rtcdtlstransport.RtpPacket.parse(bad, EXTENSIONS)  # type: ignore[attr-defined]
