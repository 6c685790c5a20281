"""Do sound and picture captured together get the same time at the far end? In virtual time, over a network with jitter and loss, from a
source 50 ppm off the receiver's clock, through a graph that takes 120 ms for a picture and 10 ms for sound.

Ours and aiortc's senders, read by Penstock's receiver: aiortc's own tells no times. Encoders take no time here.
"""

from __future__ import annotations

import asyncio
from fractions import Fraction
from typing import Any

import av
import numpy as np
from aiortc.mediastreams import MediaStreamTrack
from aiortc.rtcrtpparameters import (
    RTCRtcpParameters,
    RTCRtpCodecParameters,
    RTCRtpDecodingParameters,
    RTCRtpReceiveParameters,
    RTCRtpSendParameters,
)
from aiortc.rtcrtpsender import RTCRtpSender
from penstock.pipeline.clock import SECOND, LoopClock
from penstock.pipeline.frame import AudioFrame, VideoFrame
from penstock.transport import _compat, impairment
from penstock.transport.audio_out import AudioOut
from penstock.transport.capture_clock import SenderClock
from penstock.transport.ingress import IngressTrack
from penstock.transport.receiver import RtpReceiver
from penstock.transport.sender import PacedSender
from penstock.transport.video_out import VideoOut
from report import percentile
from transport_link import CODECS, EXTENSIONS, End, Inline, exact

OPUS = RTCRtpCodecParameters(mimeType="audio/opus", clockRate=48_000, channels=2, payloadType=96)
FPS = 30
DRIFT = 50e-6
PICTURE = np.full((72, 64), 128, np.uint8)
TONE = (8000 * np.sin(np.arange(960) * 0.1)).astype(np.int16)[:, None]
WORK_S = {"video": 0.120, "audio": 0.010}  # of the graph, between capture and sending
NETWORK = {"up": {"delay": "25ms", "jitter": "20ms", "loss": "2%"}, "down": {"delay": "25ms"}}


class Late(MediaStreamTrack):
    """For aiortc's sender: a picture or 20 ms of sound when the graph has done its work on it."""

    def __init__(self, kind: str, every_s: float, ticks: int, rate_hz: int) -> None:
        self.kind = kind
        super().__init__()
        self.every_s, self.ticks, self.rate_hz = every_s, ticks, rate_hz
        self.number = 0

    async def recv(self) -> Any:
        due = self.number * self.every_s * (1 + DRIFT) + WORK_S[self.kind]
        await asyncio.sleep(due - asyncio.get_running_loop().time())
        frame: Any
        if self.kind == "video":
            frame = av.VideoFrame.from_ndarray(np.roll(PICTURE, self.number), format="yuv420p")
        else:
            frame = av.AudioFrame.from_ndarray(TONE.reshape(1, -1), format="s16", layout="mono")
            frame.sample_rate = self.rate_hz
        frame.pts, frame.time_base = self.number * self.ticks, Fraction(1, self.rate_hz)
        self.number += 1
        return frame


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


async def _run(seconds: float, ours: bool) -> list[Stamps]:
    loop: Any = asyncio.get_running_loop()
    loop.set_default_executor(Inline())
    _compat.install()
    video, audio = VideoOut(), AudioOut(LoopClock(loop), live=True)
    video.stamps_capture = True  # as the line of a graph with live sound sets it
    theirs = (Late("video", 1 / FPS, 3000, 90_000), Late("audio", 0.02, 960, 48_000))
    shared = SenderClock()
    found: list[Stamps] = []
    senders: list[Any] = []
    up, down = impairment.read(NETWORK, 1)
    near, far = End(up), End(down)
    near.other, far.other = far, near
    tracks: Any = (video, audio) if ours else theirs
    for track, codec, ticks in zip(tracks, (CODECS["VP8"], OPUS), (3000, 960), strict=True):
        sender: Any = (PacedSender if ours else RTCRtpSender)(track, near)
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
    shown = [(k / FPS, "video", k) for k in range(int(seconds * FPS))]
    heard = [(k / 50, "audio", k) for k in range(int(seconds * 50))]
    for at, kind, k in sorted(shown + heard, key=lambda e: e[0] + WORK_S[e[1]]):
        captured = at * (1 + DRIFT)  # on our clock
        await asyncio.sleep(captured + WORK_S[kind] - loop.time())
        pts = round(captured * SECOND)
        if kind == "video":
            video.show(VideoFrame(pts=pts, image=np.roll(PICTURE, k), format="i420"))
        else:
            await audio.write(AudioFrame(pts=pts, pcm=TONE, rate_hz=48_000))
    for track in (video, audio, *theirs):
        track.stop()
    await asyncio.sleep(1)
    return found


def measure(seconds: float, ours: bool = True) -> dict[str, Any]:
    """|pts of the picture − pts of the sound| of what was captured together, ms."""
    video, audio = exact(_run(seconds, ours))
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
