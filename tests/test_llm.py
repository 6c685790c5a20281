"""LlmChat against a server that speaks the real wire format, and breaks it in all ways."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from penstock.pipeline.clock import SECOND
from penstock.pipeline.frame import TokenFrame
from penstock.pipeline.session import Session
from penstock.pipeline.stage import Flush, SetParams, StageError
from penstock.stages.endpoint import read_key
from penstock.stages.llm import LlmChat
from pydantic import ValidationError

from .chat_server import DONE, HELLO, ROLE, Script, Write, delta, drops, sends, serving, stalls
from .endpoint_talk import EndpointTalk, play
from .fakes import FakeContext, feed
from .graphs import compile_test, run_session, sink_of

pytestmark = pytest.mark.net

SORRY = "Sorry, I can't answer right now."


class Talk(EndpointTalk[LlmChat]):
    async def ask(self, text: str) -> str:
        """Say it; what was answered."""
        before = len(self.out.of("say"))
        await feed(self.stage, "heard", TokenFrame(pts=SECOND, until=2 * SECOND, text=text), self.out)
        return "".join(f.text for f in self.out.of("say")[before:])

    def text(self, utterance: int) -> str:
        return "".join(f.text for f in self.out.of("say") if f.utterance == utterance)


def talk(scene: Callable[[Talk], Awaitable[None]], *scripts: Script | web.Response, **options: Any) -> Talk:
    """Play a scene with a stage that is connected to a server of these scripts."""

    def make(url: str) -> LlmChat:
        base: dict[str, Any] = {"base_url": url, "model": "m", "system": ""}
        return LlmChat(LlmChat.Options.model_validate(base | options))

    return play(Talk, make, scene, *scripts, content_type="text/event-stream; charset=utf-8")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 10_000])
def test_a_reply_comes_as_deltas_however_it_is_cut(size: int) -> None:
    async def scene(it: Talk) -> None:
        assert await it.ask("hi") == "Hello é☃."
        frames = it.out.of("say")
        assert [f.text for f in frames] == ["Hel", "lo é☃.", ""]
        assert [f.end for f in frames] == [False, False, True]
        assert {f.utterance for f in frames} == {1}
        assert {f.pts for f in frames} == {2 * SECOND}
        assert not it.stage.busy

    talk(scene, sends(*(HELLO[i : i + size] for i in range(0, len(HELLO), size))))


def test_the_request_carries_history_and_live_parameters() -> None:
    async def scene(it: Talk) -> None:
        await it.ask("hi")
        await it.stage.control(SetParams({"temperature": 0.1}))
        await it.ask("and now?")
        first, second = it.server.requests
        assert first == {
            "model": "m",
            "stream": True,
            "temperature": 0.7,
            "max_tokens": 300,
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}],
        }
        assert second["temperature"] == 0.1
        assert [m["content"] for m in second["messages"]] == ["be brief", "hi", "Hello é☃.", "and now?"]

    talk(scene, sends(HELLO), system="be brief")


def test_blank_text_asks_nothing() -> None:
    async def scene(it: Talk) -> None:
        assert await it.ask("  \n") == ""
        assert it.server.requests == []

    talk(scene, sends(HELLO))


DEEP = b"data: " + b"[" * 100_000 + b"\n\n"
FAILURES: list[tuple[str, Script | web.Response, str, str]] = [
    ("500", web.Response(status=500, text="secret"), "", "HTTP 500"),
    ("404", web.Response(status=404), "", "HTTP 404"),
    ("redirect", web.Response(status=307, headers={"Location": "http://127.0.0.1:9/"}), "", "HTTP 307"),
    ("not a stream", web.json_response({"choices": []}), "", "text/event-stream is accepted"),
    ("empty", sends(), "", "ended without an answer"),
    ("drop at once", drops(ROLE), "", "connection broke"),
    ("drop in the middle", drops(ROLE, delta("Once upon")), "Once upon ", "connection broke"),
    ("stall at once", stalls(ROLE, b": ping\n\n"), "", "no token in"),
    ("stall in the middle", stalls(delta("Once")), "Once ", "no further token"),
    ("garbage", sends(b"data: \x00\xff{]\n\n"), "", "not JSON"),
    ("deep", sends(DEEP), "", "not JSON"),
    ("no object", sends(b"data: 7\n\n"), "", "not a JSON object"),
    ("no choices", sends(b"data: {}\n\n"), "", "no list of choices"),
    ("odd choice", sends(b'data: {"choices":[null]}\n\n'), "", "choice is not"),
    ("odd content", sends(b'data: {"choices":[{"delta":{"content":[1]}}]}\n\n'), "", "not text"),
    ("error in the stream", sends(delta("A"), b'data: {"error":{"message":"x"}}\n\n'), "A ", "reported an error"),
    ("endless line", sends(b"x" * 300_000), "", "longer than"),
    ("endless answer", sends(*[delta("")] * 3000), "", "over 400000 bytes"),
    ("long answer", sends(*[delta("word " * 1000)] * 5), "word " * 4000 + " ", "over 20000 characters"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("script", "said", "reason"), [f[1:] for f in FAILURES], ids=[f[0] for f in FAILURES]
)
def test_a_failing_endpoint_is_apologised_for_once(
    script: Script | web.Response, said: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(it: Talk) -> None:
        assert await it.ask("my words") == said + SORRY
        assert it.out.of("say")[-1].end
        assert await it.ask("my words") == said.rstrip(" ") + " " * said.startswith("word")
        failed = [fields for name, fields in it.ctx.events if name == "llm_failed"]
        assert len(failed) == 2
        assert all(reason in str(fields["error"]) for fields in failed)
        assert SORRY not in json.dumps(it.server.requests[-1])

    slow = "stall" in reason or "token" in reason
    talk(
        scene,
        script,
        response_bytes=400_000,
        **({"first_token": "150ms", "between_tokens": "50ms"} if slow else {}),
    )
    assert "my words" not in caplog.text
    assert "secret" not in caplog.text
    assert "127.0.0.1" not in caplog.text


@pytest.mark.parametrize(
    "script",
    [
        sends(delta("Hello."), delta(None, "stop")),  # no [DONE]
        sends(delta("Hello.")),  # neither, but a clean end
        stalls(delta("Hello."), delta(None, "length")),  # nothing is waited for after the reason
        stalls(delta("Hello."), DONE),
        sends(b": hi\r\n\r\n" + delta("Hello.").replace(b"\n", b"\r\n") + b"data: [DONE]\r\n\r\n"),
    ],
)
def test_an_answer_may_end_in_several_ways(script: Script) -> None:
    async def scene(it: Talk) -> None:
        assert await it.ask("hi") == "Hello."
        assert it.out.of("say")[-1].end

    talk(scene, script)


def test_half_a_character_is_made_text() -> None:
    async def scene(it: Talk) -> None:
        assert await it.ask("hi") == "a?"

    talk(scene, sends(b'data: {"choices":[{"delta":{"content":"a\\ud83d"}}]}\n\n', DONE))


def test_the_circuit_opens_and_an_answer_closes_it() -> None:
    async def scene(it: Talk) -> None:
        assert await it.ask("1") == SORRY
        assert await it.ask("2") == ""
        assert await it.ask("3") == ""  # open: nothing is asked
        assert len(it.server.requests) == 2
        it.clock.time = SECOND
        assert await it.ask("4") == "Hello é☃."
        assert it.server.requests[-1]["messages"] == [{"role": "user", "content": "1\n2\n3\n4"}]
        assert await it.ask("5") == SORRY  # a new outage

    busy = web.Response(status=503)
    talk(scene, busy, busy, sends(HELLO), busy, failures=2, cooldown="1s")


def test_too_many_requests_is_heeded() -> None:
    async def scene(it: Talk) -> None:
        await it.ask("1")
        it.clock.time = 20 * SECOND - 1
        await it.ask("2")
        assert len(it.server.requests) == 1
        it.clock.time = 20 * SECOND
        assert await it.ask("3") == "Hello é☃."

    talk(scene, web.Response(status=429, headers={"Retry-After": "20"}), sends(HELLO))


def test_nobody_listening_is_a_failure() -> None:
    async def scene(it: Talk) -> None:
        assert await it.ask("hi") == SORRY

    it = talk(scene, sends(HELLO), base_url="http://127.0.0.1:1/v1")
    assert "no connection" in str(it.ctx.events[-1][1]["error"])


def test_a_flush_ends_the_request_and_commits_what_was_said() -> None:
    async def scene(it: Talk) -> None:
        asking = asyncio.create_task(it.ask("tell me a story"))
        await it.out.some.wait()
        assert it.stage.busy
        await it.flush()
        assert await asking == "Once upon"
        assert [(f.text, f.end, f.epoch) for f in it.out.of("say")] == [
            ("Once upon", False, 0),
            ("", True, 1),
        ]
        await it.server.gone.wait()  # the server sees it too
        assert not it.stage.busy
        assert await it.ask("another") == "Hello é☃."
        assert [m["content"] for m in it.server.requests[-1]["messages"]] == [
            "tell me a story",
            "Once upon",
            "another",
        ]
        assert not any(name == "llm_failed" for name, _ in it.ctx.events)

    talk(scene, stalls(delta("Once upon")), sends(HELLO))


def test_a_flush_before_the_first_token_commits_nothing() -> None:
    async def scene(it: Talk) -> None:
        asking = asyncio.create_task(it.ask("one"))
        await it.server.asked.wait()
        await it.flush()
        assert await asking == ""
        assert await it.ask("two") == "Hello é☃."
        assert it.server.requests[-1]["messages"] == [{"role": "user", "content": "one\ntwo"}]

    talk(scene, stalls(ROLE), sends(HELLO))


def test_a_flush_told_late_spares_the_next_reply() -> None:
    async def scene(it: Talk) -> None:
        it.ctx.epoch = 3
        asking = asyncio.create_task(it.ask("hi"))
        await it.out.some.wait()
        await it.stage.control(Flush("reply", 3))
        gates[0].set()
        assert await asking == "Hello é☃."

    gates: list[asyncio.Event] = []

    async def in_two_halves(write: Write) -> None:
        gates.append(asyncio.Event())
        await write(delta("Hel"))
        await gates[0].wait()
        await write(delta("lo é☃.") + DONE)

    talk(scene, in_two_halves)


GRAPH = """
penstock: 1
graph: talk
nodes:
  ears:  {use: test.tokens, frames: 2, every_ms: 1}
  agent: {use: llm.chat, in: {heard: ears.text}, scope: reply, base_url: "%s", model: m, system: ""}
  out:   {use: test.sink, in: {text: agent.say}}
"""


def test_in_a_session_a_barge_in_ends_one_reply_and_the_next_question_is_answered() -> None:
    async def play() -> None:
        listening, first = asyncio.Event(), asyncio.Event()

        async def story(write: Write) -> None:
            await listening.wait()
            await stalls(delta("Once upon"))(write)

        async def barge_in(session: Session) -> None:
            session.listen(lambda event: first.set() if event.name == "llm_first_token" else None)
            listening.set()
            await first.wait()
            session.interrupt("reply")

        async with serving(story, sends(HELLO)) as (server, url), asyncio.timeout(20):
            session = await run_session(compile_test(GRAPH % url), meanwhile=barge_in)
            await server.gone.wait()
        assert [m["content"] for m in server.requests[1]["messages"]] == ["0", "Once upon", "1"]
        heard = [f for _, _, f in sink_of(session).got if f.epoch == 1]
        assert [(f.text, f.utterance, f.end) for f in heard] == [
            ("", 1, True),
            ("Hel", 2, False),
            ("lo é☃.", 2, False),
            ("", 2, True),
        ]
        assert session.runners["agent"].restarts == 0

    asyncio.run(play())


def test_the_key_is_sent_and_never_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(it: Talk) -> None:
        await it.ask("hi")
        assert it.server.headers[0]["Authorization"] == "Bearer k-123"
        assert "k-123" not in str(it.ctx.events)

    monkeypatch.setenv("TEST_LLM_KEY", " k-123\n")
    with caplog.at_level(logging.DEBUG):
        talk(scene, web.Response(status=401), key="env:TEST_LLM_KEY")
    assert "k-123" not in caplog.text


def test_keys_are_read_from_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    path.write_text("abc\n")
    assert read_key(f"file:{path}") == "abc"
    assert read_key("") == ""
    monkeypatch.delenv("TEST_LLM_KEY", raising=False)
    path.write_text("two\nlines")
    for reference in ("env:TEST_LLM_KEY", f"file:{path}"):
        with pytest.raises(ValueError, match="empty or not one line") as failure:
            read_key(reference)
        assert "lines" not in str(failure.value)
    with pytest.raises(ValueError, match="cannot be read"):
        read_key(f"file:{tmp_path / 'none'}")


def test_a_missing_key_fails_at_the_start() -> None:
    stage = LlmChat(
        LlmChat.Options.model_validate(
            {"base_url": "http://localhost/v1", "model": "m", "key": "env:TEST_NO_SUCH"}
        )
    )
    stage.ctx = FakeContext()
    with pytest.raises(StageError, match="TEST_NO_SUCH"):
        asyncio.run(stage.setup())
    asyncio.run(stage.close())


@pytest.mark.parametrize(
    "options",
    [
        {"base_url": "file:///etc/passwd"},
        {"base_url": "ftp://host/v1"},
        {"base_url": "localhost:8000/v1"},
        {"base_url": "http:///v1"},
        {"base_url": "http://user:pass@host/v1"},
        {"base_url": "http://host:99999/v1"},
        {"base_url": "http://host/v1?key=1"},
        {"key": "sk-plain"},
        {"key": "env:"},
        {"first_token": "0s"},
        {"history_turns": 0},
    ],
)
def test_senseless_options_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LlmChat.Options.model_validate({"base_url": "http://host/v1", "model": "m", **options})
