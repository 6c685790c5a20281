"""`penstock edge`: a camera without a browser, sending what a model on the other side has use for.

Works against a Penstock server only by what any client may use: signalling over HTTP, WebRTC, its data channels.
A connection that is lost is made again, with a pause that doubles up to half a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiortc import RTCBundlePolicy, RTCConfiguration, RTCPeerConnection, RTCRtpSender, RTCSessionDescription

from ..pipeline.clock import SECOND, Clock
from ..pipeline.stage import StageError
from ..pipeline.units import VideoFormat
from . import _compat
from .bandwidth import Bandwidth
from .edge_camera import Camera
from .edge_sender import EdgeSender, fetch_of
from .liveness import Liveness
from .remote import token_words, unreachable
from .uplink import uplink_of

log = logging.getLogger(__name__)

CONNECT = 15 * SECOND
CAPS_EVERY = SECOND
START_BPS = 300_000  # that the path is taken to carry at first: more would fill a narrow one for seconds
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # s
STEADY = 30 * SECOND  # a connection that held so long begins its pauses anew
CLOSE = 1.5  # s
CHANNEL, RT_CHANNEL = "penstock", "penstock-rt"
LOOKED = 2 * SECOND  # of pictures, before the first question
ANSWERED = 15 * SECOND  # then the next question is put all the same


@dataclass(frozen=True, slots=True)
class EdgeOptions:
    """url: the server. camera: device, file, URL or "synthetic". codec: "h264" or "vp8". most_bps: 0 for no limit.
    ask: questions sent one after the other, each when the one before is answered. send: "regions", the whole picture, finer
    where it matters; or "crop", what matters as a track of its own beside the whole picture small and seldom."""

    url: str
    camera: str = "synthetic"
    graph: str = ""
    token: str = ""
    codec: str = "h264"
    form: VideoFormat = field(default_factory=lambda: VideoFormat(640, 480, 30))
    most_bps: int = 0
    once: bool = False
    ask: tuple[str, ...] = ()
    send: str = "regions"


class Refused(Exception):
    """The server will not have us, and trying again does not help."""


@dataclass(slots=True)
class EdgeEvents:
    """Whom to tell: that we are connected (session id), that we are not (why, s until the next try), text that came,
    whether a crop is sent now (with `send="crop"`, at the first picture and when it changes, each 5 s at most)."""

    connected: Callable[[str], None] = lambda session: None
    lost: Callable[[str, float], None] = lambda why, pause: None
    message: Callable[[Mapping[str, Any]], None] = lambda message: None
    crops: Callable[[bool], None] = lambda cropping: None


@dataclass(slots=True)
class WayBack:
    """To the session on the server when its connection was lost (docs/protocol.md): the token, the last words seen."""

    token: str = ""
    after: int = 0


class EdgeSession:
    """One connection. Life: `open` → `run` until it is lost → `close`."""

    def __init__(self, options: EdgeOptions, clock: Clock, events: EdgeEvents, back: WayBack) -> None:
        self.back = back
        self.options = options
        self.clock = clock
        self.events = events
        self.session = ""
        self.lost = asyncio.Event()
        self.why = "the connection was closed"
        self.sender = EdgeSender(options.codec, options.form.fps or 30, clock, self._reply, options.most_bps)
        self.sender.on_crop = events.crops
        self._opened = asyncio.Event()
        self._answered = asyncio.Event()
        # else aiortc leaves the second section on a transport of its own when the far end bundles
        bundle = RTCBundlePolicy.MAX_COMPAT if options.send == "crop" else RTCBundlePolicy.BALANCED
        self.pc = RTCPeerConnection(RTCConfiguration(iceServers=[], bundlePolicy=bundle))
        self.pc.on("connectionstatechange", self._state)
        transceiver = self.pc.addTransceiver(self.sender.out, direction="sendonly")
        uplink = uplink_of(transceiver.sender.transport)
        uplink.bandwidth = Bandwidth(START_BPS)
        uplink.pacer.target_bps = START_BPS
        codecs = RTCRtpSender.getCapabilities("video").codecs
        name = f"video/{options.codec}".lower()
        preferred = [c for c in codecs if c.mimeType.lower() in (name, "video/rtx")]
        preferred.sort(key=lambda c: c.mimeType.lower() != name)
        transceiver.setCodecPreferences(preferred)
        self._crop: Any = None
        if options.send == "crop":
            self._crop = self.pc.addTransceiver(self.sender.crop_out, direction="sendonly")
            self._crop.setCodecPreferences(preferred)
        self.channel: Any = self.pc.createDataChannel(CHANNEL)
        self.channel.on("open", self._opened.set)
        self.channel.on("message", self._message)
        self.channel.on("close", self._closed)
        self.rt: Any = self.pc.createDataChannel(RT_CHANNEL, ordered=False, maxRetransmits=0)
        self.rt.on("message", self.sender.receive)
        self.rt.on("open", self._tell)  # at once: the first RATE waits for it, and the first picture for that
        self.sender.on_rate = lambda rate: uplink.grant(rate.kbps * 1000)

    async def open(self, http: aiohttp.ClientSession) -> None:
        """Raises: Refused; StageError and TimeoutError where trying again may help."""
        async with asyncio.timeout(CONNECT / SECOND):
            await self.pc.setLocalDescription(await self.pc.createOffer())
            body: dict[str, Any] = {"sdp": self.pc.localDescription.sdp, "type": "offer"}
            if self.back.token:
                body |= {"resume": self.back.token, "after": self.back.after}
            if self.options.graph:
                body["graph"] = self.options.graph
            answer = await self._signal(http, body)
            self.session = str(answer.get("session", ""))
            token = str(answer.get("resume", ""))
            if token != self.back.token:
                self.back.token, self.back.after = token, 0
            await self.pc.setRemoteDescription(RTCSessionDescription(str(answer.get("sdp", "")), "answer"))
            if self._crop is not None:
                self.sender.crops = self._crop.currentDirection == "sendonly"
                if not self.sender.crops:
                    log.warning("%s takes no crop beside the picture: regions are sent", self.options.url)
            await self._opened.wait()

    async def _signal(self, http: aiohttp.ClientSession, body: Mapping[str, Any]) -> dict[str, Any]:
        url = f"{self.options.url.rstrip('/')}/session"
        try:
            async with http.post(url, json=body, headers=self._headers()) as response:
                answer = await response.json(content_type=None)
                if response.status == 200 and isinstance(answer, dict):
                    return answer
                words = answer.get("error") if isinstance(answer, dict) else None
                if response.status == 410:  # it has ended meanwhile: a new one next time
                    self.back.token = ""
                told = str(words or f"{response.status} {response.reason}")
                if response.status == 401:
                    raise Refused(f"{self.options.url}: {token_words(bool(self.options.token))}")
                if response.status in (400, 403, 404, 413, 415):
                    raise Refused(f"{self.options.url} refused: {told}")
                raise StageError(told)
        except ValueError as e:
            raise StageError(f"{self.options.url} is no Penstock server: its answer is not JSON") from e
        except aiohttp.ClientError as e:
            raise StageError(f"{self.options.url} cannot be reached: {unreachable(e)}") from e

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.options.token}"} if self.options.token else {}

    async def run(self) -> str:
        """Until the connection is lost. Returns why."""
        liveness = Liveness(self.clock.now())
        while not self.lost.is_set():
            if liveness.count(_compat.packets_received(self.pc), self.clock.now()):
                if await _compat.consents(self.pc):
                    liveness.answered(self.clock.now())
                elif liveness.is_gone(self.clock.now()):  # ICE itself takes half a minute to see it
                    self.why = "the server went silent"
                    self.lost.set()
                    break
            self._tell()
            try:
                async with asyncio.timeout(CAPS_EVERY / SECOND):
                    await self.lost.wait()
            except TimeoutError:
                continue
        return self.why

    def _tell(self) -> None:
        if self.rt.readyState == "open":
            self.rt.send(self.sender.caps(self._path_kbps()).pack())

    async def close(self, http: aiohttp.ClientSession | None = None) -> None:
        """Bounded; also tells the server, but when the connection was lost: the session may go on."""
        self.sender.close()
        lost = self.lost.is_set()
        try:
            async with asyncio.timeout(CLOSE):
                await self.pc.close()
                if http is not None and self.session and not lost:
                    url = f"{self.options.url.rstrip('/')}/session/{self.session}"
                    async with http.delete(url, headers=self._headers()):
                        pass
        except (TimeoutError, aiohttp.ClientError):
            log.debug("closing was not clean")

    async def ask(self, questions: list[str]) -> None:
        """One after the other, each when the one before was answered; takes them off the list."""
        await self.clock.sleep(LOOKED)
        while questions and not self.lost.is_set():
            self._answered.clear()
            self.say("chat", text=questions.pop(0))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ANSWERED / SECOND):
                    await self._answered.wait()

    def _path_kbps(self) -> int:
        sending = _compat.sending(self.pc)
        return int(sending.get("target_kbps", 0)) if sending.get("by") != "start" else 0

    def say(self, type_: str, **fields: object) -> None:
        """One JSON message on the reliable channel."""
        if self.channel.readyState == "open":
            self.channel.send(json.dumps({"v": 1, "type": type_} | fields))

    def _reply(self, data: bytes) -> None:
        if self.channel.readyState == "open":
            self.channel.send(data)

    def _message(self, raw: str | bytes) -> None:
        if isinstance(raw, bytes):
            return
        if (fetch := fetch_of(raw)) is not None:
            self.sender.fetch(fetch)
            return
        try:
            message = json.loads(raw)
        except (ValueError, RecursionError):
            return
        if isinstance(message, dict):
            if isinstance(number := message.get("n"), int):
                self.back.after = max(self.back.after, number)
            if message.get("type") == "error" and message.get("about") == "session":
                self.why = f"the server ended the session: {message.get('message')}"
                self.back.token = ""
            if (
                message.get("type") == "text"
                and message.get("kind") != "partial"
                and message.get("end", True)
            ):
                self._answered.set()
            self.events.message(message)

    def _state(self) -> None:
        if self.pc.connectionState in ("failed", "closed"):
            self._closed()

    def _closed(self) -> None:
        self.lost.set()


class Edge:
    """Connects and connects again until cancelled, or until the camera's file has ended."""

    def __init__(self, options: EdgeOptions, clock: Clock, events: EdgeEvents | None = None) -> None:
        parts = urlsplit(options.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise StageError(f"--to {options.url!r} is not a server's URL; write http://127.0.0.1:8080")
        if options.codec not in ("h264", "vp8"):
            raise StageError(f"--codec {options.codec!r}; h264 and vp8 are known")
        if options.send not in ("regions", "crop"):
            raise StageError(f"--send {options.send!r}; regions and crop are known")
        self.options = options
        self.clock = clock
        self.events = events or EdgeEvents()
        self.session: EdgeSession | None = None

    async def run(self) -> None:
        """Raises: StageError when the camera cannot be opened or the server refuses for good."""
        _compat.install()
        camera = Camera(
            self.options.camera, self.options.form, self.clock, self._picture, once=self.options.once
        )
        await camera.start()
        ended = asyncio.create_task(camera.ended.wait(), name="edge/camera")
        lasting = asyncio.create_task(self._connections(), name="edge/connections")
        try:
            await asyncio.wait([ended, lasting], return_when=asyncio.FIRST_COMPLETED)
            if lasting.done():
                await lasting
            if camera.failure:
                raise StageError(camera.failure)
        finally:
            ended.cancel()
            lasting.cancel()
            await asyncio.gather(ended, lasting, return_exceptions=True)
            await camera.close()

    def _picture(self, frame: Any) -> None:
        if self.session is not None:
            self.session.sender.picture(frame)

    async def _connections(self) -> None:
        pause = FIRST_PAUSE
        questions = list(self.options.ask)
        back = WayBack()
        async with aiohttp.ClientSession() as http:
            while True:
                began = self.clock.now()
                session = EdgeSession(self.options, self.clock, self.events, back)
                try:
                    self.session = session
                    await session.open(http)
                    began = self.clock.now()
                    self.events.connected(session.session)
                    asking = asyncio.create_task(session.ask(questions), name="edge/ask")
                    try:
                        why = await session.run()
                    finally:
                        asking.cancel()
                except Refused as e:
                    raise StageError(str(e)) from e
                except StageError as e:
                    why = str(e)
                except TimeoutError:
                    why = f"{self.options.url}: no connection within {CONNECT // SECOND} s"
                finally:
                    self.session = None
                    await session.close(http)
                if self.clock.now() - began > STEADY:
                    pause = FIRST_PAUSE
                wait = pause * random.uniform(0.8, 1.2)  # a fleet must not come back all at once
                self.events.lost(why, wait)
                await self.clock.sleep(round(wait * SECOND))
                pause = min(LONGEST_PAUSE, 2 * pause)
