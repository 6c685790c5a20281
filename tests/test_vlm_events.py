"""What a watching stage tells by itself, on its way out: to the page's data channel and to topics of a real Mosquitto."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from aiortc.mediastreams import VideoStreamTrack
from broker import RealBroker
from client import Client, serving, until
from graphs import compile_test
from penstock.transport.mqtt import parse_broker
from penstock.transport.mqtt_bridge import MqttBridge
from penstock.transport.server import Server

pytestmark = pytest.mark.net

LIVE = """
penstock: 1
graph: live
nodes:
  cam:   {use: webrtc.in, video: 320x240@30}
  watch: {use: vlm.stream, in: {video: 'cam.video|every(250ms)', ask: cam.text}}
  out:   {use: webrtc.out, in: {text: watch.answer}}
events: {mqtt: env:PENSTOCK_MQTT, emit: [watch.spoke_up, watch.answered, watch.motion_started]}
"""
HEADLESS = """
penstock: 1
graph: headless
nodes:
  cam:   {use: synthetic.in}
  watch: {use: vlm.stream, in: {video: 'cam.video|every(250ms)'}, tell: [something moves]}
events: {mqtt: env:PENSTOCK_MQTT, emit: [watch.spoke_up]}
"""
WORLD = """
penstock: 1
graph: world
nodes:
  mic:   {use: webrtc.in, audio: 16k/mono/20ms}
  world: {use: synthetic.world, every: 100ms, rate: 0.4, seed: 3}
  watch: {use: vlm.toy, in: {video: world.video, ask: mic.text}, fps: 10, narrate: false}
  out:   {use: webrtc.out, in: {text: watch.answer}}
events: {mqtt: env:PENSTOCK_MQTT, emit: [watch.spoke_up, watch.left]}
"""


class Still(VideoStreamTrack):
    """A camera with a sensor's noise, in whose picture a square walks when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.walking = False
        self._x, self._rng = 40, np.random.default_rng(0)

    async def recv(self) -> av.VideoFrame:
        pts, base = await self.next_timestamp()
        image = np.full((240, 320, 3), 90.0)
        self._x += 4 if self.walking else 0
        image[80:140, self._x % 260 : self._x % 260 + 60] = 220
        noisy = np.clip(image + self._rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8)
        frame = av.VideoFrame.from_ndarray(noisy, format="rgb24")
        frame.pts, frame.time_base = pts, Fraction(base)
        return frame


class Topics:
    """All that a subscriber of the broker has heard."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any]] = []

    def of(self, end: str) -> list[Any]:
        return [body for topic, body in self.heard if topic.endswith(end)]


@asynccontextmanager
async def with_broker(folder: Path, graph: str, text: str) -> AsyncGenerator[tuple[Server, Any, Topics]]:
    """A server of one graph, a Mosquitto that it tells, a subscriber."""
    broker, topics = RealBroker(folder), Topics()
    await broker.start()
    try:
        async with serving({graph: compile_test(text)}) as server, broker.client() as client:
            await client.subscribe("house/#", qos=1)

            async def listen() -> None:
                async for m in client.messages:
                    payload = bytes(m.payload).decode()  # type: ignore[arg-type]
                    body = json.loads(payload) if payload.startswith("{") else payload
                    topics.heard.append((m.topic.value, body))

            listening = asyncio.create_task(listen())
            bridge = MqttBridge(parse_broker(broker.url), frozenset({graph}), server.desk)
            bridge.start()
            await until(lambda: topics.of("/status") == ["online"])
            try:
                async with asyncio.timeout(120):
                    yield server, client, topics
            finally:
                await bridge.stop()
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
    finally:
        await broker.stop()


@asynccontextmanager
async def visiting(
    server: Server, graph: str, camera: VideoStreamTrack | None = None
) -> AsyncGenerator[Client]:
    page = Client()
    if camera is None:
        page.pc.addTransceiver("audio", "recvonly")
    else:
        page.pc.addTrack(camera)
    try:
        await page.connect(server.url, graph)
        yield page
    finally:
        await page.pc.close()


def test_a_standing_question_put_over_mqtt_fires_on_its_topic_and_on_the_data_channel(tmp_path: Path) -> None:
    async def main() -> None:
        camera = Still()
        async with (
            with_broker(tmp_path, "live", LIVE) as (server, mqtt, topics),
            visiting(server, "live", camera) as page,
        ):
            wish = {"id": 1, "session": "live", "text": "Tell me when something moves."}
            await mqtt.publish("house/command/ask", json.dumps(wish), qos=1)
            accepted = await page.heard("event", lambda m: m["name"] == "answered")
            assert accepted["fields"] == {"kind": "standing", "known": True, "by": "measured"}
            await until(lambda: bool(topics.of("/watch/answered")))
            await asyncio.sleep(1)
            assert not topics.of("/watch/spoke_up"), "nothing moves yet"
            camera.walking = True
            told = await page.heard("event", lambda m: m["name"] == "spoke_up")
            words = "You asked me to tell you: something moves or changes."
            assert told["from"] == "watch"
            assert told["fields"]["text"] == words
            await page.heard("text", lambda m: m["text"] == words)
            await until(lambda: bool(topics.of(f"/event/live/{page.session}/watch/spoke_up")))
            (event,) = topics.of("/watch/spoke_up")
            assert event["fields"]["text"] == words
            assert (event["session"], event["from"], event["name"]) == (page.session, "watch", "spoke_up")
            assert topics.of("/watch/motion_started")[0]["fields"]["region"]
            page.say({"v": 1, "type": "chat", "text": "is anything moving?"})
            answered = await page.heard(
                "event", lambda m: m["name"] == "answered" and "confidence" in m["fields"]
            )
            assert answered["fields"]["kind"] == "motion"
            await until(lambda: len(topics.of("/watch/answered")) == 2)
            assert topics.of("/watch/answered")[1]["fields"]["confidence"] > 0.5
            assert not topics.of("/watch/answer"), "words of answers leave only when their port is named"

    asyncio.run(main())


def test_a_headless_camera_tells_what_its_graph_file_asks_for(tmp_path: Path) -> None:
    async def main() -> None:
        async with with_broker(tmp_path, "headless", HEADLESS) as (_, mqtt, topics):
            await mqtt.publish("house/command/start", json.dumps({"graph": "headless"}), qos=1)
            await until(lambda: bool(topics.of("/watch/spoke_up")), 30)
            text = topics.of("/watch/spoke_up")[0]["fields"]["text"]
            assert text == "You asked me to tell you: something moves or changes."

    asyncio.run(main())


def test_a_trained_model_that_was_asked_to_tell_does_so_on_both_ways(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            with_broker(tmp_path, "world", WORLD) as (server, _, topics),
            visiting(server, "world") as page,
        ):
            page.say({"v": 1, "type": "chat", "text": "tell me when something leaves"})
            await page.heard("text", lambda m: m["text"] == "I will tell you when something leaves.")
            told = await page.heard("event", lambda m: m["name"] == "spoke_up")
            assert told["fields"]["wish"] == "left"
            await until(lambda: bool(topics.of("/watch/spoke_up")))
            fields = topics.of("/watch/spoke_up")[0]["fields"]
            assert fields == told["fields"]
            assert f"{topics.of('/watch/left')[0]['fields']['thing']} left" in fields["text"]

    asyncio.run(main())
