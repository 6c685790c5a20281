"""Function calls of llm.chat, over the real wire format."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.stage import StageError
from penstock.stages.chat_calls import BadCall, CallAssembler
from penstock.stages.chat_tools import LONGEST, Tool, ToolBox
from penstock.stages.llm import LlmChat
from pydantic import ValidationError

from .chat_server import DONE, HELLO, ROLE, Script, delta, sends
from .fakes import FakeContext
from .test_llm import SORRY, Talk, talk

pytestmark = pytest.mark.net


def call_chunk(index: int, *, id: str | None = None, name: str = "", arguments: str = "") -> bytes:
    """One piece of a call, as OpenAI's server sends it."""
    function = {k: v for k, v in (("name", name), ("arguments", arguments)) if v}
    call: dict[str, Any] = {"index": index, "function": function}
    if id:
        call |= {"id": id, "type": "function"}
    body = {"choices": [{"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}]}
    return f"data: {json.dumps(body)}\n\n".encode()


def calls(*pieces: bytes) -> Script:
    return sends(ROLE, *pieces, delta(None, "tool_calls"), DONE)


LIGHT = {"about": "Switch the light", "emit": "light"}
SWITCH = calls(
    call_chunk(0, id="c-1", name="light"),
    call_chunk(0, arguments='{"o'),
    call_chunk(0, arguments='n": true}'),
)


def test_a_call_is_done_and_its_result_goes_back() -> None:
    async def scene(it: Talk) -> None:
        assert await it.ask("light on") == "Hello é☃."
        assert ("light", {"on": True}) in it.ctx.events
        first, second = it.server.requests
        assert first["tools"][0]["function"] == {
            "name": "light",
            "description": "Switch the light",
            "parameters": {"type": "object", "properties": {}},
        }
        assert second["messages"][1:] == [
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {
                        "id": "c-1",
                        "type": "function",
                        "function": {"name": "light", "arguments": '{"on": true}'},
                    }
                ],
            },
            {"role": "tool", "tool_call_id": "c-1", "content": "done"},
        ]
        await it.ask("thanks")
        assert [m["role"] for m in it.server.requests[-1]["messages"]] == ["user", "assistant", "user"]

    talk(scene, SWITCH, sends(HELLO), tools={"light": LIGHT})


def test_words_before_a_call_are_spoken() -> None:
    async def scene(it: Talk) -> None:
        assert await it.ask("light") == "One moment. Hello é☃."

    talk(
        scene,
        sends(delta("One moment. "), call_chunk(0, id="c", name="light"), delta(None, "tool_calls")),
        sends(HELLO),
        tools={"light": LIGHT},
    )


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        ((call_chunk(0, id="c", name="nothing"),), "there is no function 'nothing'; there are: light"),
        ((call_chunk(0, id="c", name="light", arguments="{nope"),), "the arguments are not JSON"),
        ((call_chunk(0, id="c", name="light", arguments="[1]"),), "the arguments are not a JSON object"),
    ],
)
def test_what_is_wrong_with_a_call_is_told_to_the_model(pieces: tuple[bytes, ...], error: str) -> None:
    async def scene(it: Talk) -> None:
        assert await it.ask("light") == "Hello é☃."
        assert json.loads(it.server.requests[1]["messages"][-1]["content"]) == {"error": error}

    talk(scene, calls(*pieces), sends(HELLO), tools={"light": LIGHT})


def test_rounds_are_bounded() -> None:
    async def scene(it: Talk) -> None:
        assert await it.ask("light") == SORRY
        assert len(it.server.requests) == 3
        assert [r.get("tool_choice") for r in it.server.requests] == [None, None, "none"]

    talk(scene, SWITCH, tools={"light": LIGHT}, tool_rounds=2)


def test_several_calls_run_at_once_and_answer_in_order() -> None:
    async def scene(it: Talk) -> None:
        await it.ask("go")
        told = it.server.requests[1]["messages"][-2:]
        assert [(m["tool_call_id"], m["content"]) for m in told] == [("a", "done"), ("b", "done")]

    both = calls(call_chunk(0, id="a", name="light"), call_chunk(1, id="b", name="light"))
    talk(scene, both, sends(HELLO), tools={"light": LIGHT})


def test_an_address_gets_the_arguments_and_gives_the_result() -> None:
    async def main() -> None:
        async def weather(request: web.Request) -> web.Response:
            where = (await request.json())["where"]
            if where == "nowhere":
                return web.Response(status=404)
            if where == "slow":
                await asyncio.sleep(5)
            return web.Response(text="x" * 40_000 if where == "long" else f"sun in {where}")

        app = web.Application()
        app.router.add_post("/w", weather)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        tool = Tool.model_validate(
            {"about": "Weather", "url": f"http://127.0.0.1:{port}/w", "timeout": "300ms"}
        )
        box = ToolBox({"weather": tool}, FakeContext())
        try:

            async def ask(where: str) -> str:
                assembler = CallAssembler()
                arguments = json.dumps({"where": where})
                assembler.feed(
                    [{"index": 0, "id": "1", "function": {"name": "weather", "arguments": arguments}}]
                )
                return (await box.run(assembler.calls))[0]["content"]

            assert await ask("Rome") == "sun in Rome"
            assert "HTTP 404" in await ask("nowhere")
            assert "no result within 0.3 s" in await ask("slow")
            assert LONGEST < len(await ask("long")) < LONGEST + 100
        finally:
            await box.close()
            await runner.cleanup()

    asyncio.run(main())


def test_parameters_of_a_node_are_set_or_refused_in_words() -> None:
    class Strict(FakeContext):
        def set_params(self, node: str, values: Mapping[str, object]) -> None:
            if "style" not in values:
                raise StageError("'restyle' has no parameter 'stile'; it has: style")
            super().set_params(node, values)

    async def main() -> None:
        ctx = Strict()
        box = ToolBox({"restyle": Tool.model_validate({"about": "Style", "set": "restyle"})}, ctx)

        async def call(arguments: str) -> str:
            assembler = CallAssembler()
            assembler.feed([{"function": {"name": "restyle", "arguments": arguments}}])
            return (await box.run(assembler.calls))[0]["content"]

        assert await call('{"style": "neon"}') == "done"
        assert ctx.params == [("restyle", {"style": "neon"})]
        assert "it has: style" in await call('{"stile": "neon"}')

    asyncio.run(main())


@pytest.mark.parametrize(
    "tool",
    [
        {"about": "x"},
        {"about": "x", "emit": "a", "set": "b"},
        {"about": "x", "url": "file:///etc/passwd"},
        {"about": "x", "emit": "a", "parameters": {"type": "array"}},
        {"about": "", "emit": "a"},
    ],
)
def test_senseless_tools_are_refused(tool: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        LlmChat.Options.model_validate({"base_url": "http://h/v1", "model": "m", "tools": {"t": tool}})


def test_a_function_that_is_not_installed_is_named() -> None:
    with pytest.raises(StageError, match=r"'mine'.*'penstock.tools'"):
        ToolBox({"t": Tool.model_validate({"about": "x", "call": "mine"})}, FakeContext())


@given(st.lists(st.text(max_size=8), max_size=8), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_arguments_are_the_same_however_they_are_cut(pieces: list[str], index: int) -> None:
    assembler = CallAssembler()
    assembler.feed([{"index": index, "id": "x", "function": {"name": "f"}}])
    for piece in pieces:
        assembler.feed([{"index": index, "function": {"arguments": piece}}])
    assert [(c.id, c.name, c.arguments) for c in assembler.calls] == [("x", "f", "".join(pieces))]


def test_servers_that_number_every_call_zero_are_understood() -> None:
    assembler = CallAssembler()
    for id_, name in (("a", "f"), ("b", "g")):
        assembler.feed([{"index": 0, "id": id_, "function": {"name": name, "arguments": {"x": 1}}}])
    assert [(c.id, c.name, c.parsed()) for c in assembler.calls] == [
        ("a", "f", {"x": 1}),
        ("b", "g", {"x": 1}),
    ]


@pytest.mark.parametrize(
    "pieces",
    [7, [7], [{"index": "a"}], [{"function": 3}], [{"function": {"arguments": "x" * 70_000}}], [{}] * 17],
)
def test_odd_pieces_are_refused(pieces: object) -> None:
    assembler = CallAssembler()
    with pytest.raises(BadCall):
        assembler.feed(pieces)
