"""Sender reports tell when media was captured, so that a far end plays together what happened together."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import aiortc.clock
import numpy as np
import pytest
from aiortc.rtcrtpparameters import RTCRtcpParameters, RTCRtpCodecParameters, RTCRtpSendParameters
from aiortc.rtp import RtcpPacket, RtcpSrPacket, RtpPacket, is_rtcp
from penstock.pipeline.clock import MS, SECOND, LoopClock
from penstock.pipeline.frame import AudioFrame, VideoFrame
from penstock.pipeline.virtual_loop import run_virtual
from penstock.transport import _compat
from penstock.transport.audio_out import AudioOut
from penstock.transport.line import Line
from penstock.transport.sender import PacedSender
from penstock.transport.video_out import VideoOut

BEGIN = 3_990_000_000 << 32  # NTP, of the virtual loop's zero
VP8 = RTCRtpCodecParameters(mimeType="video/VP8", clockRate=90_000, payloadType=97)
OPUS = RTCRtpCodecParameters(mimeType="audio/opus", clockRate=48_000, channels=2, payloadType=96)
TONE = (8000 * np.sin(np.arange(960) * 0.1)).astype(np.int16)[:, None]


class Inline(ThreadPoolExecutor):
    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


class Wire:
    """A transport that keeps what is sent."""

    state = "connected"
    _stats_id = "wire"

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    async def _send_rtp(self, data: bytes) -> None:
        self.sent.append(data)

    def _register_rtp_sender(self, sender: Any, parameters: Any) -> None: ...
    def _unregister_rtp_sender(self, sender: Any) -> None: ...


def mapped(wire: Wire, first_ticks: int, rate_hz: int) -> float:
    """When a far end takes the first media of that wire for captured, by the last report, s of the loop's time. first_ticks: of
    its first packet after the track's beginning."""
    packets = [RtpPacket.parse(data) for data in wire.sent if not is_rtcp(data)]
    reports = [
        p
        for data in wire.sent
        if is_rtcp(data)
        for p in RtcpPacket.parse(data)
        if isinstance(p, RtcpSrPacket)
    ]
    assert reports
    info = reports[-1].sender_info
    at = (info.ntp_timestamp - BEGIN) / (1 << 32)
    ticks = (info.rtp_timestamp - packets[0].timestamp + first_ticks) & 0xFFFFFFFF
    return at - ticks / rate_hz


async def start(track: Any, codec: RTCRtpCodecParameters) -> tuple[Any, Wire]:
    wire = Wire()
    sender: Any = PacedSender(track, wire)
    await sender.send(
        RTCRtpSendParameters(
            codecs=[codec], headerExtensions=[], muxId="0", rtcp=RTCRtcpParameters(cname="x")
        )
    )
    return sender, wire


def reported(shared: bool, live: bool, monkeypatch: pytest.MonkeyPatch) -> tuple[float, float]:
    """Pictures 120 ms late and sound 10 ms, from 1 s on: the s at which the reports put the first of each."""

    async def main() -> tuple[float, float]:
        loop: Any = asyncio.get_running_loop()
        loop.set_default_executor(Inline())
        _compat.install()
        monkeypatch.setattr(
            aiortc.clock,
            "current_ntp_time",
            lambda: BEGIN + int(asyncio.get_running_loop().time() * (1 << 32)),
        )
        line = Line(LoopClock(loop))
        line.set_audio(60 * MS, live=live)
        cast = line.broadcast
        video, audio = VideoOut(), AudioOut(line.clock, live=live)
        video.stamps_capture = live
        tracks: Any = (cast.video(), cast.audio()) if shared else (video, audio)
        await asyncio.sleep(0.98)
        line.stand()
        senders = [await start(track, codec) for track, codec in zip(tracks, (VP8, OPUS), strict=True)]
        picture = np.full((72, 64), 128, np.uint8)
        for k in range(150):
            now = k * 20 * MS + SECOND
            await asyncio.sleep(now / SECOND - loop.time())
            frame = VideoFrame(pts=now - 120 * MS, image=np.roll(picture, k), format="i420")
            sound = AudioFrame(pts=now - 10 * MS, pcm=TONE, rate_hz=48_000)
            cast.show(frame)
            video.show(frame)
            if shared:
                assert line.audio_out is not None
                await line.audio_out.write(sound)
            else:
                await audio.write(sound)
        (_, pictures), (_, sounds) = senders
        found = mapped(pictures, 0, 90_000), mapped(sounds, 0, 48_000)
        for track in tracks:
            track.stop()
        line.close()
        for sender, _ in senders:
            await sender.stop()
        return found

    return run_virtual(main())


@pytest.mark.parametrize("shared", [False, True])
def test_reports_of_sound_and_picture_agree_whatever_the_graph_took(
    shared: bool, monkeypatch: pytest.MonkeyPatch
):
    picture, sound = reported(shared, True, monkeypatch)
    assert picture == pytest.approx(0.88, abs=0.002)
    # sound is cut into frames anew: right to a part of one
    assert sound == pytest.approx(0.99, abs=0.025)


@pytest.mark.parametrize("shared", [False, True])
def test_pictures_beside_generated_sound_are_stamped_when_sent(shared: bool, monkeypatch: pytest.MonkeyPatch):
    """Else a browser would hold back speech until it fits pictures that it has nothing to do with."""
    picture, _ = reported(shared, False, monkeypatch)
    assert picture == pytest.approx(1.0, abs=0.05)
