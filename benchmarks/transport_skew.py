"""Do sound and picture captured together get the same time at the far end? In virtual time: our senders and receivers, a network
with jitter and loss, a source 50 ppm off the receiver's clock. Encoders take no time here; on a real machine theirs adds to it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiortc.clock
import numpy as np
from aiortc.rtcrtpparameters import (
    RTCRtcpParameters,
    RTCRtpCodecParameters,
    RTCRtpDecodingParameters,
    RTCRtpReceiveParameters,
    RTCRtpSendParameters,
)
from penstock.pipeline.clock import MS, SECOND, LoopClock
from penstock.pipeline.frame import AudioFrame, VideoFrame
from penstock.pipeline.virtual_loop import run_virtual
from penstock.transport import _compat, impairment
from penstock.transport.audio_out import AudioOut
from penstock.transport.capture_clock import SenderClock
from penstock.transport.ingress import IngressTrack
from penstock.transport.receiver import RtpReceiver
from penstock.transport.sender import PacedSender
from penstock.transport.video_out import VideoOut
from report import percentile
from transport_link import CODECS, EXTENSIONS, End, Inline

OPUS = RTCRtpCodecParameters(mimeType="audio/opus", clockRate=48_000, channels=2, payloadType=96)
FPS = 30
DRIFT = 50e-6
NETWORK = {"up": {"delay": "25ms", "jitter": "20ms", "loss": "2%"}, "down": {"delay": "25ms"}}


class Stamps:
    """Stands where a decoder's queue is: what time does each frame get, and when was it captured?"""

    def __init__(self, track: IngressTrack, rate_hz: int, ticks: int) -> None:
        self.track, self.rate_hz, self.ticks = track, rate_hz, ticks
        self.errors: list[tuple[float, float]] = []  # (captured s, pts − captured ms)

    def put(self, item: Any) -> None:
        if item is None or item[1].lost:
            return
        media = item[1].timestamp * SECOND // self.rate_hz
        number = round(item[1].timestamp / self.ticks)
        captured = number * self.ticks / self.rate_hz
        self.errors.append((captured, (self.track.capture.at(media) / SECOND - captured) * 1000))

    def get(self) -> None:
        return None

    def qsize(self) -> int:
        return 0


async def _run(seconds: float) -> list[Stamps]:
    loop: Any = asyncio.get_running_loop()
    loop.set_default_executor(Inline())
    _compat.install()
    video, audio = VideoOut(), AudioOut(LoopClock(loop), live=True)
    shared = SenderClock()
    found: list[Stamps] = []
    senders: list[Any] = []
    up, down = impairment.read(NETWORK, 1)
    near, far = End(up), End(down)
    near.other, far.other = far, near
    for track, codec, ticks in ((video, CODECS["VP8"], 3000), (audio, OPUS, 960)):
        sender: Any = PacedSender(track, near)
        receiver: Any = RtpReceiver(track.kind, far)  # type: ignore[arg-type]
        receiver._track = IngressTrack(track.kind)
        receiver._track.capture.sender = shared
        receiver._set_rtcp_ssrc(len(found) + 1)
        stamps = receiver._encoded = Stamps(receiver._track, codec.clockRate, ticks)
        found.append(stamps)
        senders.append(sender)
        encoding = RTCRtpDecodingParameters(ssrc=sender._ssrc, payloadType=codec.payloadType)
        await receiver.receive(
            RTCRtpReceiveParameters(codecs=[codec], headerExtensions=EXTENSIONS, encodings=[encoding])
        )
        await sender.send(
            RTCRtpSendParameters(
                codecs=[codec], headerExtensions=EXTENSIONS, muxId="0", rtcp=RTCRtcpParameters(cname="x")
            )
        )
    picture = np.full((72, 64), 128, np.uint8)
    tone = (8000 * np.sin(np.arange(960) * 0.1)).astype(np.int16)[:, None]
    events = sorted(
        [(k / FPS, 0, k) for k in range(int(seconds * FPS))]
        + [(k / 50, 1, k) for k in range(int(seconds * 50))]
    )
    for at, kind, k in events:
        await asyncio.sleep(at * (1 + DRIFT) - loop.time())
        if kind == 0:
            video.show(VideoFrame(pts=round(k * SECOND / FPS), image=np.roll(picture, k), format="i420"))
        else:
            await audio.write(AudioFrame(pts=k * 20 * MS, pcm=tone, rate_hz=48_000))
    video.stop()
    audio.stop()
    await asyncio.sleep(1)
    return found


def measure(seconds: float) -> dict[str, Any]:
    """|pts of the picture − pts of the sound| of what was captured together, ms."""
    before = aiortc.clock.current_ntp_time
    aiortc.clock.current_ntp_time = lambda: (
        (3_990_000_000 << 32) + int(asyncio.get_running_loop().time() * (1 << 32))
    )
    try:
        video, audio = run_virtual(_run(seconds))
    finally:
        aiortc.clock.current_ntp_time = before
    heard = dict(audio.errors)
    pairs = [
        (at, abs(error - heard[near]))
        for at, error in video.errors
        if (near := round(at * 50) / 50) in heard and at > 5  # the first reports take some seconds
    ]
    skews = [skew for _, skew in pairs]
    return {
        "seconds": seconds,
        "pairs": len(skews),
        "av_skew_ms_p50": round(percentile(skews, 0.5), 2),
        "av_skew_ms_p95": round(percentile(skews, 0.95), 2),
        "av_skew_ms_max": round(max(skews), 2),
    }
