"""What does one more viewer of the same output cost the server? Picture 640x480 at 30/s in VP8, and sound, from one source.

    python benchmarks/transport_fanout.py {aiortc,own,shared}     # the server alone, as `measure` starts it

shared: Penstock's broadcast, one encode for each rung. own: Penstock's senders, an encoder for each viewer. aiortc: its MediaRelay and
its senders, which encode for each.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import sys
import time
from fractions import Fraction
from typing import Any

import av
import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.contrib.media import MediaRelay
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from penstock.pipeline.clock import MS, SECOND, MonotonicClock
from penstock.pipeline.frame import AudioFrame, VideoFrame
from transport_echo import Bursts
from transport_server import cpu_s, started, use_loopback

FPS = 30
VIEWERS = 4
SETTLE_S = 3.0  # until estimates have risen and all are on one rung
MEASURED_S = 3.0


def scenes() -> list[Any]:
    """A texture that drifts, i420."""
    y, x = np.mgrid[0:480, 0:640]
    base = (96 + 50 * np.sin(x / 37) + 40 * np.sin(y / 23 + x / 90)).astype(np.uint8)
    grain = np.random.default_rng(0).integers(0, 24, (480, 640), np.uint8)
    found: list[Any] = []
    for k in range(30):
        image = np.full((720, 640), 128, np.uint8)
        image[:480] = np.roll(base, 4 * k, axis=1) + grain
        found.append(image)
    return found


class Camera(MediaStreamTrack):
    """For aiortc."""

    kind = "video"

    def __init__(self) -> None:
        super().__init__()
        self.scenes = scenes()
        self.count = 0
        self.start = time.perf_counter()

    async def recv(self) -> av.VideoFrame:
        await asyncio.sleep(self.start + self.count / FPS - time.perf_counter())
        frame = av.VideoFrame.from_ndarray(self.scenes[self.count % 30], format="yuv420p")
        frame.pts, frame.time_base = self.count * 3000, Fraction(1, 90_000)
        self.count += 1
        return frame


class Relayed:
    """aiortc's own way."""

    def __init__(self) -> None:
        self.relay, self.tracks = MediaRelay(), (Camera(), Bursts())
        self.pcs: list[RTCPeerConnection] = []

    async def answer(self, offer: str) -> str:
        pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.pcs.append(pc)
        for track in self.tracks:
            pc.addTrack(self.relay.subscribe(track))
        await pc.setRemoteDescription(RTCSessionDescription(offer, "offer"))
        await pc.setLocalDescription(await pc.createAnswer())
        return pc.localDescription.sdp

    def stats(self) -> dict[str, Any]:
        return {}


class Cast:
    """Penstock's: one source, to a broadcast or to each peer's own encoders."""

    def __init__(self, shared: bool) -> None:
        self.peer = importlib.import_module("penstock.transport.peer").Peer
        self.clock = MonotonicClock()
        self.cast = importlib.import_module("penstock.transport.broadcast").Broadcast(self.clock)
        self.shared = shared
        self.pcs: list[Any] = []
        self.feeds = [asyncio.create_task(self._pictures()), asyncio.create_task(self._sound())]

    async def answer(self, offer: str) -> str:
        peer = self.peer(f"v{len(self.pcs)}", self.clock, receive=frozenset())
        peer.broadcast = self.cast if self.shared else None
        answer = await peer.accept(offer)
        if peer.audio_out is not None:
            peer.audio_out.live = True
        self.pcs.append(peer)
        return answer

    async def _pictures(self) -> None:
        pictures, start, k = scenes(), self.clock.now(), 0
        while True:
            await self.clock.sleep(start + k * SECOND // FPS - self.clock.now())
            frame = VideoFrame(pts=self.clock.now(), image=pictures[k % 30], format="i420")
            self.cast.show(frame)
            for peer in self.pcs:
                if peer.video_out is not None:
                    peer.video_out.show(frame)
            k += 1

    async def _sound(self) -> None:
        start, k = self.clock.now(), 0
        tone = (8000 * np.sin(np.arange(960) * 0.1)).astype(np.int16)[:, None]
        while True:
            await self.clock.sleep(start + k * 20 * MS - self.clock.now())
            self.cast.hear(tone)
            for peer in self.pcs:
                if peer.audio_out is not None:
                    await peer.audio_out.write(AudioFrame(pts=self.clock.now(), pcm=tone, rate_hz=48_000))
            k += 1

    def stats(self) -> dict[str, Any]:
        return {"rungs": self.cast.stats(), "sending": [peer.sending() for peer in self.pcs]}


async def _serve(variant: str) -> None:
    use_loopback()
    source: Any = Relayed() if variant == "aiortc" else Cast(variant == "shared")
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        asked = json.loads(line)
        if "offer" in asked:
            print(json.dumps({"answer": await source.answer(asked["offer"])}), flush=True)
        elif "cpu" in asked:
            print(json.dumps({"cpu_s": cpu_s()}), flush=True)
        else:
            print(json.dumps({"stats": source.stats()}), flush=True)
            break
    for task in getattr(source, "feeds", ()):
        task.cancel()
    await asyncio.gather(*(pc.close() for pc in source.pcs), return_exceptions=True)


async def _client(server: Any, counts: list[int]) -> RTCPeerConnection:
    pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    at = len(counts)
    counts.append(0)

    async def read(track: Any) -> None:
        with contextlib.suppress(MediaStreamError):
            while True:
                await track.recv()
                counts[at] += track.kind == "video"

    tasks: list[Any] = []
    pc.on("track", lambda track: tasks.append(asyncio.ensure_future(read(track))))
    for kind in ("audio", "video"):
        pc.addTransceiver(kind, direction="recvonly")
    await pc.setLocalDescription(await pc.createOffer())
    answer = (await asyncio.to_thread(server.ask, offer=pc.localDescription.sdp))["answer"]
    await pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    return pc


async def _measure(variant: str) -> dict[str, Any]:
    use_loopback()
    found: dict[str, Any] = {"viewers": VIEWERS}
    counts: list[int] = []
    with started(variant, __file__) as server:
        pcs: list[RTCPeerConnection] = []
        for wanted, name in ((1, "one"), (VIEWERS, "all")):
            while len(pcs) < wanted:
                pcs.append(await _client(server, counts))
            await asyncio.sleep(SETTLE_S)
            cpu, begin, before = server.ask(cpu=True)["cpu_s"], time.perf_counter(), list(counts)
            await asyncio.sleep(MEASURED_S)
            took = time.perf_counter() - begin
            found[f"{name}_core_pct"] = round(100 * (server.ask(cpu=True)["cpu_s"] - cpu) / took, 1)
            found["fps"] = [round((c - b) / took, 1) for c, b in zip(counts, before, strict=True)]
        found["stats"] = server.ask(close=True)["stats"]
        for pc in pcs:
            await pc.close()
    more = (found["all_core_pct"] - found["one_core_pct"]) / (VIEWERS - 1)
    return found | {
        "more_core_pct": round(more, 1),
        "load_per_cpu": round(os.getloadavg()[0] / (os.cpu_count() or 1), 1),
    }


def measure(variant: str) -> dict[str, Any]:
    """CPU of the server with one viewer and with all, in percent of a core, and what each further one adds."""
    return asyncio.run(_measure(variant))


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
