from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import aiohttp
import pytest
from client import GRAPHS, Client, serving, until
from graphs import compile_test, sink_of
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.clock import MonotonicClock
from penstock.pipeline.compiler import load
from penstock.pipeline.graph import Plan
from penstock.pipeline.session import Session
from penstock.transport.event_bus import EventBus
from penstock.transport.server import Server
from penstock.transport.sessions import Sessions

pytestmark = pytest.mark.net

STEADY = """
penstock: 1
graph: steady
slo: {caption: 300ms}
nodes:
  mic:  {use: test.audio, frames: 100000}
  work: {use: test.work, in: mic.audio, budget: 5ms}
  out:  {use: test.sink, in: work.audio}
"""
TALKS = """
penstock: 1
graph: talks
nodes:
  count: {use: test.tokens, frames: 100000, every_ms: 60000}
  voice: {use: test.speaker, in: count.text, scope: reply}
  out:   {use: test.sink, in: voice.audio}
"""


def plans() -> dict[str, Plan]:
    return {
        "loopback": load(GRAPHS / "loopback.yaml"),
        "steady": compile_test(STEADY),
        "talks": compile_test(TALKS),
    }


@asynccontextmanager
async def http() -> AsyncGenerator[tuple[Server, aiohttp.ClientSession]]:
    async with serving(plans()) as server, aiohttp.ClientSession(server.url) as session:
        yield server, session


async def get(session: aiohttp.ClientSession, path: str, status: int = 200) -> dict[str, object]:
    async with session.get(path) as r:
        assert r.status == status, await r.text()
        return await r.json()


async def post(
    session: aiohttp.ClientSession, path: str, body: object, status: int = 200
) -> dict[str, object]:
    async with session.post(path, json=body) as r:
        assert r.status == status, await r.text()
        return await r.json()


def test_a_graph_of_own_sources_is_started_steered_and_ended():
    async def main() -> None:
        async with http() as (server, session):
            name = (await post(session, "/sessions", {"graph": "steady"}, 201))["session"]
            (row,) = (await get(session, "/sessions"))["sessions"]  # type: ignore[misc]
            assert row["id"] == name
            assert row["kind"] == "headless"
            live = server.desk.find(str(name))
            await until(lambda: live.session.runners["work"].processed > 3)
            detail = await get(session, f"/sessions/{name}")
            work = next(n for n in detail["nodes"] if n["name"] == "work")  # type: ignore[attr-defined]
            assert work["params"] == {"gain": 1.0, "mode": "plain"}
            assert "gain" in work["schema"]["properties"]
            changed = await post(session, f"/sessions/{name}/params", {"node": "work", "values": {"gain": 2}})
            assert changed == {"node": "work", "params": {"gain": 2.0, "mode": "plain"}}
            for values, words in (({"gain": 9}, "gain"), ({"volume": 1}, "gain, mode")):
                said = await post(
                    session, f"/sessions/{name}/params", {"node": "work", "values": values}, 409
                )
                assert words in str(said["error"])
            said = await post(session, f"/sessions/{name}/params", {"node": "wrk", "values": {}}, 404)
            assert "unknown node 'wrk'; did you mean 'work'?" in str(said["error"])
            stats = await get(session, f"/sessions/{name}/stats")
            assert {n["name"] for n in stats["nodes"]} == {"mic", "work", "out"}  # type: ignore[attr-defined]
            async with session.delete(f"/sessions/{name}") as r:
                assert r.status == 200
            await until(lambda: not server.desk.running())
            await get(session, f"/sessions/{name}", 404)

    asyncio.run(main())


def test_a_graph_with_live_ends_is_not_started_without_a_client():
    async def main() -> None:
        async with http() as (_, session):
            assert "needs a client" in str(
                (await post(session, "/sessions", {"graph": "loopback"}, 409))["error"]
            )
            assert "talks" in str((await post(session, "/sessions", {"graph": "nope"}, 404))["error"])

    asyncio.run(main())


def test_say_speaks_on_the_port_that_feeds_the_voice():
    async def main() -> None:
        async with http() as (server, session):
            name = str((await post(session, "/sessions", {"graph": "talks"}, 201))["session"])
            out = sink_of(server.desk.find(name).session)
            await post(session, f"/sessions/{name}/say", {"text": "the kettle boils"})
            await until(lambda: any(f.text == "the kettle boils" for _, _, f in out.got))
            said = await post(session, f"/sessions/{name}/ask", {"text": "hello"}, 409)
            assert "reads no text" in str(said["error"])
            steady = str((await post(session, "/sessions", {"graph": "steady"}, 201))["session"])
            assert "no voice" in str(
                (await post(session, f"/sessions/{steady}/say", {"text": "x"}, 409))["error"]
            )
            await post(session, f"/sessions/{name}/interrupt", {})
            assert server.desk.find(name).session.epochs == {"reply": 1}

    asyncio.run(main())


def test_ask_reaches_a_clients_graph_as_chat_does():
    async def main() -> None:
        async with http() as (_, session):
            client = Client()
            await client.connect(str(session._base_url))  # pyright: ignore[reportPrivateUsage]
            await post(session, f"/sessions/{client.session}/ask", {"text": "by the API"})
            assert (await client.heard("text"))["text"] == "by the API"
            await client.pc.close()

    asyncio.run(main())


def test_graphs_tell_their_nodes_and_schemas():
    async def main() -> None:
        async with http() as (_, session):
            graph = await get(session, "/graphs/steady")
            assert graph["slo_ms"] == {"caption": 300.0}
            assert graph["takes"] == []
            assert graph["gives"] == []
            loopback = await get(session, "/graphs/loopback")
            assert loopback["takes"] == loopback["gives"] == ["audio", "text", "video"]
            assert not loopback["captions"]
            work = next(n for n in graph["nodes"] if n["name"] == "work")  # type: ignore[attr-defined]
            assert work["inputs"] == [{"port": "audio", "from": "mic.audio"}]
            assert work["budget_ms"] == 5
            assert work["schema"]["properties"]["mode"]["enum"] == ["plain", "loud"]
            await get(session, "/graphs/nope", 404)

    asyncio.run(main())


def test_metrics_count_what_running_and_ended_sessions_did():
    async def main() -> None:
        async with http() as (server, session):
            name = str((await post(session, "/sessions", {"graph": "steady"}, 201))["session"])
            runner = server.desk.find(name).session.runners["work"]
            await until(lambda: runner.processed >= 5)
            async with session.get("/metrics") as r:
                text = await r.text()
                assert r.content_type == "text/plain"
            assert 'penstock_sessions{graph="steady"} 1.0' in text
            assert "penstock_sessions_opened_total 1.0" in text
            assert "penstock_loop_lag_seconds" in text
            await server.desk.close(name)
            await until(lambda: not server.desk.running())
            async with session.get("/metrics") as r:
                text = await r.text()
            assert f'penstock_node_frames_total{{graph="steady",node="work"}} {runner.processed}.0' in text
            assert "penstock_sessions{" not in text

    asyncio.run(main())


def test_events_tell_the_life_of_sessions_and_end_with_the_server():
    async def main() -> None:
        names: list[str] = []
        async with http() as (server, session):
            async with session.get("/events?graph=steady") as r:
                assert r.content_type == "text/event-stream"
                await r.content.readline()
                name = str((await post(session, "/sessions", {"graph": "steady"}, 201))["session"])
                await post(session, f"/sessions/{name}/params", {"node": "work", "values": {"gain": 3}})
                await server.desk.close(name)
                async for line in r.content:
                    if line.startswith(b"data: "):
                        event = json.loads(line[6:])
                        assert event["session"] == name
                        names.append(event["name"])
                        if event["name"] == "gone":
                            break
            assert names == ["opened", "params", "closed", "gone"]
            async with session.get("/events") as r:
                await r.content.readline()
                server.bus.close()
                assert b"event" not in await r.read()

    asyncio.run(main())


def test_a_slow_reader_of_events_loses_the_oldest_and_is_told_how_many():
    async def main() -> None:
        bus = EventBus(lambda: 0)
        reader = bus.subscribe(backlog=4)
        for i in range(10):
            bus.publish(f"e{i}", node="n")
        assert reader.lost == 6
        event = await reader.get()
        assert event is not None
        assert event.name == "e6"

    asyncio.run(main())


def test_readers_of_events_are_bounded():
    async def main() -> None:
        async with http() as (server, session):
            server.bus.limit = 1
            async with session.get("/events") as r:
                await r.content.readline()
                assert "close one first" in str((await get(session, "/events", 429))["error"])

    asyncio.run(main())


def test_readiness_says_why_not():
    async def main() -> None:
        async with http() as (server, session):
            assert (await get(session, "/health/ready"))["status"] == "ready"
            server.desk.sessions.graphs = {}
            assert (await get(session, "/health/ready"))["status"] == "ready", "none is broken"
            server.not_ready = "warming up: studio"
            assert (await get(session, "/health/ready", 503))["error"] == "warming up: studio"
            assert (await get(session, "/health/live"))["status"] == "ok"

    asyncio.run(main())


def test_openapi_describes_every_route_and_only_those():
    async def main() -> None:
        async with http() as (server, session):
            document = await get(session, "/openapi.json")
            described = {
                (method.upper(), path)
                for path, methods in document["paths"].items()  # type: ignore[attr-defined]
                for method in methods
            }
            assert ("POST", "/sessions/{id}/params") in described
            text = json.dumps(document)
            for name in document["components"]["schemas"]:  # type: ignore[index]
                assert f"#/components/schemas/{name}" in text
            refs = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
            assert refs == set(document["components"]["schemas"])  # type: ignore[index]
            for method, path in described:
                async with session.request(method, path.replace("{id}", "x").replace("{name}", "x")) as r:
                    assert r.status < 500, (method, path)
                    assert r.status != 405, (method, path)
            assert server.desk.running() == []

    asyncio.run(main())


@contextmanager
def background() -> Generator[str]:
    """A server on a thread of its own: for clients that block."""
    ready, urls = threading.Event(), list[str]()
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    async def main() -> None:
        server = Server(Sessions(plans(), MonotonicClock(), Session), "127.0.0.1", 0)
        await server.start()
        urls.append(server.url)
        ready.set()
        await stop.wait()
        await server.stop()

    thread = threading.Thread(target=lambda: loop.run_until_complete(main()))
    thread.start()
    try:
        assert ready.wait(20)
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(20)
        loop.close()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
BODIES = st.one_of(
    JSON.map(lambda v: json.dumps(v).encode()),
    st.fixed_dictionaries({"node": st.sampled_from(["work", "mic"]), "values": st.dictionaries(st.sampled_from(["gain", "mode"]) | st.text(), JSON, max_size=3)}).map(lambda v: json.dumps(v).encode()),
    st.fixed_dictionaries({"text": st.text() | st.just("\ud800")}).map(lambda v: json.dumps(v).encode()),
    st.binary(max_size=64),
)  # fmt: skip
PATHS = st.tuples(
    st.sampled_from(["/sessions/{}", "/sessions/{}/params", "/sessions/{}/say", "/sessions/{}/ask",
                     "/sessions/{}/interrupt", "/sessions", "/graphs/{}", "/health", "/session", "/session/{}/stats"]),
    st.just("LIVE") | st.text(min_size=1, max_size=20),
)  # fmt: skip


def test_no_request_gets_a_server_error():
    from urllib.parse import quote

    async def main() -> None:
        async with http() as (_, session):
            name = str((await post(session, "/sessions", {"graph": "talks"}, 201))["session"])
            loop = asyncio.get_running_loop()

            async def ask(method: str, path: str, body: bytes, content_type: str) -> None:
                headers = {"Content-Type": content_type}
                async with session.request(method, path, data=body, headers=headers) as r:
                    assert r.status < 500, (method, path, body)
                    if r.status >= 400:
                        assert list(await r.json()) == ["error"]

            @given(
                st.sampled_from(["GET", "POST", "DELETE", "PUT"]),
                PATHS,
                BODIES,
                st.sampled_from(["application/json"] * 6 + ["text/plain", "application/json; charset=nope"]),
            )
            @settings(max_examples=200, deadline=None)
            def check(method: str, path: tuple[str, str], body: bytes, content_type: str) -> None:
                template, word = path
                where = (
                    name if word == "LIVE" and method != "DELETE" else quote(word, safe="", errors="replace")
                )
                asyncio.run_coroutine_threadsafe(
                    ask(method, template.format(where), body, content_type), loop
                ).result(20)

            await asyncio.to_thread(check)

    asyncio.run(main())


def test_every_route_is_open_or_asks_for_a_scope():
    server = Server(Sessions(plans(), MonotonicClock(), Session), "127.0.0.1", 0)
    for route in server.routes:
        assert route.open != bool(route.scopes), route.path


def test_models_are_listed_with_what_is_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PENSTOCK_MODELS", str(tmp_path))

    async def main() -> None:
        async with http() as (_, session):
            models = (await get(session, "/models"))["models"]
            assert isinstance(models, list)
            assert len(models) > 3
            assert all(set(row) == {"name", "stage", "about", "licence", "gb", "here"} for row in models)
            assert not any(row["here"] for row in models)

    asyncio.run(main())
