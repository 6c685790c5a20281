"""All that reaches into aiortc and aioice, in one place; each touched symbol has a test in test_compat.py.

aiortc is pinned (pyproject.toml): a new version is taken when these tests pass with it.
"""
# pyright: reportPrivateUsage=false, reportPrivateImportUsage=false

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import aioice.ice
import aiortc.codecs.vpx
import aiortc.rtcpeerconnection
import aiortc.rtcrtpreceiver
import aiortc.rtp
import av
import numpy as np
from aioice import stun
from aiortc import RTCPeerConnection, RTCRtpTransceiver
from aiortc.jitterbuffer import JitterBuffer, JitterFrame
from aiortc.rtcdtlstransport import RTCDtlsTransport

from .ingress import IngressTrack, decode_loop

AUDIO_REORDER = 4  # packets: a lost one is given up after 80 ms, and delays what follows by no more

_host_addresses = aioice.ice.get_host_addresses


class PromptJitterBuffer(JitterBuffer):
    """Gives a frame out when its last packet is there, instead of when the next frame begins.

    Video: the RTP marker bit ends a frame (RFC 7741 section 4.1, RFC 6184 section 5.1). Audio: each packet
    is a frame. At 30 frames/s this is 33 ms less delay, at 2 frames/s 500 ms.
    """

    def __init__(self, capacity: int, prefetch: int = 0, is_video: bool = False) -> None:
        super().__init__(capacity if is_video else AUDIO_REORDER, prefetch=0, is_video=is_video)

    def _remove_frame(self, sequence_number: int) -> JitterFrame | None:
        parts: list[bytes] = []
        timestamp = -1
        for count in range(self.capacity):
            packet: Any = self._packets[((self._origin or 0) + count) % self.capacity]
            if packet is None:
                return None
            if not count:
                timestamp = packet.timestamp
            elif packet.timestamp != timestamp:  # a sender that sets no markers
                self.remove(count)
                return JitterFrame(b"".join(parts), timestamp)
            parts.append(packet._data)
            if packet.marker or not self._is_video:
                self.remove(count + 1)
                return JitterFrame(b"".join(parts), timestamp)
        return None


def host_addresses(use_ipv4: bool, use_ipv6: bool) -> list[str]:
    """The machine's addresses; 127.0.0.1 where it has no other (aioice never offers loopback)."""
    found = _host_addresses(use_ipv4=use_ipv4, use_ipv6=use_ipv6)
    if not found and use_ipv4:
        return ["127.0.0.1"]
    return found


def encoder_threads(pixels: int, cpus: int) -> int:
    """One thread up to 720p: more of them wait for each other when the machine is busy (23 ms and more a
    frame, against 2)."""
    return 1 if pixels <= 1280 * 720 or cpus < 4 else 2


def audio_level_dbov(frame: av.AudioFrame) -> int:
    """The level of s16 sound in dB of full scale, -127 to 0 (RFC 6465 appendix A): as aiortc's own, which
    loops over the samples in Python and costs 0.11 ms a frame, 20 times as much."""
    power = float(np.mean(np.square(frame.to_ndarray(), dtype=np.float64))) / 32767**2
    return max(-127, min(0, round(10 * math.log10(power)))) if power > 0 else -127


def install() -> None:
    """Put ours in place, for all connections of this process. Idempotent."""
    aioice.ice.get_host_addresses = host_addresses
    aiortc.codecs.vpx.number_of_threads = encoder_threads
    aiortc.rtp.compute_audio_level_dbov = audio_level_dbov
    aiortc.rtcrtpreceiver.JitterBuffer = PromptJitterBuffer
    aiortc.rtcrtpreceiver.decoder_worker = decode_loop
    aiortc.rtcpeerconnection.RemoteStreamTrack = IngressTrack


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
