import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace

import aiohttp
import pytest
from client import GRAPHS, Client, Colour, Tone, serving, until, within
from graphs import AudioWork, compile_test
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.clock import MonotonicClock
from penstock.pipeline.compiler import load
from penstock.pipeline.session import Session
from penstock.pipeline.stage import StageError
from penstock.transport.access import Access
from penstock.transport.offer import OfferError, check_offer
from penstock.transport.server import MAX_BODY, ServeError, Server
from penstock.transport.sessions import Sessions

pytestmark = pytest.mark.net


@asynccontextmanager
async def http() -> AsyncGenerator[tuple[Server, aiohttp.ClientSession]]:
    async with serving() as server, aiohttp.ClientSession(server.url) as session:
        yield server, session


async def refusal(response: aiohttp.ClientResponse) -> tuple[int, str]:
    """Status and words; every refusal is JSON with one error."""
    body = await response.json()
    assert list(body) == ["error"]
    return response.status, body["error"]


async def an_offer() -> str:
    client = Client()
    try:
        return await client.offer()
    finally:
        await client.pc.close()


def test_health_graphs_and_headers():
    async def main() -> None:
        async with http() as (_, session):
            async with session.get("/health") as r:
                assert await r.json() == {"status": "ok", "sessions": 0, "parked": 0}
                assert r.headers["X-Content-Type-Options"] == "nosniff"
                assert "default-src 'self'" in r.headers["Content-Security-Policy"]
            async with session.get("/graphs") as r:
                (graph,) = (await r.json())["graphs"]
                assert graph["name"] == "loopback"
                assert graph["default"] is True
            async with session.get("/nothing") as r:
                assert (await refusal(r))[0] == 404
            async with session.put("/session") as r:
                assert (await refusal(r))[0] == 405

    asyncio.run(main())


@pytest.mark.parametrize(
    ("body", "content_type", "status", "words"),
    [
        (b"{", "application/json", 400, "not JSON"),
        (b"[" * 50_000, "application/json", 400, "not JSON"),
        (b"[]", "application/json", 400, "body"),
        (b'{"sdp": 5}', "application/json", 400, "sdp"),
        (b'{"sdp":"v=0","type":"answer"}', "application/json", 400, "type"),
        (b'{"sdp":"hello"}', "application/json", 400, "v=0"),
        (b'{"sdp":"v=0"}', "application/json", 400, "media section"),
        (b'{"sdp":"v=0","graph":"nope"}', "application/json", 404, "'nope'; this server has: loopback"),
        (b"{}", "application/json; charset=nope", 400, "no text"),
        (b"\xff\xfe", "application/json", 400, "no text"),
        (b"{}", "text/plain", 415, "application/json"),
        (b" " * (MAX_BODY + 1), "application/json", 413, str(MAX_BODY)),
    ],
)
def test_a_bad_request_is_refused_in_words(body: bytes, content_type: str, status: int, words: str):
    async def main() -> None:
        headers = {"Content-Type": content_type}
        async with http() as (server, session):
            async with session.post("/session", data=body, headers=headers) as r:
                code, said = await refusal(r)
                assert code == status
                assert words in said
            assert not server.sessions.live

    asyncio.run(main())


def test_a_foreign_host_or_origin_is_refused():
    async def main() -> None:
        async with http() as (_, session):
            for headers in (
                {"Host": "evil.example"},
                {"Host": "127.0.0.1.evil.example:8080"},
                {"Origin": "https://evil.example"},
                {"Origin": "null"},
            ):
                async with session.get("/health", headers=headers) as r:
                    assert (await refusal(r))[0] == 403, headers
            async with session.get("/health", headers={"Host": f"localhost:{session._base_url.port}"}) as r:  # type: ignore[union-attr]
                assert r.status == 200

    asyncio.run(main())


def test_other_machines_need_a_token():
    async def main() -> None:
        plans = Sessions({}, MonotonicClock(), Session)
        with pytest.raises(ServeError, match="PENSTOCK_TOKEN"):
            Server(plans, "0.0.0.0", 0)
        server = Server(plans, "0.0.0.0", 0, Access("secret"))
        await server.start()
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{server.port}") as session:
                for given, words in (
                    ("", "needed"),
                    ("Bearer wrong", "not known here"),
                    ("Basic secret", "needed"),
                ):
                    headers = {"Authorization": given} if given else {}
                    async with session.post("/session", headers=headers) as r:
                        status, told = await refusal(r)
                        assert status == 401
                        assert words in told
                async with session.get("/graphs", headers={"Authorization": "Bearer secret"}) as r:
                    assert r.status == 200
                async with session.get("/health") as r:
                    assert r.status == 200
        finally:
            await server.stop()

    asyncio.run(main())


def test_a_port_in_use_is_told_in_words():
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            server = Server(Sessions({}, MonotonicClock(), Session), "127.0.0.1", port)
            with pytest.raises(ServeError, match=f"port {port} .* is in use"):
                await server.start()

    asyncio.run(main())


def test_a_session_too_many_is_refused():
    async def main() -> None:
        async with serving(per_client=1) as server, aiohttp.ClientSession(server.url) as session:
            for expected in (200, 429):
                async with session.post("/session", json={"sdp": await an_offer()}) as r:
                    assert r.status == expected
        async with (
            serving(total=0) as server,
            aiohttp.ClientSession(server.url) as session,
            session.post("/session", json={"sdp": await an_offer()}) as r,
        ):
            assert (await refusal(r))[0] == 503

    asyncio.run(main())


def test_sessions_are_deleted_and_their_stats_read():
    async def main() -> None:
        async with http() as (server, session):
            client = Client()
            await client.connect(server.url)
            async with session.get(f"/session/{client.session}/stats") as r:
                stats = await r.json()
                assert {row["name"] for row in stats["nodes"]} == {"cam", "out"}
                assert stats["transport"]["state"] == "connected"
            for _ in range(2):
                async with session.delete(f"/session/{client.session}") as r:
                    assert r.status == 200
            await until(lambda: not server.sessions.live)
            async with session.get(f"/session/{client.session}/stats") as r:
                assert (await refusal(r))[0] == 404
            await client.pc.close()

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["whip", "whep"])
def test_whip_and_whep_create_and_end_a_session(kind: str):
    async def main() -> None:
        headers = {"Content-Type": "application/sdp"}
        async with http() as (server, session):
            client = Client()
            client.pc.addTransceiver("video", direction="sendonly" if kind == "whip" else "recvonly")
            offer = await client.offer()
            async with session.post(f"/{kind}/loopback", data=offer, headers=headers) as r:
                assert r.status == 201
                assert r.content_type == "application/sdp"
                assert "a=setup:passive" in await r.text()
                location = r.headers["Location"]
            assert location.startswith(f"/{kind}/loopback/s-")
            async with session.delete(location) as r:
                assert r.status == 200
            await until(lambda: not server.sessions.live)
            async with session.post(f"/{kind}/nope", data=offer, headers=headers) as r:
                assert (await refusal(r))[0] == 404
            async with session.post(f"/{kind}/loopback", json={}) as r:
                assert (await refusal(r))[0] == 415
            async with session.post(f"/{kind}/loopback", data="garbage", headers=headers) as r:
                assert (await refusal(r))[0] == 400
            await client.pc.close()

    asyncio.run(main())


def test_stopping_the_server_ends_live_sessions_in_time():
    async def main() -> None:
        loop = asyncio.get_running_loop()
        client = Client()
        client.pc.addTrack(Colour())
        client.pc.addTrack(Tone())
        async with serving() as server:
            await client.connect(server.url)
            await within(client.tracks["video"].recv())
            start = loop.time()
        assert loop.time() - start < 3  # the bound promised is two seconds and a little
        assert not server.sessions.live
        await client.pc.close()

    asyncio.run(main())


LINES = st.sampled_from(
    [
        "m=audio 9 UDP/TLS/RTP/SAVPF 111",
        "m=video 9 UDP/TLS/RTP/SAVPF 96",
        "m=application 9 UDP/DTLS/SCTP webrtc-datachannel",
        "m=video 99999999 X -1",
        "a=mid:0",
        "a=ice-ufrag:abcd",
        "a=ice-pwd:aaaaaaaaaaaaaaaaaaaaaaaa",
        "a=fingerprint:sha-256 00:11",
        "a=fingerprint:md5 00",
        "a=setup:actpass",
        "a=setup:nonsense",
        "a=rtpmap:96 VP8/90000",
        "a=rtpmap:111 opus/48000/2",
        "a=candidate:1 1 udp 1 256.1.1.1 5 typ host",
        "a=rtcp-mux",
        "a=sctp-port:5000",
        "c=IN IP4 x",
        "a=group:BUNDLE 0 1",
    ]
)


@given(st.lists(LINES | st.text(max_size=30), max_size=14))
@settings(max_examples=150, deadline=None)
def test_a_garbage_offer_is_refused_or_parsed_never_worse(lines: list[str]):
    try:
        check_offer("\r\n".join(["v=0", *lines]) + "\r\n")
    except OfferError as e:
        assert str(e)


def test_a_damaged_real_offer_is_refused_and_leaves_no_session():
    async def main() -> None:
        offer = await an_offer()
        lines = offer.splitlines()
        async with http() as (server, session):
            for drop in range(1, len(lines)):
                damaged = "\r\n".join(lines[:drop] + lines[drop + 1 :]) + "\r\n"
                async with session.post("/session", json={"sdp": damaged}) as r:
                    if r.status == 200:  # that line was not needed
                        async with session.delete(f"/session/{(await r.json())['session']}"):
                            continue
                    assert r.status == 400, (lines[drop], await r.text())
            await until(lambda: not server.sessions.live)
            async with session.post(
                "/session", data=json.dumps({"sdp": offer}), headers={"Content-Type": "application/json"}
            ) as r:
                assert r.status == 200

    asyncio.run(main())


def test_a_session_that_breaks_is_told_why_and_no_other_notices():
    breaks = compile_test("""
penstock: 1
graph: breaks
nodes:
  mic: {use: webrtc.in, audio: 16k/mono/20ms}
  work: {use: test.work, in: mic.audio, fail_at: 5, critical: true}
  out: {use: webrtc.out, in: {audio: work.audio, text: mic.text}}
""")
    loopback = load(GRAPHS / "loopback.yaml")

    async def main() -> None:
        async with serving({"loopback": loopback, "breaks": breaks}) as server:
            bad, good = Client(), Client()
            for client, graph in ((good, "loopback"), (bad, "breaks")):
                client.pc.addTrack(Tone())
                await client.connect(server.url, graph)
            error = await bad.heard("error")
            assert error["about"] == "session"
            assert "told to fail" in error["message"]
            await until(lambda: list(server.sessions.live) == [good.session])
            good.say({"v": 1, "type": "chat", "text": "still here"})
            assert (await good.heard("text"))["text"] == "still here"
            await bad.pc.close()
            await good.pc.close()

    asyncio.run(main())


def test_a_graph_that_cannot_start_is_a_server_error_in_words():
    class Broken(AudioWork):
        async def setup(self) -> None:
            raise StageError("the model file is missing")

    plan = compile_test("""
penstock: 1
graph: broken
nodes:
  mic: {use: webrtc.in}
  work: {use: test.work, in: mic.audio}
  out: {use: webrtc.out, in: {audio: work.audio}}
""")
    nodes = dict(plan.nodes)
    nodes["work"] = replace(nodes["work"], cls=Broken)

    async def main() -> None:
        async with (
            serving({"broken": replace(plan, nodes=nodes)}) as server,
            aiohttp.ClientSession(server.url) as session,
            session.post("/session", json={"sdp": await an_offer()}) as r,
        ):
            code, said = await refusal(r)
            assert code == 500
            assert "the model file is missing" in said
            assert not server.sessions.live

    asyncio.run(main())
