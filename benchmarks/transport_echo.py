"""One run of an echo, for `benchmarks/transport.py`: a client and a relay in this process, the server in another.

    python benchmarks/transport_echo.py {aiortc,penstock} SCENARIO [SEED]

aiortc: both ends as aiortc has them. penstock: the server as `transport_server.py` has it, and the client receives by
Penstock's receiver. The client is the same otherwise: VP8 640x480 at 30/s, each picture with its number in 16 blocks; Opus with a burst of 20 ms
every 100 ms, of eight pitches in turn, which tell one from the next within 800 ms.

Prints one JSON object. A round trip is from the moment that a frame is handed to the client's sender to the moment
that its echo leaves the client's track, codecs included.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
import time
from fractions import Fraction
from typing import Any

import av
import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import MediaStreamTrack
from numpy.typing import NDArray
from penstock.pipeline.clock import MonotonicClock
from penstock.transport import impairment
from penstock.transport.relay import Relay
from transport_server import started, use_loopback

FPS = 30
WARM_S = 2.0  # not measured: encoders and estimates settle
BLOCK = 40
PITCHES_HZ = np.array([600, 900, 1300, 1800, 2400, 3100, 3900, 4800])
BURSTS_EVERY = 5  # frames of 20 ms
SAMPLES = 960
FROZEN_S = 0.2  # a longer gap between two pictures counts as frozen

_LOST = [{"at": "4s", "up": {"loss": 1.0}}, {"at": "4.02s", "up": {"loss": 0.0}}]  # of each about one packet
_STALL = [{"at": "6s", "up": {"hold": True}}, {"at": "6.5s", "up": {"hold": False}}]
_BLACKOUT = [
    {"at": at, "up": {"blackout": dark}, "down": {"blackout": dark}}
    for at, dark in (("4s", True), ("5.5s", False))
]
# seconds, network (script times count from the answer), media: "av", "audio", or "ingest": nothing comes back
SCENARIOS: dict[str, tuple[float, dict[str, Any], str]] = {
    "clean": (8, {}, "av"),
    "audio": (6, {}, "audio"),
    "ingest": (6, {}, "ingest"),
    "hiccup": (10, {"script": _LOST + _STALL}, "av"),
    "lossy": (14, {way: {"loss": "5%", "delay": "25ms"} for way in ("up", "down")}, "av"),
    "blackout": (9, {"script": _BLACKOUT}, "av"),
    "capped": (15, {"down": {"rate": "180k", "queue": "300ms"}}, "av"),
    "drop": (
        15,
        {"down": {"rate": "2M", "queue": "300ms"}, "script": [{"at": "8s", "down": {"rate": "350k"}}]},
        "av",
    ),
}


class Stamped(MediaStreamTrack):
    """A moving picture that carries its number. sent: number → when."""

    kind = "video"

    def __init__(self) -> None:
        super().__init__()
        self.sent: dict[int, float] = {}
        self._count = 0
        self._start = self._next = 0.0
        y, x = np.mgrid[0:480, 0:640]
        self._scene = (96 + 50 * np.sin(x / 37) + 40 * np.sin(y / 23 + x / 90)).astype(np.uint8)

    async def recv(self) -> av.VideoFrame:
        # as a camera does: a picture that is not fetched in time is skipped, its timestamp is the true one
        self._next = max(self._next + 1 / FPS, time.perf_counter())
        await asyncio.sleep(self._next - time.perf_counter())
        self._start = self._start or self._next
        image = np.full((720, 640), 128, np.uint8)
        image[:480] = np.roll(self._scene, 2 * self._count, axis=1)
        for k in range(16):
            image[:BLOCK, k * BLOCK : (k + 1) * BLOCK] = 235 if self._count >> k & 1 else 16
        frame = av.VideoFrame.from_ndarray(image, format="yuv420p")
        frame.pts, frame.time_base = round((self._next - self._start) * 90_000), Fraction(1, 90_000)
        self.sent[self._count] = time.perf_counter()
        self._count += 1
        return frame


class Bursts(MediaStreamTrack):
    """sent: (when, pitch) of each burst."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[float, int]] = []
        self._count = 0
        self._start: float | None = None

    async def recv(self) -> av.AudioFrame:
        now = time.perf_counter()
        self._start = self._start or now
        await asyncio.sleep(self._start + self._count * 0.02 - now)
        pcm = np.zeros((1, SAMPLES), np.int16)
        if self._count % BURSTS_EVERY == 0:
            pitch = self._count // BURSTS_EVERY % len(PITCHES_HZ)
            pcm[0] = 12_000 * np.sin(2 * np.pi * PITCHES_HZ[pitch] * np.arange(SAMPLES) / 48_000)
            self.sent.append((time.perf_counter(), pitch))
        frame = av.AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
        frame.pts, frame.sample_rate, frame.time_base = self._count * SAMPLES, 48_000, Fraction(1, 48_000)
        self._count += 1
        return frame


def number_of(frame: av.VideoFrame) -> int:
    """What is in the blocks; the picture may have been scaled."""
    luma: NDArray[np.uint8] = frame.to_ndarray(format="gray")
    block = luma.shape[1] // 16
    inner = luma[block // 4 : block * 3 // 4]
    return sum(
        1 << k
        for k in range(16)
        if inner[:, k * block + block // 4 : k * block + block * 3 // 4].mean() > 128
    )


class Heard:
    """Finds bursts in a stream of sound and matches them to the latest that was sent at that pitch."""

    def __init__(self, bursts: Bursts) -> None:
        self.bursts = bursts
        self.times: list[tuple[float, float]] = []  # (when sent, round trip), s
        self._matched: set[int] = set()
        self._loud = False

    def take(self, pcm: NDArray[np.int16], now: float) -> None:
        """pcm: (T,)"""
        loud = float(np.sqrt(np.mean(pcm.astype(np.float64) ** 2))) > 2500
        if loud and not self._loud:
            spectrum = np.abs(np.fft.rfft(pcm * np.hanning(len(pcm))))
            pitch = int(np.abs(PITCHES_HZ - spectrum.argmax() * 48_000 / len(pcm)).argmin())
            for k in range(len(self.bursts.sent) - 1, max(-1, len(self.bursts.sent) - 20), -1):
                at, sent = self.bursts.sent[k]
                if sent == pitch and k not in self._matched:
                    self._matched.add(k)
                    self.times.append((at, now - at))
                    break
        self._loud = loud


async def run(variant: str, scenario: str, seed: int) -> dict[str, Any]:
    seconds, written, media = SCENARIOS[scenario]
    use_loopback()
    if variant == "penstock":
        importlib.import_module("penstock.transport.peer")
    up, down = impairment.read(written, seed)
    relay = await Relay(MonotonicClock(), up, down).start()
    client = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    stamped, bursts = Stamped(), Bursts()
    heard = Heard(bursts)
    shown: list[tuple[float, int]] = []  # (when, number)
    readers: list[asyncio.Task[None]] = []

    async def read(track: Any) -> None:
        while True:
            frame = await track.recv()
            now = time.perf_counter()
            if track.kind == "video":
                shown.append((now, number_of(frame)))
            else:
                heard.take(frame.to_ndarray().reshape(-1, frame.layout.nb_channels)[:, 0], now)

    client.on("track", lambda track: readers.append(asyncio.create_task(read(track))))
    direction = "sendonly" if media == "ingest" else "sendrecv"
    client.addTransceiver(bursts, direction)
    if media != "audio":
        client.addTransceiver(stamped, direction)
    await client.setLocalDescription(await client.createOffer())
    with started(variant) as server:
        offer = relay.to_server(client.localDescription.sdp)
        answer = (await asyncio.to_thread(server.ask, offer=offer))["answer"]
        relay.restart_script()
        start = time.perf_counter()
        await client.setRemoteDescription(RTCSessionDescription(relay.to_client(answer), "answer"))
        await asyncio.sleep(min(WARM_S, seconds / 2))
        cpu, begin = server.ask(cpu=True)["cpu_s"], time.perf_counter()
        await asyncio.sleep(start + seconds - begin)
        busy = (server.ask(cpu=True)["cpu_s"] - cpu) / (time.perf_counter() - begin)
        for task in readers:
            task.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        stats = server.ask(close=True)["stats"]
        await client.close()
    relay.close()
    return figures(start, seconds, stamped, shown, heard) | {
        "core_pct": round(100 * busy, 1),  # of the server's process alone
        "relay_lost": up.counts["lost"] + down.counts["lost"] + up.counts["queue"] + down.counts["queue"],
        "server": stats,
    }


def figures(
    start: float, seconds: float, stamped: Stamped, shown: list[tuple[float, int]], heard: Heard
) -> dict[str, Any]:
    end = start + seconds
    begin = start + WARM_S
    trips = [
        (stamped.sent[n], now - stamped.sent[n])
        for now, n in shown
        if n in stamped.sent and stamped.sent[n] > begin
    ]
    seen = [t for t, _ in shown if t > begin]
    gaps = [b - a for a, b in zip([begin, *seen], [*seen, end], strict=True)]
    audio = [(at, trip) for at, trip in heard.times if at > begin]
    result: dict[str, Any] = {
        "frames": len(shown),
        "sent": len(stamped.sent),
        "max_gap_s": round(max(gaps), 2),
        "frozen_s": round(sum(g for g in gaps if g > FROZEN_S), 2),
    }
    for name, found in (("video", trips), ("audio", audio)):
        values = sorted(trip * 1000 for _, trip in found)
        for q in (50, 95, 99):
            at = min(len(values) - 1, len(values) * q // 100)
            result[f"{name}_rtt_ms_p{q}"] = round(values[at], 1) if values else None
    for name, found in (("video", trips), ("audio", audio)):
        result[f"{name}_before_ms"] = middle(found, start + 2, start + 3.9)
        result[f"{name}_after_loss_ms"] = middle(found, start + 5, start + 5.9)
        result[f"{name}_after_stall_ms"] = middle(found, start + 7.5, end)
    return result


def middle(found: list[tuple[float, float]], begin: float, end: float) -> float | None:
    """Median round trip of what was sent in that time, ms."""
    values = sorted(trip * 1000 for at, trip in found if begin <= at < end)
    return round(values[len(values) // 2], 1) if values else None


if __name__ == "__main__":
    print(
        json.dumps(asyncio.run(run(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 1)))
    )
