from __future__ import annotations

import asyncio
import gc
import json
import socket
import warnings
from pathlib import Path
from typing import Any

import pytest
from broker import Authority, RealBroker
from client import serving, until
from graphs import compile_test, sink_of
from penstock.pipeline.clock import MonotonicClock
from penstock.pipeline.errors import GraphError
from penstock.pipeline.secret import redacted, resolve
from penstock.pipeline.stage import StageError
from penstock.transport import demo_broker
from penstock.transport.mqtt import OUTBOX, Message, MqttLink, parse_broker
from penstock.transport.mqtt_bridge import MqttBridge

pytestmark = pytest.mark.net

GRAPH = """
penstock: 1
graph: talks
nodes:
  count: {use: test.tokens, frames: 100000, every_ms: 10}
  voice: {use: test.speaker, in: count.text, scope: reply}
  tick:  {use: test.tokens, frames: 100000, every_ms: 10}
  bell:  {use: test.alarm, in: tick.text}
  out:   {use: test.sink, in: {audio: voice.audio, text: bell.event}}
events: {mqtt: %s, emit: %s}
"""


class HastyClock(MonotonicClock):
    """Seconds of backoff pass as milliseconds."""

    async def sleep(self, duration: int) -> None:
        await super().sleep(duration // 1000)


def plan(emit: str, url: str = "env:PENSTOCK_MQTT"):
    return compile_test(GRAPH % (url, emit))


def test_events_and_named_texts_go_out_and_commands_come_in(tmp_path: Path):
    async def main() -> None:
        broker = RealBroker(tmp_path)
        await broker.start()
        made = plan("[count.text, bell.alarm]")
        try:
            async with serving({"talks": made}) as server, broker.client() as client:
                await client.subscribe("house/#", qos=1)
                heard: list[tuple[str, Any]] = []

                async def listen() -> None:
                    async for m in client.messages:
                        text = bytes(m.payload).decode()  # type: ignore[arg-type]
                        heard.append((m.topic.value, json.loads(text) if text.startswith("{") else text))

                listening = asyncio.create_task(listen())
                bridge = MqttBridge(parse_broker(broker.url), frozenset({"talks"}), server.desk)
                server.metrics.links = [bridge.link]
                bridge.start()

                def said(topic: str) -> list[Any]:
                    return [body for at, body in heard if at == topic]

                await until(lambda: said("house/status") == ["online"])
                await client.publish("house/command/start", json.dumps({"id": 1, "graph": "talks"}), qos=1)
                await until(lambda: bool(said("house/reply")))
                reply = said("house/reply")[0]
                assert reply["ok"] is True
                at = f"house/event/talks/{reply['session']}"
                await until(lambda: bool(said(f"{at}/bell/alarm")))
                assert said(f"{at}/session/opened")[0]["graph"] == "talks"
                assert said(f"{at}/count/text")[0]["fields"]["text"] == "0"
                assert said("house/sessions")[-1]["sessions"] == [{"id": reply["session"], "graph": "talks"}]
                sink = sink_of(server.desk.find(reply["session"]).session)
                say = {"session": "talks", "text": "hello there"}
                await client.publish("house/command/say", json.dumps(say), qos=1)
                await until(
                    lambda: any(f.text == "hello there" for _, p, f in sink.got if p == "voice.audio")
                )
                await until(lambda: len(said("house/reply")) == 2)
                for verb, body, words in (
                    ("dance", "{}", "known: params, ask"),
                    ("say", "[", "JSON object"),
                    ("say", '{"session": "nobody", "text": "x"}', "nobody"),
                    ("start", '{"graph": "other"}', "steers: talks"),
                    ("params", '{"session": "talks", "node": "x", "values": {}}', "unknown node"),
                ):
                    n = len(said("house/reply"))
                    await client.publish(f"house/command/{verb}", body, qos=1)
                    await until(lambda n=n: len(said("house/reply")) > n)
                    assert words in said("house/reply")[-1]["error"]
                await client.publish("house/command/stop", json.dumps({"graph": "talks"}), qos=1)
                await until(lambda: bool(said(f"{at}/session/gone")))
                await until(lambda: said("house/sessions")[-1]["sessions"] == [])
                where, text = f'{{broker="127.0.0.1:{broker.port}"}}', server.metrics.text().decode()
                assert f"penstock_mqtt_connected{where} 1.0" in text
                assert f"penstock_mqtt_lost_total{where} 0.0" in text
                assert f"penstock_mqtt_sent_total{where} 0.0" not in text
                await bridge.stop()
                await until(lambda: said("house/status")[-1] == "offline")
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
        finally:
            await broker.stop()

    asyncio.run(main())


def test_no_qos_1_message_is_lost_over_restarts_of_the_broker(tmp_path: Path):
    async def main() -> None:
        broker = RealBroker(tmp_path)
        await broker.start()
        link = MqttLink(parse_broker(broker.url), HastyClock(), lambda verb, payload: None)
        link.start()
        numbers: set[int] = set()
        sent = 0
        try:
            async with broker.client(identifier="reader", clean_session=False) as client:
                await client.subscribe("house/n", qos=1)
            for _ in range(3):
                for _ in range(20):
                    link.publish(Message("house/n", str(sent).encode()))
                    sent += 1
                await until(lambda: link.sent > 0)
                await broker.stop()
                for _ in range(20):
                    link.publish(Message("house/n", str(sent).encode()))
                    sent += 1
                await broker.start()
                await until(lambda: link.waiting == 0, 20)
            async with broker.client(identifier="reader", clean_session=False) as client:
                async with asyncio.timeout(20):
                    async for m in client.messages:
                        numbers.add(int(bytes(m.payload)))  # type: ignore[arg-type]
                        if len(numbers) == sent:
                            break
            assert numbers == set(range(120))
            assert link.lost == 0
        finally:
            await link.stop()
            await broker.stop()

    asyncio.run(main())


def test_a_full_outbox_loses_what_matters_least():
    async def main() -> None:
        link = MqttLink(parse_broker("mqtt://127.0.0.1:1"), MonotonicClock(), lambda verb, payload: None)
        link.publish(Message("a", b"first"))
        link.publish(Message("a", b"partial", qos=0))
        for _ in range(OUTBOX):
            link.publish(Message("a", b"x"))
        assert link.waiting == OUTBOX
        assert link.lost == 2
        assert all(m.qos == 1 for m in link._outbox)  # pyright: ignore[reportPrivateUsage]

    asyncio.run(main())


def test_a_transcript_leaves_only_when_named_in_full():
    assert plan("['*.*']").events.texts == ()
    assert not any("count" in p for p in plan("['*.*']").events.emit)
    assert plan("[count.text]").events.texts == ("count.text",)


@pytest.mark.parametrize(
    ("url", "emit", "words"),
    [
        ("mqtt://me:secret@host", "[]", "password must not stand"),
        ("http://host", "[]", "mqtts://host:8883"),
        ("mqtt://host", "[nope.text]", "unknown node 'nope'"),
        ("mqtt://host", "[alarm]", "node.event"),
        ("mqtt://host", "loud", "'emit' is a list"),
    ],
)
def test_a_fault_in_events_is_told_with_its_place(url: str, emit: str, words: str):
    with pytest.raises(GraphError, match=words) as caught:
        plan(emit, url)
    assert caught.value.faults[0].line == 10


def test_secrets_are_found_and_never_told(tmp_path: Path):
    path = tmp_path / "url"
    path.write_text("mqtt://a:hush@h\n")
    assert resolve(f"file:{path}") == "mqtt://a:hush@h"
    assert resolve("env:X", {"X": "y"}) == "y"
    with pytest.raises(StageError, match="'NOPE' is not set"):
        resolve("env:NOPE", {})
    assert redacted("mqtt://a:hush@h:1/p?key=hush") == "mqtt://h:1/p"
    assert "hush" not in repr(parse_broker("mqtt://a:hush@h"))
    with pytest.raises(StageError) as caught:
        parse_broker("ftp://a:hush@h")
    assert "hush" not in str(caught.value)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("mutual", [False, True])
def test_events_go_out_over_tls_to_a_broker_with_an_authority_of_its_own(tmp_path: Path, mutual: bool):
    async def main() -> None:
        authority = Authority(tmp_path, mutual=mutual)
        broker = RealBroker(tmp_path, authority)
        await broker.start()
        url = broker.url
        if mutual:
            cert, key = authority.issue("daemon", tmp_path)
            url += f"&cert={cert}&key={key}"
        link = MqttLink(parse_broker(url), HastyClock(), lambda verb, payload: None)
        link.start()
        stranger = MqttLink(
            parse_broker(f"mqtts://localhost:{broker.port}?ca={Authority(tmp_path).path}"),
            HastyClock(),
            lambda verb, payload: None,
        )
        stranger.start()
        try:
            link.publish(Message("house/n", b"1"))
            await until(lambda: link.sent == 1)
            assert not stranger.connected  # it does not trust this broker, and says nothing to it
        finally:
            await stranger.stop()
            await link.stop()
            await broker.stop()

    asyncio.run(main())
    with warnings.catch_warnings():  # paho forgets the socket of a handshake that failed
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


def test_certificates_that_are_none_are_told_at_the_start(tmp_path: Path):
    (tmp_path / "ca").write_text("nothing of the kind")
    for url, words in (
        (f"mqtts://h?ca={tmp_path}/nowhere", "nowhere cannot be used: No such file"),
        (f"mqtts://h?ca={tmp_path}/ca", "ca cannot be used"),
        (f"mqtts://h?cert={tmp_path}/ca", "its key cannot be used"),
        ("mqtt://h?ca=x", "belong to mqtts"),
        ("mqtts://h?cacert=x", "cacert= is unknown; known: ca, cert, key"),
    ):
        with pytest.raises(StageError, match=words):
            MqttLink(parse_broker(url), MonotonicClock(), lambda verb, payload: None)


def test_the_demo_broker_shows_what_is_published():
    pytest.importorskip("amqtt", reason="needs the package amqtt (extra broker)")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    async def main() -> None:
        got: list[tuple[str, str]] = []
        ready = asyncio.Event()
        task = asyncio.create_task(
            demo_broker.serve(port, lambda url: ready.set(), lambda topic, text: got.append((topic, text)))
        )
        await asyncio.wait_for(ready.wait(), 10)
        link = MqttLink(
            parse_broker(f"mqtt://127.0.0.1:{port}/home"), HastyClock(), lambda verb, payload: None
        )
        link.start()
        link.publish(Message("home/door", b"open"))
        await until(lambda: ("home/door", "open") in got)
        with pytest.raises(StageError, match=f"cannot listen on 127.0.0.1 port {port}"):
            await demo_broker.serve(port, print, print)
        await link.stop()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
