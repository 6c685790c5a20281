"""The same talk as `bitrate_link.py` in virtual time: exact and repeatable, whatever else the machine does.

Real encoders, decoders, senders, receivers, estimates, stills, budget and both ends of the talk about what matters; all clients go
through the same two links of `impairment`. Only sockets, ICE and DTLS are left out, and work takes no time, as on an idle machine.
Messages of `penstock-rt` are lost with their packet; those of `penstock` are sent again after 200 ms, as SCTP does at first.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiortc.mediastreams import MediaStreamError
from aiortc.rtcrtpparameters import (
    RTCRtcpParameters,
    RTCRtpDecodingParameters,
    RTCRtpHeaderExtensionParameters,
    RTCRtpReceiveParameters,
    RTCRtpRtxParameters,
    RTCRtpSendParameters,
)
from bitrate_link import (
    FPS,
    GRAPH,
    PATIENCE,
    QUESTION_EVERY,
    STILL_PATIENCE,
    SURE,
    Client,
    Eye,
    score_still,
)
from bitrate_scene import H, W, accuracy, luma
from penstock.pipeline import registry
from penstock.pipeline.clock import MS, SECOND, LoopClock
from penstock.pipeline.compiler import load
from penstock.pipeline.frame import VideoFrame
from penstock.pipeline.graph import Plan
from penstock.pipeline.units import VideoFormat
from penstock.transport import _compat, impairment, twcc
from penstock.transport.allocator import SHARE
from penstock.transport.bandwidth import Bandwidth
from penstock.transport.budgets import UplinkBudget
from penstock.transport.crop_track import Composer, PartFit
from penstock.transport.edge import CAPS_EVERY, START_BPS
from penstock.transport.edge_sender import EdgeSender
from penstock.transport.focus import Focus
from penstock.transport.ingress import DecodedHere, IngressTrack
from penstock.transport.receiver import RtpReceiver
from penstock.transport.sender import PacedSender
from transport_link import CODECS, EXTENSIONS, RTX, End, Inline, exact

AGAIN = 0.2  # s after which a lost message of the reliable channel is sent again
MESSAGE, CHUNK = 60, 1100  # bytes of SCTP, DTLS and UDP around a message; of one packet
JOIN = 1.0  # s between two clients' arrivals


class Wire:
    """A data channel's way: what is sent comes out at `hear`, through the link that media takes too."""

    readyState, bufferedAmount = "open", 0

    def __init__(self, link: impairment.Link, hear: Callable[[Any], object], reliable: bool) -> None:
        self.link, self.hear, self.reliable = link, hear, reliable

    def on(self, event: str, f: Any) -> None: ...

    def send(self, data: Any) -> None:
        loop = asyncio.get_running_loop()
        parts = [min(CHUNK, len(data) - k) + MESSAGE for k in range(0, len(data), CHUNK)]
        fates = [self.link.offer(loop.time() * 1000, size) for size in parts]
        if all(fates):
            loop.call_later(max(f[0] for f in fates) / 1000 - loop.time(), self.hear, data)
        elif self.reliable:
            loop.call_later(AGAIN, self.send, data)


class Pair:
    """One client and its session: the edge's sender, the wires, the receiver, `Focus`, and the eye that reads."""

    def __init__(self, client: Client, plan: Plan, links: tuple[Any, Any], plain: bool) -> None:
        self.client, self.plain = client, plain
        self.clock = LoopClock(asyncio.get_running_loop())
        up, down = links
        self.near, self.far = End(up), End(down)
        self.near.other, self.far.other = self.far, self.near
        up_wire = Wire(up, self._heard, True)
        self.sender = EdgeSender("h264", FPS, self.clock, up_wire.send)
        self.focus = Focus(client.name, plan, self.clock, self._say, lambda: False)
        self.down_json = Wire(down, lambda text: self.sender.fetch(json.loads(text)), True)
        self.up_rt = Wire(up, lambda data: self.focus.receive(data), False)
        self.paced: Any = PacedSender(self.sender.out, self.near)  # type: ignore[arg-type]
        uplink = self.paced.uplink
        uplink.bandwidth = Bandwidth(START_BPS)
        uplink.pacer.target_bps = START_BPS
        self.sender.on_rate = lambda rate: uplink.grant(rate.kbps * 1000)
        self.track = IngressTrack("video")
        self.track.decoded.transform = PartFit(VideoFormat(W, H, 30), "rgb24", self.track.counts)
        self.receiver: Any = RtpReceiver("video", self.far)  # type: ignore[arg-type]
        self.receiver._track = self.track
        self.receiver._set_rtcp_ssrc(1)
        self.receiver._encoded = DecodedHere(self.track.decoded, self.receiver._keyframe_wanted)
        self.expected = 0
        self.box: Any = None
        self.fetched: Any = (0.0, 0.0, 1.0, 1.0)

    def _say(self, kind: str, **fields: Any) -> None:
        self.down_json.send(json.dumps({"type": kind} | fields))

    def _heard(self, data: bytes) -> None:
        self.focus.receive(data)

    async def start(self) -> None:
        extensions = [*EXTENSIONS, RTCRtpHeaderExtensionParameters(id=5, uri=twcc.URI)]
        codecs = [CODECS["H264"], RTX]
        rtx = RTCRtpRtxParameters(ssrc=self.paced._rtx_ssrc)
        encodings = [RTCRtpDecodingParameters(ssrc=self.paced._ssrc, payloadType=97, rtx=rtx)]
        await self.receiver.receive(
            RTCRtpReceiveParameters(codecs=codecs, headerExtensions=extensions, encodings=encodings)
        )
        rtcp = RTCRtcpParameters(cname="x")
        await self.paced.send(
            RTCRtpSendParameters(codecs=codecs, headerExtensions=extensions, muxId="0", rtcp=rtcp)
        )
        if not self.plain:
            self.focus.opened(Wire(self.near.other.link, self.sender.receive, False))

    async def tell(self) -> None:
        while not self.plain:
            figures = self.paced.uplink.figures()
            path = int(figures["target_kbps"]) if figures["by"] != "start" else 0
            self.up_rt.send(self.sender.caps(path).pack())
            await self.clock.sleep(CAPS_EVERY)

    async def watch(self, thin: int) -> None:
        """What `webrtc.in` does, and the eye behind it: reads each picture, tells where the display was and how sure it is."""
        composer, last = Composer("rgb24", SECOND), -SECOND
        while True:
            try:
                part: Any = await self.track.recv()
            except MediaStreamError:
                return
            frame = composer(part, self.track.capture.at(part.at))
            if frame is None or frame.pts - last < thin * 0.9:
                continue
            last = frame.pts
            self._see(frame)

    def _see(self, frame: VideoFrame) -> None:
        client, now = self.client, self.clock.now()
        gray = luma(frame.image)
        shot = client.shots[client.number(gray, frame.pts)]
        score = accuracy(gray, shot)
        client.ages.append((now - frame.pts) / SECOND)
        client.scores.append(score)
        waits = (
            client.fetch and score < SURE and client.asked is not None and now - client.asked < STILL_PATIENCE
        )
        if client.asked is not None and frame.pts >= client.asked and not waits:
            self.answer(score, "video")
        if not self.plain:
            self.focus.told("answered", {"kind": "read", "confidence": score})
        if client.box:
            self.focus.told(
                "importance", {"boxes": [shot.box], "confidence": 0.9, "ttl_ms": 1500, "source": "boxes"}
            )
        self.box = shot.box

    def ask(self, shown: int) -> None:
        self.client.asked, self.expected = self.clock.now(), shown
        if self.client.fetch and self.box is not None:
            x, y, w, h = self.box
            self.fetched = (x - 0.03, y - 0.03, w + 0.06, h + 0.06)
            self.focus.told("fetch", {"box": list(self.fetched)})

    async def stills(self) -> None:
        while (frame := await self.focus.stills.get()) is not None:
            if self.client.asked is not None:
                at = self.expected + round((frame.pts - self.client.asked) * FPS / SECOND)
                self.answer(score_still(frame, self.fetched, self.client.shots, at), "still")

    def answer(self, score: float, source: str) -> None:
        if self.client.asked is not None:
            self.client.answers.append(((self.clock.now() - self.client.asked) / SECOND, score, source))
            self.client.asked = None

    async def feed(self, until: int) -> None:
        client, start, n, asked = self.client, self.clock.now(), 0, 1
        while (now := self.clock.now()) < until:
            client.captured.append(now)
            self.sender.picture(
                VideoFrame(pts=now, image=client.pictures[n % len(client.pictures)], format="i420")
            )
            if now - start > asked * QUESTION_EVERY and n % FPS == FPS // 2:
                if client.asked is not None:
                    client.answers.append((PATIENCE / SECOND, 0.0, "none"))
                asked += 1
                self.ask(n % len(client.pictures))
            n += 1
            await self.clock.sleep(max(0, start + n * SECOND // FPS - self.clock.now()))

    async def stop(self) -> None:
        self.focus.close()
        self.sender.close()
        self.track.end()
        await self.receiver.stop()
        stop = asyncio.ensure_future(self.paced.stop())
        await asyncio.wait([stop], timeout=2)


async def _run(
    clients: list[Client],
    network: dict[str, Any],
    seconds: float,
    *,
    plain: bool,
    uplink_bps: int,
    equal: bool,
    seed: int,
) -> None:
    loop: Any = asyncio.get_running_loop()
    loop.set_default_executor(Inline())
    _compat.install()
    registry.EXTRA["bench.eye"] = Eye
    links = impairment.read(network, seed)
    thin = 0 if plain else SECOND // 2
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "eye.yaml"
        path.write_text(GRAPH.format(name="eye", thin="" if plain else "|every(500ms)"))
        plan = load(path)
    pairs = [Pair(client, plan, links, plain) for client in clients]
    clock = LoopClock(loop)
    there: list[Pair] = []
    budget = UplinkBudget(lambda: [p.focus for p in there], uplink_bps)

    def divide(now: int) -> None:
        if equal:
            for pair in there:
                pair.focus.worth.kbps = round(uplink_bps * SHARE / len(pairs) / 1000)
        else:
            budget.step(now)

    async def share() -> None:
        while not plain:
            divide(clock.now())
            await clock.sleep(SECOND)

    until = round(seconds * SECOND)
    tasks = [asyncio.create_task(share())]
    for pair in pairs:
        pair.focus.joined = lambda: divide(clock.now())
        there.append(pair)
        await pair.start()
        tasks += [
            asyncio.create_task(work)
            for work in (pair.tell(), pair.watch(thin), pair.stills(), pair.feed(until))
        ]
        await clock.sleep(round(JOIN * SECOND))
    await clock.sleep(until + 500 * MS - clock.now())
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for pair in pairs:
        await pair.stop()


def run(
    clients: list[Client],
    network: dict[str, Any],
    seconds: float,
    *,
    plain: bool = False,
    uplink_bps: int = 0,
    equal: bool = False,
    seed: int = 0,
) -> None:
    """Fills in the clients' answers. As `bitrate_link.run`."""
    exact(_run(clients, network, seconds, plain=plain, uplink_bps=uplink_bps, equal=equal, seed=seed), seed)
