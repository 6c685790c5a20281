import json
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.clock import MS, SECOND, ManualClock
from penstock.pipeline.frame import TokenFrame
from penstock.pipeline.stage import StageError
from penstock.transport.datachannel import (
    ERROR_WINDOW,
    MAX_BUFFERED,
    MAX_BYTES,
    MAX_ERRORS,
    RATE,
    ControlChannel,
)


class FakeSession:
    def __init__(self) -> None:
        self.params: list[tuple[str, dict[str, object]]] = []
        self.interrupts = 0

    def set_params(self, node: str, values: Mapping[str, object]) -> None:
        if node != "restyle":
            raise StageError(f"unknown node {node!r}; there are: restyle")
        self.params.append((node, dict(values)))

    def interrupt(self, scope: str | None = None) -> None:
        self.interrupts += 1

    def stats(self) -> Mapping[str, Any]:
        return {"nodes": [], "session": {}}

    def describe(self) -> list[dict[str, Any]]:
        return [{"name": "restyle"}]


class FakeWire:
    def __init__(self) -> None:
        self.readyState = "open"
        self.bufferedAmount = 0
        self.sent: list[dict[str, Any]] = []

    def send(self, data: str) -> None:
        self.sent.append(json.loads(data))

    def close(self) -> None:
        self.readyState = "closed"


class Setup:
    def __init__(self) -> None:
        self.clock = ManualClock()
        self.session = FakeSession()
        self.lines: list[str] = []
        self.wire = FakeWire()
        self.channel = ControlChannel(self.session, "s-1", "studio", self.clock, self.lines.append)
        self.channel.opened(self.wire)

    def say(self, message: object) -> list[dict[str, Any]]:
        """What is sent in reply."""
        before = len(self.wire.sent)
        self.clock.time += SECOND
        self.channel.receive(message if isinstance(message, (str, bytes)) else json.dumps(message))
        return self.wire.sent[before:]


def test_hello_is_first_and_describes_the_graph():
    setup = Setup()
    assert setup.wire.sent == [
        {
            "v": 1,
            "type": "hello",
            "session": "s-1",
            "graph": "studio",
            "nodes": [{"name": "restyle"}],
            "realtime": True,
        }
    ]


def test_each_message_does_what_the_protocol_says():
    setup = Setup()
    assert setup.say({"v": 1, "type": "chat", "text": "hello"}) == []
    assert setup.lines == ["hello"]
    assert setup.say({"v": 1, "type": "params", "node": "restyle", "values": {"style": "neon"}}) == []
    assert setup.session.params == [("restyle", {"style": "neon"})]
    assert setup.say({"v": 1, "type": "interrupt"}) == []
    assert setup.session.interrupts == 1
    assert setup.say({"v": 1, "type": "stats", "every_ms": 500}) == []
    assert setup.channel.every == 500 * MS
    assert setup.say({"v": 1, "type": "ping", "id": 7}) == [{"v": 1, "type": "pong", "id": 7}]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("{", "not JSON"),
        (b"\x00\x01", "binary"),
        ("[]", "no object"),
        ("[" * 10_000, "not JSON"),
        ({"v": 2, "type": "chat", "text": "x"}, "v"),
        ({"v": 1}, 'no "type"; accepted: chat, interrupt, params, ping, stats'),
        ({"v": 1, "type": "format_disk"}, "unknown message type"),
        ({"v": 1, "type": "chat", "text": ""}, "text"),
        ({"v": 1, "type": "chat", "text": "x" * 2001}, "2000"),
        ({"v": 1, "type": "chat", "text": 5}, "text: text is expected; put it in quotes (got 5)"),
        ({"v": 1, "type": "params", "node": "nope", "values": {}}, "unknown node 'nope'"),
        ({"v": 1, "type": "params", "node": "restyle", "values": []}, "values"),
        ({"v": 1, "type": "stats", "every_ms": 5}, "100 to 10000"),
        ({"v": 1, "type": "stats", "every_ms": 10**9}, "every_ms"),
        ({"v": 1, "type": "chat", "text": "x", "extra": 1}, "extra"),
        ("x" * (MAX_BYTES + 1), str(MAX_BYTES)),
    ],
)
def test_bad_message_gets_an_error_in_words_and_changes_nothing(message: object, words: str):
    setup = Setup()
    replies = setup.say(message)
    assert [r["type"] for r in replies] == ["error"]
    assert words in replies[0]["message"]
    assert (setup.lines, setup.session.params, setup.session.interrupts) == ([], [], 0)
    assert setup.channel.every == 0


def test_more_than_fifty_messages_a_second_are_refused():
    setup = Setup()
    ping = json.dumps({"v": 1, "type": "ping", "id": 1})
    for _ in range(RATE + 5):
        setup.channel.receive(ping)
    kinds = [m["type"] for m in setup.wire.sent[1:]]
    assert kinds == ["pong"] * RATE + ["error"]  # a burst is told once, and is one error
    setup.clock.time += SECOND
    setup.channel.receive(ping)
    assert setup.wire.sent[-1]["type"] == "pong"


def test_after_a_hundred_errors_the_session_is_told_once_and_nothing_is_taken():
    setup = Setup()
    told: list[str] = []
    setup.channel.abused = told.append
    for _ in range(MAX_ERRORS):
        setup.say("{")
    assert setup.say("{") == setup.say({"v": 1, "type": "ping", "id": 1}) == []
    assert told == ["its client sent 100 messages that could not be taken; the last: json"]


def test_errors_of_long_ago_and_bursts_do_not_end_a_session():
    setup = Setup()
    setup.channel.abused = pytest.fail
    for _ in range(2 * MAX_ERRORS):
        setup.say("{")
        setup.clock.time += ERROR_WINDOW // MAX_ERRORS
    for _ in range(RATE + MAX_ERRORS):
        setup.channel.receive('{"v": 1, "type": "ping"}')
    assert not setup.channel.barred


@pytest.mark.parametrize(
    "message",
    [
        {"type": "params", "node": "restyle", "values": "my secret"},
        {"type": "my secret", "text": "my secret"},
    ],
)
def test_what_a_client_wrote_is_not_in_the_log(
    message: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    setup = Setup()
    told: list[str] = []
    setup.channel.abused = told.append
    for _ in range(MAX_ERRORS):
        setup.say({"v": 1} | message)
    assert setup.channel.barred
    assert "that could not be taken" in caplog.text
    assert "secret" not in caplog.text + told[0]


def test_a_far_end_that_does_not_read_loses_messages_instead_of_memory():
    setup = Setup()
    setup.wire.bufferedAmount = MAX_BUFFERED + 1
    setup.channel.text("asr.commit", "commit", TokenFrame(pts=0, text="lost"))
    assert len(setup.wire.sent) == 1
    assert setup.channel.dropped == 1


def test_text_and_params_events_have_the_protocols_form():
    setup = Setup()
    frame = TokenFrame(pts=5 * MS, until=9 * MS, text="hi", utterance=3)
    setup.channel.text("asr.partial", "partial", frame)
    setup.channel.event("restyle", "params", {"values": {"style": "neon"}}, 0)
    setup.channel.event("vad", "speech_start", {"p": 0.9}, 7 * MS)
    assert setup.wire.sent[1:] == [
        {
            "v": 1,
            "type": "text",
            "from": "asr.partial",
            "kind": "partial",
            "text": "hi",
            "pts_ms": 5,
            "until_ms": 9,
            "utterance": 3,
            "end": True,
        },
        {"v": 1, "type": "params", "node": "restyle", "values": {"style": "neon"}},
        {"v": 1, "type": "event", "from": "vad", "name": "speech_start", "fields": {"p": 0.9}, "pts_ms": 7},
    ]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@given(
    st.dictionaries(st.sampled_from(["v", "type", "text", "node", "values", "every_ms", "id"]), json_values)
)
@settings(max_examples=100, deadline=None)
def test_no_json_message_raises(message: dict[str, Any]):
    setup = Setup()
    setup.say(message | {"v": 1})


@given(st.text(max_size=200) | st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_no_raw_message_raises(raw: str | bytes):
    setup = Setup()
    assert all(reply["type"] == "error" for reply in setup.say(raw))
