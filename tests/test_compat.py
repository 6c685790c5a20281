"""Each symbol of aiortc and aioice that `_compat` touches is there and means what we think."""

import math
import queue
import threading
from typing import Any

import aioice.ice
import aiortc.codecs.vpx
import aiortc.rtcpeerconnection
import aiortc.rtcrtpreceiver
import aiortc.rtp
import av
import numpy as np
import pytest
from aiortc.codecs import get_decoder
from aiortc.jitterbuffer import JitterBuffer
from aiortc.rtcrtpparameters import RTCRtpCodecParameters
from aiortc.rtp import RtpPacket
from penstock.transport import _compat
from penstock.transport._compat import (
    AUDIO_REORDER,
    PromptJitterBuffer,
    audio_level_dbov,
    encoder_threads,
    host_addresses,
)
from penstock.transport.ingress import Decoded, IngressTrack, decode_loop, is_keyframe


def packet(seq: int, timestamp: int, data: bytes = b"x", marker: int = 0) -> RtpPacket:
    made = RtpPacket(payload_type=96, sequence_number=seq, timestamp=timestamp, marker=marker)
    made._data = data  # type: ignore[attr-defined]
    return made


def test_ours_stand_in_aiortcs_places():
    _compat.install()
    assert aiortc.rtcrtpreceiver.JitterBuffer is PromptJitterBuffer  # type: ignore[attr-defined]
    assert aiortc.rtcrtpreceiver.decoder_worker is decode_loop
    assert aiortc.rtcpeerconnection.RemoteStreamTrack is IngressTrack  # type: ignore[attr-defined]
    assert aioice.ice.get_host_addresses is host_addresses
    assert aiortc.codecs.vpx.number_of_threads is encoder_threads


def test_aiortc_waits_for_the_next_frame_where_ours_goes_by_the_marker():
    theirs, ours = JitterBuffer(16, is_video=True), PromptJitterBuffer(16, is_video=True)
    for buffer, expected in ((theirs, None), (ours, b"ab")):
        assert buffer.add(packet(0, 0, b"a"))[1] is None
        frame = buffer.add(packet(1, 0, b"b", marker=1))[1]
        assert (frame.data if frame else None) == expected


def test_packets_out_of_order_make_one_frame():
    buffer = PromptJitterBuffer(16, is_video=True)
    buffer.add(packet(0, 0, b"a"))
    assert buffer.add(packet(2, 0, b"c", marker=1))[1] is None
    frame = buffer.add(packet(1, 0, b"b"))[1]
    assert frame is not None
    assert frame.data == b"abc"


def test_a_frame_without_marker_ends_where_the_next_begins():
    buffer = PromptJitterBuffer(16, is_video=True)
    buffer.add(packet(0, 0, b"a"))
    frame = buffer.add(packet(1, 3000, b"b"))[1]
    assert frame is not None
    assert (frame.data, frame.timestamp) == (b"a", 0)


def test_audio_packets_leave_at_once_and_a_lost_one_costs_no_more_than_the_reorder_window():
    buffer = PromptJitterBuffer(16, prefetch=4)
    assert buffer.add(packet(0, 0, b"0"))[1] is not None
    newest, out = 0, 0
    for seq in range(2, 40):  # 1 is lost
        newest = seq
        frame = buffer.add(packet(seq, seq * 960, b"x"))[1]
        out = frame.timestamp // 960 if frame else out
    assert newest - out < AUDIO_REORDER


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


def test_a_decoder_that_falls_behind_drops_and_asks_for_a_keyframe():
    codec = RTCRtpCodecParameters(mimeType="video/VP8", clockRate=90_000, payloadType=97)
    waiting: queue.Queue[Any] = queue.Queue()
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
    waiting: queue.Queue[Any] = queue.Queue()
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
