"""Each symbol of aiortc and aioice that `_compat` touches is there and means what we think."""

import asyncio
import inspect
import math
import queue
import re
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import aioice.ice
import aiortc.codecs
import aiortc.codecs.vpx
import aiortc.rtcdtlstransport
import aiortc.rtcpeerconnection
import aiortc.rtp
import av
import numpy as np
import pytest
from aioice import Candidate
from aiortc import RTCPeerConnection
from aiortc.codecs import get_decoder
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtcrtpreceiver import RTCRtpReceiver
from client import until
from penstock.pipeline.clock import MS, MonotonicClock
from penstock.transport import _compat, stamped_socket, twcc
from penstock.transport._compat import (
    audio_level_dbov,
    encoder_threads,
    host_addresses,
)
from penstock.transport.checked_rtp import CheckedRtcpPacket, CheckedRtpPacket
from penstock.transport.ice import Ice
from penstock.transport.ingress import Decoded, IngressTrack, decode_loop, is_keyframe
from penstock.transport.peer import Peer
from penstock.transport.receiver import RtpReceiver


def test_ours_stand_in_aiortcs_places():
    _compat.install()
    assert aiortc.rtcpeerconnection.RTCRtpReceiver is RtpReceiver  # type: ignore[attr-defined]
    assert aiortc.rtcpeerconnection.RemoteStreamTrack is IngressTrack  # type: ignore[attr-defined]
    assert aioice.ice.get_host_addresses is host_addresses
    assert aiortc.rtcdtlstransport.RtpPacket is CheckedRtpPacket  # type: ignore[attr-defined]
    assert aiortc.rtcdtlstransport.RtcpPacket is CheckedRtcpPacket  # type: ignore[attr-defined]
    assert aioice.ice.StunProtocol is stamped_socket.StampingProtocol
    assert aioice.ice.Connection.recv is stamped_socket.receive
    assert aiortc.codecs.vpx.number_of_threads is encoder_threads
    assert aioice.ice.Connection.get_component_candidates is _compat.component_candidates


def test_gathering_takes_what_aioices_own_takes():
    theirs = inspect.signature(_compat._component_candidates).parameters  # type: ignore[reportPrivateUsage]
    assert list(theirs) == list(inspect.signature(_compat.component_candidates).parameters)
    assert theirs["timeout"].default > _compat.GATHER
    calls = re.findall(r"self\.get_component_candidates\(([^)]*)\)", inspect.getsource(aioice.ice.Connection))
    assert calls == ["component=component, addresses=addresses"], "it is called without a timeout of its own"


def test_all_that_aiortc_calls_on_a_receiver_is_there():
    """The attributes that aiortc reads of its receivers, found in its sources, exist on ours."""
    package = Path(aiortc.rtcpeerconnection.__file__).parent
    used: set[str] = set()
    for name in ("rtcpeerconnection", "rtcrtptransceiver", "rtcdtlstransport"):
        source = (package / f"{name}.py").read_text()
        used |= set(re.findall(r"(?:\b|_)(?:receiver|recipient)\.(\w+)", source))
    used -= {"_handle_data"}  # of the data channels' receiver
    assert {"receive", "stop", "track", "_handle_rtp_packet", "_handle_rtcp_packet", "_set_rtcp_ssrc"} <= used
    receiver = RtpReceiver("video", _Transport())  # type: ignore[arg-type]
    assert {name for name in used if not hasattr(receiver, name)} == set()
    for name in ("receive", "stop", "_handle_rtp_packet", "_handle_rtcp_packet", "getStats"):
        theirs, ours = getattr(RTCRtpReceiver, name), getattr(RtpReceiver, name)
        assert list(inspect.signature(theirs).parameters) == list(inspect.signature(ours).parameters)
        assert inspect.iscoroutinefunction(ours)


class _Transport:
    state = "new"


def test_datagrams_tell_when_they_reached_the_machine_though_the_loop_was_busy():
    async def main() -> None:
        _compat.install()
        loop = asyncio.get_running_loop()
        got: list[Any] = []

        class Receiver:
            def data_received(self, data: bytes, component: int) -> None:
                got.append(data)

            def protocol_lost(self, protocol: Any) -> None: ...

        transport, protocol = await loop.create_datagram_endpoint(
            lambda: aioice.ice.StunProtocol(Receiver()),  # type: ignore[arg-type]
            local_addr=("127.0.0.1", 0),
        )
        protocol.local_candidate = Candidate.from_sdp("1 1 udp 1 127.0.0.1 1 typ host")
        await asyncio.sleep(0)  # ours has taken over
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for k in range(3):
            sender.sendto(b"\x90 no STUN %d" % k, transport.get_extra_info("sockname"))
        before = MonotonicClock().now()
        while MonotonicClock().now() - before < 30 * MS:  # a busy loop, not a sleep: that is the case
            pass
        while len(got) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert [bytes(d)[-1:] for d in got] == [b"0", b"1", b"2"]
        if sys.platform.startswith("linux"):
            assert all(d.arrival <= before + 5 * MS for d in got)
        sender.close()
        await protocol.close()

    asyncio.run(main())


def test_transport_cc_and_opus_fec_are_negotiated_once():
    _compat.install()
    _compat.install()
    for kind in ("audio", "video"):
        ids = [e.id for e in aiortc.codecs.HEADER_EXTENSIONS[kind] if e.uri == twcc.URI]
        assert ids == [_compat.TRANSPORT_CC_ID]
        assert len({e.id for e in aiortc.codecs.HEADER_EXTENSIONS[kind]}) == len(
            aiortc.codecs.HEADER_EXTENSIONS[kind]
        )
        for codec in aiortc.codecs.CODECS[kind]:
            told = [f.type for f in codec.rtcpFeedback].count("transport-cc")
            assert told == (codec.name != "rtx")
    opus = aiortc.codecs.CODECS["audio"][0]
    assert opus.parameters["useinbandfec"] == 1


def test_loopback_is_offered_only_where_there_is_nothing_else(monkeypatch: pytest.MonkeyPatch):
    def none(use_ipv4: bool, use_ipv6: bool) -> list[str]:
        return []

    def lan(use_ipv4: bool, use_ipv6: bool) -> list[str]:
        return ["192.0.2.7"]

    monkeypatch.setattr(_compat, "_host_addresses", none)
    assert host_addresses(use_ipv4=True, use_ipv6=True) == ["127.0.0.1"]
    monkeypatch.setattr(_compat, "_host_addresses", lan)
    assert host_addresses(use_ipv4=True, use_ipv6=True) == ["192.0.2.7"]


def test_decoders_take_the_pixel_limit():
    for mime in ("video/VP8", "video/H264"):
        decoder: Any = get_decoder(RTCRtpCodecParameters(mimeType=mime, clockRate=90_000, payloadType=97))
        decoder.codec.options = decoder.codec.options | {"max_pixels": "1000"}
        assert decoder.codec.options["max_pixels"] == "1000"


def test_keyframes_are_told_apart():
    assert is_keyframe("VP8", b"\x10\x00")
    assert not is_keyframe("VP8", b"\x11\x00")
    assert is_keyframe("H264", b"\0\0\0\1\x67abc")
    assert is_keyframe("H264", b"\0\0\0\1\x09\0\0\0\1\x65abc")
    assert not is_keyframe("H264", b"\0\0\0\1\x41abc")


class Loop:
    """Calls back at once."""

    def call_soon_threadsafe(self, callback: Any, *args: Any) -> None:
        callback(*args)


class Encoded:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.timestamp = 0
        self.lost = False


def test_a_decoder_that_falls_behind_drops_and_asks_for_a_keyframe():
    codec = RTCRtpCodecParameters(mimeType="video/VP8", clockRate=90_000, payloadType=97)
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    error = threading.Event()
    decoded = Decoded()
    for _ in range(500):
        waiting.put((codec, Encoded(b"\x01 an inter frame")))
    waiting.put((codec, Encoded(b"\x01 the newest, no keyframe either")))
    waiting.put(None)
    decode_loop(Loop(), waiting, decoded, error)  # type: ignore[arg-type]
    assert error.is_set()
    assert waiting.empty()
    assert decoded.get_nowait() is None, "the track has ended"


def test_garbage_media_ends_nothing():
    codec = RTCRtpCodecParameters(mimeType="video/VP8", clockRate=90_000, payloadType=97)
    waiting: queue.SimpleQueue[Any] = queue.SimpleQueue()
    error = threading.Event()
    decoded = Decoded()
    for _ in range(5):
        waiting.put((codec, Encoded(b"\x00garbage")))
    waiting.put(None)
    decode_loop(Loop(), waiting, decoded, error)  # type: ignore[arg-type]
    assert error.is_set()
    assert decoded.get_nowait() is None


@pytest.mark.parametrize("amplitude", [0, 1, 300, 8000, 32767])
def test_audio_level_is_that_of_rfc_6465(amplitude: int):
    pcm = np.full((1, 960), amplitude, np.int16)
    pcm[:, ::2] *= -1
    frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
    expected = -127 if amplitude == 0 else round(20 * math.log10(amplitude / 32767))
    assert audio_level_dbov(frame) == expected
    assert aiortc.rtp.compute_audio_level_dbov is audio_level_dbov


def test_a_retransmission_is_routed_by_its_source_where_two_tracks_share_its_payload_type() -> None:
    async def main() -> None:
        _compat.install()
        here, there = RTCPeerConnection(), RTCPeerConnection(Ice().ours())
        for kind in ("audio", "video", "video"):
            here.addTransceiver(kind, direction="sendonly")
        await here.setLocalDescription(await here.createOffer())
        await there.setRemoteDescription(here.localDescription)
        await there.setLocalDescription(await there.createAnswer())
        await here.setRemoteDescription(there.localDescription)
        receivers: list[Any] = [t.receiver for t in there.getTransceivers()]
        _, first, second = receivers
        assert first.transport is second.transport  # both on the one that is started
        router: Any = first.transport._rtp_router  # pyright: ignore[reportPrivateUsage]
        await until(lambda: len(router.receivers) == 3, 20)
        table = router.ssrc_table
        for receiver in (first, second):
            rtx = list(receiver._rtx)
            assert rtx
            assert all(table[ssrc] is receiver for ssrc in rtx)
        await here.close()
        await there.close()

    asyncio.run(main())


def test_browsers_are_asked_to_begin_at_a_rate_that_carries_a_picture():
    async def main() -> None:
        offerer, peer = RTCPeerConnection(), Peer("s-1", MonotonicClock())
        offerer.addTransceiver("video", direction="sendonly")
        await offerer.setLocalDescription(await offerer.createOffer())
        # as Chromium offers it, without the parameter
        offer = re.sub(r"(;|fmtp:\d+ )x-google-start-bitrate=\d+", "", offerer.localDescription.sdp)
        offer = re.sub(r"a=\d*\r\n", "", offer)
        answer = await peer.accept(offer)
        for name in ("VP8", "H264"):
            kind = re.search(rf"a=rtpmap:(\d+) {name}/90000", answer)
            assert kind is not None
            assert re.search(rf"a=fmtp:{kind[1]} .*x-google-start-bitrate=1000\r\n", answer)
        await peer.close()
        await offerer.close()

    asyncio.run(main())
