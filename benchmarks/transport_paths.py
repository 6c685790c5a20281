"""The receiving half alone, in virtual time: the same packets through the same bad network, into aiortc's receiver and into
ours. Exact and repeatable: no sockets, no codecs, no load of the machine in the figures.

A scripted sender makes 30 pictures a second of 3 packets (a keyframe of 12 at the start and when asked), and sound every
20 ms. It answers retransmission and keyframe requests after the way back. What is measured is how long after its capture a
frame is handed to the decoder.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from aiortc.rtcrtpparameters import RTCRtpCodecParameters, RTCRtpReceiveParameters
from aiortc.rtcrtpreceiver import RemoteStreamTrack, RTCRtpReceiver
from aiortc.rtp import RtcpPacket, RtcpPsfbPacket, RtcpRtpfbPacket, RtpPacket
from penstock.pipeline.virtual_loop import run_virtual
from penstock.transport import impairment
from penstock.transport.ingress import IngressTrack
from penstock.transport.receiver import RtpReceiver

VP8 = RTCRtpCodecParameters(mimeType="video/VP8", clockRate=90_000, payloadType=97)
OPUS = RTCRtpCodecParameters(mimeType="audio/opus", clockRate=48_000, channels=2, payloadType=96)
KEY = b"\x10\x10\x02\x00\x9d\x01\x2a\x10\x00\x10\x00" + bytes(1100)
INTER = b"\x10\x11\x02\x00" + bytes(1100)
SOUND = b"\xfc\xff\xfe"


class Wire:
    """The transport of a receiver: its RTCP goes to the sender, `back_s` later."""

    state = "connected"
    _stats_id = "wire"

    def __init__(self, back_s: float, deliver: Callable[[Any], None]) -> None:
        self.back_s = back_s
        self.deliver = deliver

    def _register_rtp_receiver(self, receiver: Any, parameters: Any) -> None: ...
    def _unregister_rtp_receiver(self, receiver: Any) -> None: ...

    async def _send_rtp(self, data: bytes) -> None:
        for packet in RtcpPacket.parse(data):
            asyncio.get_running_loop().call_later(self.back_s, self.deliver, packet)


class Taken:
    """Stands where the decoder's queue is: (when, timestamp) of each frame."""

    def __init__(self) -> None:
        self.frames: list[tuple[float, int]] = []

    def put(self, item: Any) -> None:
        if item is not None and not getattr(item[1], "lost", False):
            self.frames.append((asyncio.get_running_loop().time(), item[1].timestamp))

    def get(self) -> None:
        return None

    def qsize(self) -> int:
        return 0


async def _run(
    ours: bool, kind: str, written: dict[str, Any], seconds: float, back_s: float, seed: int
) -> list[Any]:
    loop = asyncio.get_running_loop()
    link, _ = impairment.read(written, seed)
    codec = VP8 if kind == "video" else OPUS
    history: dict[int, RtpPacket] = {}
    wants_key = True
    taken = Taken()
    tasks: set[asyncio.Task[None]] = set()

    def send(packet: RtpPacket) -> None:
        now_ms = loop.time() * 1000
        for at_ms in link.offer(now_ms, len(packet.payload) + 12):
            loop.call_later((at_ms - now_ms) / 1000, receive, packet)

    def receive(packet: RtpPacket) -> None:
        task = loop.create_task(receiver._handle_rtp_packet(packet, round(loop.time() * 1000)))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def heard(rtcp: Any) -> None:
        nonlocal wants_key
        if isinstance(rtcp, RtcpRtpfbPacket) and rtcp.fmt == 1:
            for number in rtcp.lost:
                if (packet := history.get(number)) is not None:
                    send(packet)
        elif isinstance(rtcp, RtcpPsfbPacket) and rtcp.fmt == 1:
            wants_key = True

    receiver: Any = (RtpReceiver if ours else RTCRtpReceiver)(kind, Wire(back_s, heard))  # type: ignore[arg-type]
    receiver._track = IngressTrack(kind) if ours else RemoteStreamTrack(kind)
    receiver._set_rtcp_ssrc(1)
    setattr(receiver, "_encoded" if ours else "_RTCRtpReceiver__decoder_queue", taken)
    await receiver.receive(RTCRtpReceiveParameters(codecs=[codec]))
    sequence = 0
    period, ticks = (1 / 30, 3000) if kind == "video" else (0.02, 960)
    start = loop.time()
    for k in range(round(seconds / period)):
        await asyncio.sleep(start + k * period - loop.time())
        if kind == "audio":
            payloads = [SOUND]
        else:
            payloads = [KEY] + [INTER] * 11 if wants_key else [INTER] * 3
            wants_key = False
        for j, payload in enumerate(payloads):
            packet = RtpPacket(
                codec.payloadType or 0, int(j == len(payloads) - 1), sequence & 0xFFFF, k * ticks, 7, payload
            )
            history[sequence & 0xFFFF] = packet
            history.pop(sequence - 128 & 0xFFFF, None)  # as much as aiortc's sender keeps
            sequence += 1
            send(packet)
    await asyncio.sleep(1)
    await receiver.stop()
    return [(at - start, at - start - timestamp / ticks * period) for at, timestamp in taken.frames]


def measure(
    ours: bool, kind: str, written: dict[str, Any], seconds: float, back_s: float = 0.0, seed: int = 1
) -> list[Any]:
    """[(when, delay)] in s of each frame, in the order of leaving."""
    return run_virtual(_run(ours, kind, written, seconds, back_s, seed))
