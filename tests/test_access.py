"""Who is let in: scopes, strangers, addresses behind proxies, and rates."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiortc import RTCSessionDescription
from client import Client, Tone, serving, until
from penstock.pipeline.clock import SECOND, ManualClock
from penstock.pipeline.tokens import Scope, TokenFile
from penstock.transport.access import BURST_S, REMEMBERED, Access, Rates, read_networks


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    return TokenFile(tmp_path / "tokens.json", time.time_ns)


ROUTES = [
    ("GET", "/sessions"), ("POST", "/sessions"), ("GET", "/sessions/x"), ("DELETE", "/sessions/x"),
    ("GET", "/sessions/x/stats"), ("POST", "/sessions/x/params"), ("POST", "/sessions/x/say"),
    ("GET", "/graphs"), ("GET", "/events"), ("GET", "/metrics"), ("GET", "/openapi.json"),
    ("POST", "/session"), ("PATCH", "/session/x"), ("DELETE", "/session/x"), ("GET", "/session/x/stats"),
    ("POST", "/session/x/reload"), ("GET", "/ice-servers"), ("POST", "/whip/loopback"), ("OPTIONS", "/whip/loopback"),
    ("PATCH", "/whip/loopback/x"), ("DELETE", "/whep/loopback/x"), ("POST", "/whep/loopback"),
    ("GET", "/nothing"), ("POST", "/"), ("DELETE", "/health"), ("GET", "/%2e%2e/etc/passwd"), ("GET", "/x/../sessions"),
]  # fmt: skip


@pytest.mark.net
def test_a_stranger_gets_nothing_but_401():
    async def main() -> None:
        async with serving(access=Access("secret")) as server, aiohttp.ClientSession(server.url) as http:
            for method, path in ROUTES:
                for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}):
                    async with http.request(method, path, headers=headers) as r:
                        assert r.status == 401, (method, path)
                        assert list(await r.json()) == ["error"]
                        assert r.headers["WWW-Authenticate"].startswith("Bearer")
            async with http.get("/health") as r:
                assert await r.json() == {"status": "ok"}, "nothing of the load"
                assert r.headers["Server"] == "penstock"
            async with http.get("/metrics", headers={"Authorization": "Bearer secret"}) as r:
                count = 3 * len(ROUTES)
                assert f'penstock_http_refusals_total{{status="401"}} {count}.0' in await r.text()

    asyncio.run(main())


@pytest.mark.net
def test_scopes_reach_as_far_as_they_say(tokens: TokenFile):
    scopes: tuple[Scope, ...] = ("view", "talk", "control", "admin")
    secrets = {scope: tokens.create(scope, (scope,)) for scope in scopes}
    tokens.load()
    # 403 is what a scope does not reach; all else is past the guard
    reach = {
        ("GET", "/sessions"): "view control admin",
        ("GET", "/metrics"): "view control admin",
        ("GET", "/graphs"): "view talk control admin",
        ("GET", "/ice-servers"): "view talk admin",
        ("POST", "/session"): "talk admin",
        ("POST", "/whip/loopback"): "talk admin",
        ("POST", "/whep/loopback"): "talk view admin",
        ("POST", "/sessions"): "control admin",
        ("POST", "/sessions/x/say"): "control admin",
        ("DELETE", "/sessions/x"): "control admin",
        ("DELETE", "/session/x"): "talk control admin",
    }

    async def main() -> None:
        async with serving(access=Access(tokens=tokens)) as server, aiohttp.ClientSession(server.url) as http:
            for (method, path), allowed in reach.items():
                for scope in scopes:
                    headers = {"Authorization": f"Bearer {secrets[scope]}"}
                    async with http.request(method, path, headers=headers) as r:
                        assert r.status != 401
                        assert (r.status != 403) == (scope in allowed.split()), (method, path, scope)

    asyncio.run(main())


@pytest.mark.net
def test_a_session_is_its_own_tokens_and_ends_with_it(tokens: TokenFile):
    mine = {"Authorization": f"Bearer {tokens.create('mine', ('talk',), sessions=1)}"}
    other = {"Authorization": f"Bearer {tokens.create('other', ('talk',))}"}
    tokens.load()

    async def main() -> None:
        client = Client()
        offer = await client.offer()
        async with serving(access=Access(tokens=tokens)) as server, aiohttp.ClientSession(server.url) as http:
            async with http.post("/session", json={"sdp": offer}, headers=mine) as r:
                answer = await r.json()
                assert r.status == 200
            async with http.post("/session", json={"sdp": offer}, headers=mine) as r:
                assert r.status == 429
                assert "1 with this token" in (await r.json())["error"]
                assert r.headers["Retry-After"]
            path = f"/session/{answer['session']}"
            for method, where in (
                ("GET", f"{path}/stats"),
                ("PATCH", path),
                ("DELETE", path),
                ("POST", f"{path}/reload"),
            ):
                async with http.request(method, where, headers=other) as r:
                    assert r.status == 403, (method, where)
            body = {"sdp": offer, "resume": answer["resume"]}
            async with http.post("/session", json=body, headers=other) as r:
                assert r.status == 410, "a stolen way back leads nowhere"
            async with http.get(f"{path}/stats", headers=mine) as r:
                assert r.status == 200
            tokens.revoke("mine")
            await until(lambda: not server.sessions.live)
            async with http.get("/graphs", headers=mine) as r:
                assert r.status == 401
        await client.pc.close()

    asyncio.run(main())


def _about(kind: str, message: dict[str, Any]) -> bool:
    return message["about"] == kind


@pytest.mark.net
def test_who_may_only_watch_sends_no_media_and_steers_nothing(tokens: TokenFile):
    headers = {
        "Authorization": f"Bearer {tokens.create('guest', ('view',))}",
        "Content-Type": "application/sdp",
    }
    tokens.load()

    async def main() -> None:
        async with serving(access=Access(tokens=tokens)) as server, aiohttp.ClientSession(server.url) as http:
            client = Client()
            client.pc.addTrack(Tone())
            async with http.post("/whep/loopback", data=await client.offer(), headers=headers) as r:
                assert r.status == 201
                answer = await r.text()
            assert "a=sendonly" in answer, "the offer's sendrecv is not taken"
            await client.pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
            await asyncio.wait_for(client.opened.wait(), 10)
            for message in (
                {"type": "chat", "text": "hello"},
                {"type": "params", "node": "cam", "values": {}},
            ):
                client.say({"v": 1} | message)
                error = await client.heard("error", partial(_about, str(message["type"])))
                assert "lacks the scope talk" in error["message"]
            client.say({"v": 1, "type": "ping"})
            await client.heard("pong")
            assert not any(m["type"] == "text" for m in client.messages)
            await client.pc.close()

    asyncio.run(main())


@pytest.mark.net
def test_readers_of_events_hear_of_comings_until_their_token_is_void(tokens: TokenFile):
    headers = {"Authorization": f"Bearer {tokens.create('guest', ('admin',))}"}
    tokens.load()

    async def main() -> None:
        async with serving(access=Access(tokens=tokens)) as server, aiohttp.ClientSession(server.url) as http:
            client = Client()
            async with http.get("/events?name=opened,parked,gone", headers=headers) as events:
                body = {"sdp": await client.offer()}
                async with http.post("/session", json=body, headers=headers) as r:
                    answer = await r.json()
                await client.pc.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
                await asyncio.wait_for(client.opened.wait(), 10)
                async with http.post(f"/session/{answer['session']}/reload", headers=headers) as r:
                    assert r.status == 200
                names: list[str] = []
                async for line in events.content:
                    if line.startswith(b"data:"):
                        names.append(json.loads(line[5:])["name"])
                        if names[-1] == "parked":
                            tokens.revoke("guest")
                # its own session's end comes after the token's: that is not told to it any more
                assert names == ["opened", "parked"]
            await client.pc.close()

    asyncio.run(main())


@pytest.mark.net
def test_secrets_are_in_no_log_and_no_answer(tokens: TokenFile, caplog: pytest.LogCaptureFixture):
    secret = tokens.create("mine", ("talk",))
    tokens.load()
    caplog.set_level(logging.DEBUG)

    async def main() -> str:
        said = ""
        client = Client()
        offer = await client.offer()
        async with (
            serving(access=Access("topsecret", tokens)) as server,
            aiohttp.ClientSession(server.url) as http,
        ):
            for token in (secret, "topsecret", "topsecret-wrong"):
                for method, path in ROUTES:
                    if path == "/events":
                        continue
                    async with http.request(
                        method, path, json={"sdp": offer}, headers={"Authorization": f"Bearer {token}"}
                    ) as r:
                        said += await r.text()
            assert "topsecret" not in repr(server.access)
        await client.pc.close()
        return said

    said = asyncio.run(main())
    # the client's own library is not ours to judge
    logged = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith("penstock"))
    for word in (secret, "topsecret"):
        assert word not in said
        assert word not in logged


# ---------------------------------------------------------------- addresses and rates


def test_an_address_is_believed_as_far_as_proxies_of_ours_wrote_it():
    access = Access(proxies=read_networks(["10.0.0.0/8", "::1"]))
    for remote, forwarded, address in (
        ("192.0.2.9", ["203.0.113.1"], "192.0.2.9"),  # no proxy of ours: what it says counts for nothing
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["203.0.113.1"], "203.0.113.1"),
        ("10.0.0.1", ["203.0.113.66, 203.0.113.1"], "203.0.113.1"),  # the left one is the client's own word
        ("10.0.0.1", ["203.0.113.1, 10.0.0.2"], "203.0.113.1"),
        ("10.0.0.1", ["203.0.113.1", "10.0.0.2, 10.0.0.3"], "203.0.113.1"),
        ("::1", ["[2001:db8::7]:443"], "2001:db8::7"),
        ("::1", ["203.0.113.1:5555"], "203.0.113.1"),
        ("10.0.0.1", ["203.0.113.1, nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["nonsense, 10.0.0.9"], "10.0.0.9"),
        ("10.0.0.1", ["x" * 100_000], "10.0.0.1"),
        ("", ["203.0.113.1"], ""),
    ):
        assert access.address(remote, forwarded) == address, (remote, forwarded)


@pytest.mark.net
def test_clients_behind_a_proxy_are_told_apart():
    async def main() -> None:
        access = Access("secret", hosts=frozenset({"cam.example.org"}), proxies=read_networks(["127.0.0.1"]))
        client = Client()
        offer = await client.offer()
        async with (
            serving(access=access, per_client=1) as server,
            aiohttp.ClientSession(
                server.url, headers={"Authorization": "Bearer secret", "Host": "cam.example.org"}
            ) as http,
        ):
            for address, status in (("203.0.113.1", 200), ("203.0.113.2", 200), ("203.0.113.1", 429)):
                async with http.post(
                    "/session", json={"sdp": offer}, headers={"X-Forwarded-For": address}
                ) as r:
                    assert r.status == status, await r.text()
            remotes = {live.remote for live in server.sessions.live.values()}
            assert remotes == {"203.0.113.1", "203.0.113.2"}
            async with http.get("/graphs", headers={"Origin": "https://cam.example.org"}) as r:
                assert r.status == 200, "its own page, through the proxy"
            async with http.get("/graphs", headers={"Host": "evil.example"}) as r:
                assert r.status == 403
        await client.pc.close()

    asyncio.run(main())


def test_rates_refill_and_forget():
    clock = ManualClock()
    rates = Rates(clock, 10)
    burst = round(10 * BURST_S)
    assert all(rates.take("a") == 0 for _ in range(burst))
    assert rates.take("a") == pytest.approx(0.1)
    assert rates.take("b") == 0, "each for oneself"
    clock.time += SECOND
    assert all(rates.take("a") == 0 for _ in range(10))
    assert rates.take("a") > 0
    for k in range(3 * REMEMBERED):
        rates.take(str(k))
    assert len(rates._left) <= REMEMBERED  # type: ignore[reportPrivateUsage]


@pytest.mark.net
def test_who_asks_too_often_is_told_when_to_ask_again():
    async def main() -> None:
        async with serving(access=Access(rate=5)) as server, aiohttp.ClientSession(server.url) as http:
            statuses: list[int] = []
            for _ in range(40):
                async with http.get("/health") as r:
                    statuses.append(r.status)
                    if r.status == 429:
                        assert int(r.headers["Retry-After"]) >= 1
            assert statuses[:15] == [200] * 15
            assert 429 in statuses

    asyncio.run(main())
