"""All that reaches into aiortc and aioice, in one place; each touched symbol has a test in test_compat.py.

aiortc is pinned (pyproject.toml): a new version is taken when these tests pass with it.
"""
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import aioice.ice
import aiortc.codecs.vpx
import aiortc.rtcdtlstransport
import aiortc.rtcpeerconnection
import aiortc.rtp
import av
from aioice import stun
from aiortc import RTCPeerConnection, RTCRtpTransceiver
from aiortc.codecs import CODECS, HEADER_EXTENSIONS, is_rtx
from aiortc.rtcdtlstransport import RTCDtlsTransport
from aiortc.rtcrtpparameters import (
    RTCRtcpFeedback,
    RTCRtpCodecParameters,
    RTCRtpHeaderExtensionParameters,
    RTCRtpReceiveParameters,
)
from aiortc.rtp import RtcpRtpfbPacket

from . import stamped_socket, twcc
from .checked_rtp import CheckedRtcpPacket, CheckedRtpPacket
from .feedback import TRANSPORT_CC
from .ingress import IngressTrack
from .levels import level_dbov
from .receiver import RtpReceiver
from .sender import PacedSender
from .stun_names import StunNames

RED_TYPE = 63  # where browsers have it
TRANSPORT_CC_ID = 5  # of the header extension, free in aiortc's own table

START_KBPS = 1000  # a narrower path shows within a second, by its delay

GATHER = 0.5  # s that STUN servers have to answer, against aioice's 5

_host_addresses = aioice.ice.get_host_addresses
_find_common_codecs = aiortc.rtcpeerconnection.find_common_codecs


def host_addresses(use_ipv4: bool, use_ipv6: bool) -> list[str]:
    """The machine's addresses; 127.0.0.1 where it has no other (aioice never offers loopback)."""
    found = _host_addresses(use_ipv4=use_ipv4, use_ipv6=use_ipv6)
    if not found and use_ipv4:
        return ["127.0.0.1"]
    return found


_component_candidates = aioice.ice.Connection.get_component_candidates


_stun_names = StunNames()


async def component_candidates(
    self: Any, component: int, addresses: list[str], timeout: float = GATHER
) -> list[Any]:
    """As aioice's own; what has not answered in time is left out. The far end learns our address from our
    checks anyway (RFC 8445 section 7.3.1.3), so nobody waits for a server that is dead."""
    if self.stun_server is not None:
        address = await _stun_names.address(self.stun_server[0], timeout)
        self.stun_server = (address, self.stun_server[1]) if address is not None else None
    return await _component_candidates(self, component, addresses, timeout=timeout)  # pyright: ignore[reportArgumentType]


def encoder_threads(pixels: int, cpus: int) -> int:
    """One thread up to 720p: more of them wait for each other when the machine is busy (23 ms and more a
    frame, against 2)."""
    return 1 if pixels <= 1280 * 720 or cpus < 4 else 2


def audio_level_dbov(frame: av.AudioFrame) -> int:
    """The level of s16 sound in dB of full scale, -127 to 0 (RFC 6465 appendix A): as aiortc's own, which
    loops over the samples in Python and costs 0.11 ms a frame, 20 times as much."""
    samples: Any = frame.to_ndarray()  # s16
    return level_dbov(samples)


def negotiate_transport_cc() -> None:
    """Offer and accept feedback for the sender's own bandwidth estimate; REMB stays for those without it."""
    for kind in ("audio", "video"):
        if all(extension.uri != twcc.URI for extension in HEADER_EXTENSIONS[kind]):
            # one number for both kinds: they share a transport
            HEADER_EXTENSIONS[kind].append(RTCRtpHeaderExtensionParameters(id=TRANSPORT_CC_ID, uri=twcc.URI))
        for codec in CODECS[kind]:
            feedback = RTCRtcpFeedback(type="transport-cc")
            if not is_rtx(codec) and feedback not in codec.rtcpFeedback:
                codec.rtcpFeedback.append(feedback)


def negotiate_opus_fec() -> None:
    """Tell senders that we use the in-band copies of lost packets (RFC 7587 section 6.1)."""
    for codec in CODECS["audio"]:
        if codec.name == "opus":
            codec.parameters = codec.parameters | {"minptime": 10, "useinbandfec": 1}


def negotiate_start_rate() -> None:
    """Ask senders to begin at a rate that carries a picture. Chromium begins at 300 kb/s otherwise, shrinks 720p to 320 wide for
    it, and sends no more than 600 kb/s of that for tens of seconds, whatever its estimate says. Others ignore it."""
    for codec in CODECS["video"]:
        if not is_rtx(codec):
            codec.parameters = codec.parameters | {"x-google-start-bitrate": START_KBPS}


def negotiate_red() -> None:
    """Offer and accept redundant audio (RFC 2198) around Opus, after it: who sends chooses."""
    if all(codec.name != "red" for codec in CODECS["audio"]):
        opus = next(k for k, codec in enumerate(CODECS["audio"]) if codec.name == "opus")
        inner = CODECS["audio"][opus].payloadType
        CODECS["audio"].insert(
            opus + 1,
            RTCRtpCodecParameters(
                mimeType="audio/red",
                clockRate=48_000,
                channels=2,
                payloadType=RED_TYPE,
                parameters={f"{inner}/{inner}": None},
            ),
        )


def find_common_codecs(
    local: list[RTCRtpCodecParameters], remote: list[RTCRtpCodecParameters]
) -> list[RTCRtpCodecParameters]:
    """As aiortc's own. Redundant audio has the far end's numbers, its own and Opus', and is left out with anything else
    inside; below 96, where browsers have it, aiortc would keep ours."""
    common = _find_common_codecs(local, remote)
    opus = next((codec.payloadType for codec in common if codec.name == "opus"), None)
    offered = [codec for codec in remote if codec.mimeType.lower() == "audio/red"]
    kept: list[RTCRtpCodecParameters] = []
    for codec in common:
        if codec.name == "red":
            theirs = offered.pop(0)
            inside = next(iter(theirs.parameters), "")
            if opus is None or set(inside.split("/")) != {str(opus)}:
                continue
            codec.payloadType, codec.parameters = theirs.payloadType, {f"{opus}/{opus}": None}
        kept.append(codec)
    return kept


class FeedbackPacket(RtcpRtpfbPacket):
    """aiortc's, which reads all feedback as NACKs, and keeps nothing else: `fci` holds the bytes."""

    fci: bytes = b""

    @classmethod
    def parse(cls, data: bytes, fmt: int) -> RtcpRtpfbPacket:
        if fmt != TRANSPORT_CC:
            return super().parse(data, fmt)
        if len(data) < 8:
            raise ValueError("RTCP RTP feedback length is invalid")
        ssrc, media_ssrc = struct.unpack_from("!LL", data)
        packet = cls(fmt=fmt, ssrc=ssrc, media_ssrc=media_ssrc)
        packet.fci = data[8:]
        return packet


_register_rtp_receiver = RTCDtlsTransport._register_rtp_receiver


def register_rtp_receiver(self: RTCDtlsTransport, receiver: Any, parameters: RTCRtpReceiveParameters) -> None:
    """As aiortc's own, which finds the receiver of a retransmission by payload type: two tracks of pictures have it in
    common, and then it finds none."""
    _register_rtp_receiver(self, receiver, parameters)
    for encoding in parameters.encodings:
        if encoding.rtx is not None:
            self._rtp_router.ssrc_table[encoding.rtx.ssrc] = receiver


def install() -> None:
    """Put ours in place, for all connections of this process. Idempotent."""
    aioice.ice.get_host_addresses = host_addresses
    aioice.ice.Connection.get_component_candidates = component_candidates
    aioice.ice.StunProtocol = stamped_socket.StampingProtocol
    aioice.ice.Connection.recv = stamped_socket.receive
    aiortc.codecs.vpx.number_of_threads = encoder_threads
    aiortc.rtp.compute_audio_level_dbov = audio_level_dbov
    aiortc.rtcdtlstransport.RtpPacket = CheckedRtpPacket
    RTCDtlsTransport._register_rtp_receiver = register_rtp_receiver
    aiortc.rtcdtlstransport.RtcpPacket = CheckedRtcpPacket
    aiortc.rtcpeerconnection.RTCRtpReceiver = RtpReceiver
    aiortc.rtcpeerconnection.RemoteStreamTrack = IngressTrack
    negotiate_transport_cc()
    negotiate_opus_fec()
    negotiate_red()
    negotiate_start_rate()
    aiortc.rtcpeerconnection.find_common_codecs = find_common_codecs
    aiortc.rtcpeerconnection.RTCRtpSender = PacedSender
    aiortc.rtp.RtcpRtpfbPacket = FeedbackPacket


# ---------------------------------------------------------------- reading and steering a connection


def transports(pc: RTCPeerConnection) -> list[RTCDtlsTransport]:
    """The DTLS transports in use: one when the far end bundles."""
    found = [t.receiver.transport for t in pc.getTransceivers()]
    if pc.sctp is not None:
        found.append(pc.sctp.transport)
    return list(dict.fromkeys(found))


def be_dtls_server(pc: RTCPeerConnection) -> None:
    """Answer `actpass` with `passive` (RFC 8842 section 5.3): aiortc as the DTLS client refuses RSA peers."""
    for transport in transports(pc):
        if transport._role == "auto":
            transport._set_role("server")


def offered(transceiver: RTCRtpTransceiver) -> str:
    """The direction the far end offers, as seen from here: "sendrecv", "sendonly", "recvonly", "inactive"."""
    return transceiver._offerDirection or "inactive"


def packets_received(pc: RTCPeerConnection) -> int:
    """Datagrams of media, data and DTLS so far; STUN is not counted."""
    return sum(stats.packetsReceived for t in transports(pc) for stats in t._get_stats().values())


def sending(pc: RTCPeerConnection) -> dict[str, Any]:
    """The figures of the connection's uplink, with the picture's as it is encoded now."""
    figures: dict[str, Any] = {}
    for transceiver in pc.getTransceivers():
        sender: Any = transceiver.sender
        if isinstance(sender, PacedSender) and sender.ours:
            figures |= sender.uplink.figures()
            if sender.shape is not None:
                figures |= {"width": sender.shape.width, "height": sender.shape.height}
                figures |= {"pictures": sender.encoded, "keyframes": sender.keyframes}
    return figures


def _pairs(pc: RTCPeerConnection) -> Iterator[tuple[Any, Any]]:
    for transport in transports(pc):
        connection = transport.transport._connection
        for pair in list(connection._nominated.values()):
            yield connection, pair


async def consents(pc: RTCPeerConnection) -> bool:
    """Ask once whether the far end still wants our packets (RFC 7675). It answers from its network stack,
    whatever its page does: muted, hidden, or busy. False when no answer comes within 0.5 s."""
    for connection, pair in _pairs(pc):
        request = connection.build_request(pair, nominate=False)
        try:
            await pair.protocol.request(
                request,
                pair.remote_addr,
                integrity_key=connection.remote_password.encode(),
                retransmissions=0,
            )
        except stun.TransactionError:
            continue
        return True
    return False
