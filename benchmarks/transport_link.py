"""Both halves at once in virtual time: real encoders, real senders, real receivers, and a network of `impairment` between.

Exact and repeatable, whatever else the machine does: encoding takes no time, as it would on an idle machine of any speed.
aiortc: its RTCRtpSender and RTCRtpReceiver as they are. What is measured: when a picture that can be decoded (a keyframe, or all
before it since one were there) is handed to the decoder.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from fractions import Fraction
from typing import Any, TypeVar

import aiortc.clock
import av
import numpy as np
from aiortc.codecs import depayload
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from aiortc.rtcrtpparameters import (
    RTCRtcpParameters,
    RTCRtpCodecParameters,
    RTCRtpDecodingParameters,
    RTCRtpHeaderExtensionParameters,
    RTCRtpReceiveParameters,
    RTCRtpRtxParameters,
    RTCRtpSendParameters,
)
from aiortc.rtcrtpreceiver import RemoteStreamTrack, RTCRtpReceiver
from aiortc.rtcrtpsender import RTCRtpSender
from aiortc.rtp import HeaderExtensionsMap, RtcpByePacket, RtcpPacket, RtpPacket, is_rtcp
from penstock.pipeline.clock import SECOND
from penstock.pipeline.frame import VideoFrame
from penstock.pipeline.virtual_loop import run_virtual
from penstock.transport import _compat, impairment, twcc
from penstock.transport.ingress import IngressTrack
from penstock.transport.receiver import RtpReceiver
from penstock.transport.sender import PacedSender
from penstock.transport.video_out import VideoOut
from report import percentile

WIDTH, HEIGHT = 640, 480
LOOP = 90  # pictures of the scene, there and back again
CODECS = {
    "VP8": RTCRtpCodecParameters(mimeType="video/VP8", clockRate=90_000, payloadType=97),
    "H264": RTCRtpCodecParameters(
        mimeType="video/H264",
        clockRate=90_000,
        payloadType=97,
        parameters={"packetization-mode": "1", "profile-level-id": "42e01f"},
    ),
}
RTX = RTCRtpCodecParameters(mimeType="video/rtx", clockRate=90_000, payloadType=98, parameters={"apt": 97})
EXTENSIONS = [
    RTCRtpHeaderExtensionParameters(id=1, uri="urn:ietf:params:rtp-hdrext:sdes:mid"),
    RTCRtpHeaderExtensionParameters(id=3, uri="http://www.webrtc.org/experiments/rtp-hdrext/abs-send-time"),
]


T = TypeVar("T")


class Inline(ThreadPoolExecutor):
    """Work of other threads takes no virtual time."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(fn(*args, **kwargs))
        return done


def _texture(seed: int, cell: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    noise = np.random.default_rng(seed).integers(40, 215, (HEIGHT // cell, WIDTH // cell, 3), np.uint8)
    small = av.VideoFrame.from_ndarray(noise, format="rgb24")
    return small.reformat(width=WIDTH, height=HEIGHT, interpolation="BICUBIC").to_ndarray()


_scenes: list[Any] = []


def scene(k: int) -> Any:
    """i420 (H·3/2, W): a soft texture that drifts, with a disc that moves over it: about what a talking head costs."""
    if not _scenes:
        background, face = _texture(0, 40), _texture(1, 10)
        y, x = np.ogrid[:HEIGHT, :WIDTH]
        for n in range(LOOP):
            image = np.roll(background, n // 2, axis=1)
            disc = (x - 320 - 120 * np.sin(n / 20)) ** 2 + (y - 240 - 40 * np.cos(n / 13)) ** 2 < 110**2
            image[disc] = np.roll(face, (n, 2 * n), axis=(0, 1))[disc]
            _scenes.append(av.VideoFrame.from_ndarray(image, format="rgb24").to_ndarray(format="yuv420p"))
    at = k % (2 * LOOP - 2)
    return _scenes[min(at, 2 * LOOP - 2 - at)]


class Camera(MediaStreamTrack):
    """For aiortc's sender: it waits for the next picture, and one not fetched in time is skipped."""

    kind = "video"

    def __init__(self, fps: float, end_s: float) -> None:
        super().__init__()
        self.fps, self.end_s = fps, end_s
        self._next = 0

    async def recv(self) -> av.VideoFrame:
        loop = asyncio.get_running_loop()
        self._next = max(self._next, int(loop.time() * self.fps))
        if self._next >= self.end_s * self.fps:
            raise MediaStreamError
        await asyncio.sleep(self._next / self.fps - loop.time())
        frame = av.VideoFrame.from_ndarray(scene(self._next), format="yuv420p")
        frame.pts, frame.time_base = round(self._next * 90_000 / self.fps), Fraction(1, 90_000)
        self._next += 1
        return frame


class End:
    """One end's transport: datagrams go through `link` to the other end's `take`."""

    state = "connected"
    _stats_id = "end"

    def __init__(self, link: impairment.Link) -> None:
        self.link = link
        self.other: End
        self.sent_bytes = 0
        self.handlers: list[Any] = []
        self.extensions = HeaderExtensionsMap()
        self._tasks: set[asyncio.Task[None]] = set()

    def _register_rtp_receiver(self, receiver: Any, parameters: Any) -> None:
        self.handlers.append(receiver)
        self.extensions.configure(parameters)

    def _register_rtp_sender(self, sender: Any, parameters: Any) -> None:
        self.handlers.append(sender)

    def _unregister_rtp_receiver(self, receiver: Any) -> None: ...
    def _unregister_rtp_sender(self, sender: Any) -> None: ...

    async def _send_rtp(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        self.sent_bytes += len(data)
        now_ms = loop.time() * 1000
        for at_ms in self.link.offer(now_ms, len(data) + 10):  # SRTP's tag
            loop.call_later((at_ms - now_ms) / 1000, self.other.take, data)

    def take(self, data: bytes) -> None:
        loop = asyncio.get_running_loop()
        for handler in self.handlers:
            if is_rtcp(data):
                for packet in RtcpPacket.parse(data):
                    if not isinstance(packet, RtcpByePacket):
                        self._spawn(handler._handle_rtcp_packet(packet))
            elif hasattr(handler, "_handle_rtp_packet"):
                packet = RtpPacket.parse(data, self.extensions)
                self._spawn(handler._handle_rtp_packet(packet, round(loop.time() * 1000)))

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Taken:
    """Stands where the decoder's queue is: (when, data, keyframe) of each frame."""

    def __init__(self, codec: str) -> None:
        self.codec = codec
        self.frames: list[tuple[float, bytes, bool]] = []

    def put(self, item: Any) -> None:
        if item is not None and not getattr(item[1], "lost", False):
            data = item[1].data
            if self.codec == "VP8":
                key = not data[0] & 1
            else:
                key = any(part[:1] and part[0] & 31 in (5, 7) for part in data.split(b"\0\0\1")[1:])
            self.frames.append((asyncio.get_running_loop().time(), bytes(data), key))

    def get(self) -> None:
        return None

    def qsize(self) -> int:
        return 0


async def _run(
    ours: bool, written: dict[str, Any], seconds: float, codec: str, fps: float, seed: int
) -> dict[str, Any]:
    loop: Any = asyncio.get_running_loop()
    loop.set_default_executor(Inline())
    _compat.install()
    up, down = impairment.read(written, seed)
    near, far = End(up), End(down)
    near.other, far.other = far, near
    parameters = CODECS[codec]
    extensions = list(EXTENSIONS)
    if ours:
        extensions.append(RTCRtpHeaderExtensionParameters(id=5, uri=twcc.URI))
    out = VideoOut()
    source: Any = out if ours else Camera(fps, seconds)
    sender: Any = (PacedSender if ours else RTCRtpSender)(source, near)
    taken = Taken(codec)
    receiver: Any = (RtpReceiver if ours else RTCRtpReceiver)("video", far)  # type: ignore[arg-type]
    receiver._track = IngressTrack("video") if ours else RemoteStreamTrack("video")
    receiver._set_rtcp_ssrc(1)
    setattr(receiver, "_encoded" if ours else "_RTCRtpReceiver__decoder_queue", taken)
    await receiver.receive(
        RTCRtpReceiveParameters(
            codecs=[parameters, RTX],
            headerExtensions=extensions,
            encodings=[
                RTCRtpDecodingParameters(
                    ssrc=sender._ssrc, payloadType=97, rtx=RTCRtpRtxParameters(ssrc=sender._rtx_ssrc)
                )
            ],
        )
    )
    await sender.send(
        RTCRtpSendParameters(
            codecs=[parameters, RTX],
            headerExtensions=extensions,
            muxId="0",
            rtcp=RTCRtcpParameters(cname="x"),
        )
    )
    sent: dict[int, bytearray] = {}  # RTP timestamp → the encoded picture, in the order of sending
    numbers: set[int] = set()
    relay = near._send_rtp

    async def tap(data: bytes) -> None:
        if not is_rtcp(data):
            packet = RtpPacket.parse(data, far.extensions)
            if packet.ssrc == sender._ssrc:
                picture = sent.setdefault(packet.timestamp, bytearray())
                if packet.sequence_number not in numbers:  # not a tail sent twice
                    numbers.add(packet.sequence_number)
                    picture += depayload(parameters, packet.payload)
        await relay(data)

    near._send_rtp = tap  # type: ignore[method-assign]
    pictures = round(seconds * fps)
    for k in range(pictures):
        await asyncio.sleep(k / fps - loop.time())
        if ours:
            out.show(VideoFrame(pts=round(k * SECOND / fps), image=scene(k), format="i420"))
    await asyncio.sleep(1)
    source.stop()
    await receiver.stop()
    stop = asyncio.ensure_future(sender.stop())
    await asyncio.wait([stop], timeout=2)
    order = {bytes(data): k for k, data in enumerate(sent.values())}
    captured = [((stamp - next(iter(sent))) & 0xFFFFFFFF) / 90_000 for stamp in sent]
    shown: list[tuple[float, float]] = []  # (when, captured), s
    last = -1
    for when, data, key in taken.frames:
        at = order.get(data)
        if at is not None and (key or at == last + 1):
            last = at
            shown.append((when, captured[at]))
    return {"shown": shown, "sent": len(order), "pictures": pictures, "bytes": near.sent_bytes}


def exact(work: Coroutine[Any, Any, T], seed: int = 1) -> T:
    """What `work` gives on a virtual loop whose time RTCP's reports tell too. seed: of SSRCs, first numbers and the times of
    reports."""
    before = aiortc.clock.current_ntp_time
    begin = 3_990_000_000 << 32
    aiortc.clock.current_ntp_time = lambda: begin + int(asyncio.get_running_loop().time() * (1 << 32))
    random.seed(seed)
    try:
        return run_virtual(work)
    finally:
        aiortc.clock.current_ntp_time = before


def measure(
    ours: bool, written: dict[str, Any], seconds: float, codec: str = "VP8", fps: float = 30.0, seed: int = 1
) -> dict[str, Any]:
    """written: the network, as `impairment.read` takes it. Delays and ages in ms.

    age: how old the newest picture shown is, at each moment: between two of them it grows."""
    found = exact(_run(ours, written, seconds, codec, fps, seed), seed)
    shown = found["shown"]
    delays = [(when - captured) * 1000 for when, captured in shown]
    times = [0.0, *(when for when, _ in shown), max(seconds, shown[-1][0] if shown else 0)]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    ages: list[float] = []
    newest = k = 0
    best = 0.0
    for ms in range(1000, round(seconds * 1000), 5):
        while k < len(shown) and shown[k][0] * 1000 <= ms:
            best = max(best, shown[k][1])
            k += 1
            newest = 1
        ages.append(ms - best * 1000 if newest else float(ms))
    return {
        "frames": len(shown),
        "sent": found["sent"],
        "of": found["pictures"],
        "ms_p50": round(percentile(delays, 0.5), 1) if shown else None,
        "ms_p95": round(percentile(delays, 0.95), 1) if shown else None,
        "max_gap_s": round(max(gaps), 2),
        "frozen_s": round(sum(g for g in gaps if g > max(0.2, 2.5 / fps)), 2),
        "age_ms_p50": round(percentile(ages, 0.5)),
        "age_ms_p95": round(percentile(ages, 0.95)),
        "kbps": round(found["bytes"] * 8 / seconds / 1000),
    }
