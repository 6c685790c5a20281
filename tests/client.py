"""An aiortc client over loopback, for tests of the server: sends known media, keeps what comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import av
import numpy as np
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.mediastreams import AUDIO_PTIME, MediaStreamTrack, VideoStreamTrack
from penstock.pipeline.clock import MonotonicClock
from penstock.pipeline.compiler import load
from penstock.pipeline.graph import Plan
from penstock.pipeline.session import Session
from penstock.transport.access import OPEN, Access
from penstock.transport.ice import NO_ICE, Ice
from penstock.transport.peer import Peer
from penstock.transport.server import Server
from penstock.transport.sessions import Limits, Sessions

GRAPHS = Path(__file__).parent.parent / "deploy/graphs"


class Colour(VideoStreamTrack):
    """30 pictures a second of one colour."""

    def __init__(self, rgb: tuple[int, int, int] = (200, 40, 40), size: tuple[int, int] = (320, 240)) -> None:
        super().__init__()
        self.image = np.full((size[1], size[0], 3), rgb, np.uint8)

    async def recv(self) -> av.VideoFrame:
        pts, time_base = await self.next_timestamp()
        frame = av.VideoFrame.from_ndarray(self.image, format="rgb24")
        frame.pts, frame.time_base = pts, time_base
        return frame


class Tone(MediaStreamTrack):
    """440 Hz at 48 kHz mono in 20 ms frames."""

    kind = "audio"

    def __init__(self) -> None:
        super().__init__()
        self.at = 0
        self.start: float | None = None

    async def recv(self) -> av.AudioFrame:
        loop = asyncio.get_running_loop()
        if self.start is None:
            self.start = loop.time()
        await asyncio.sleep(self.start + self.at / 960 * AUDIO_PTIME - loop.time())
        t = (np.arange(960) + self.at) / 48_000
        pcm = (8000 * np.sin(2 * np.pi * 440 * t)).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(pcm[None], format="s16", layout="mono")
        frame.pts, frame.sample_rate, frame.time_base = self.at, 48_000, Fraction(1, 48_000)
        self.at += 960
        return frame


class Client:
    """One connection. `messages` are the data channel's, `tracks` what the server sends, by kind."""

    def __init__(self) -> None:
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        self.messages: list[dict[str, Any]] = []
        self.tracks: dict[str, Any] = {}
        self.session = ""
        self.answer = ""
        self.opened = asyncio.Event()
        self._news = asyncio.Condition()
        self._notes: set[asyncio.Task[None]] = set()
        self.channel = self.pc.createDataChannel("penstock")
        self.channel.on("open", self.opened.set)
        self.channel.on("message", self._message)
        self.pc.on("track", self._track)

    def _track(self, track: MediaStreamTrack) -> None:
        self.tracks[track.kind] = track

    def _message(self, raw: str) -> None:
        self.messages.append(json.loads(raw))
        task = asyncio.ensure_future(self._notify())
        self._notes.add(task)
        task.add_done_callback(self._notes.discard)

    async def _notify(self) -> None:
        async with self._news:
            self._news.notify_all()

    def say(self, message: object) -> None:
        self.channel.send(message if isinstance(message, (str, bytes)) else json.dumps(message))

    async def heard(
        self, kind: str, where: Callable[[dict[str, Any]], bool] = lambda m: True
    ) -> dict[str, Any]:
        """The first message of that type for which `where` holds, waited for."""

        def found() -> dict[str, Any] | None:
            return next((m for m in self.messages if m["type"] == kind and where(m)), None)

        async with self._news:
            await asyncio.wait_for(self._news.wait_for(lambda: found() is not None), 30)
        result = found()
        assert result is not None
        return result

    async def offer(self) -> str:
        await self.pc.setLocalDescription(await self.pc.createOffer())
        return self.pc.localDescription.sdp

    async def connect(self, url: str, graph: str = "loopback") -> None:
        body = {"sdp": await self.offer(), "type": "offer", "graph": graph}
        async with aiohttp.ClientSession() as http, http.post(f"{url}/session", json=body) as response:
            answer = await response.json()
            assert response.status == 200, answer
        self.session, self.answer = answer["session"], answer["sdp"]
        await self.pc.setRemoteDescription(RTCSessionDescription(self.answer, "answer"))
        await asyncio.wait_for(self.opened.wait(), 10)


@asynccontextmanager
async def serving(
    plans: Mapping[str, Plan] | None = None, access: Access = OPEN, ice: Ice = NO_ICE, **limits: int
) -> AsyncGenerator[Server]:
    """A server on a free port of 127.0.0.1 with the loopback graph."""
    graphs = plans or {"loopback": load(GRAPHS / "loopback.yaml")}
    sessions = Sessions(graphs, MonotonicClock(), Session, Limits(**limits), partial(Peer, ice=ice))
    server = Server(sessions, "127.0.0.1", 0, access, ice=ice)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def until(condition: Callable[[], bool], limit_s: float = 10) -> None:
    """Give the loop time until `condition` holds. Raises: TimeoutError."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110 - many kinds of condition, in tests only
            await asyncio.sleep(0.01)


async def within(awaitable: Awaitable[Any], limit_s: float = 10) -> Any:
    return await asyncio.wait_for(awaitable, limit_s)
