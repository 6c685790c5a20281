"""STUN and TURN: what clients are told, and a client that a real coturn relays."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import shutil
import socket
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import aiohttp
import pytest
from aiortc import RTCConfiguration, RTCIceServer, RTCPeerConnection
from aiortc.rtcconfiguration import RTCIceTransportPolicy
from client import Client, Colour, Tone, serving, until, within
from penstock.pipeline.clock import SECOND
from penstock.pipeline.stage import StageError
from penstock.pipeline.virtual_loop import run_virtual
from penstock.transport.ice import Ice, read_ice, with_public
from penstock.transport.stun_names import FRESH_S, RETRY_S, StunNames

SDP = {"Content-Type": "application/sdp"}


SECRET = "a shared secret"


def test_credentials_are_those_of_the_turn_rest_draft():
    ice = read_ice(["stun:stun.example.org", "turn:[2001:db8::1]:3478?transport=tcp"], secret=SECRET)
    user, password = ice.credential("kitchen", 1_700_000_000 * SECOND)
    assert user == "1700003600:kitchen"
    expected = hmac.new(SECRET.encode(), user.encode(), hashlib.sha1).digest()
    assert base64.b64decode(password) == expected
    assert SECRET not in repr(ice)
    stun, turn = ice.links("kitchen", 1_700_000_000 * SECOND)
    assert stun == '<stun:stun.example.org>; rel="ice-server"'
    assert f'username="{user}"; credential="{password}"; credential-type="password"' in turn


@pytest.mark.parametrize(
    "url", ["http://x", "stun:", "turn:host?transport=sctp", "turn:host:0", "stun:a b", "x"]
)
def test_a_wrong_ice_server_is_told(url: str):
    with pytest.raises(StageError, match="ICE server"):
        read_ice([url], secret=SECRET)


def test_turn_without_credentials_is_told():
    with pytest.raises(StageError, match="needs credentials"):
        read_ice(["turn:turn.example.org"])


def test_public_addresses_are_offered_beside_the_own():
    line = "a=candidate:abc 1 udp 2130706431 10.0.0.5 39019 typ host"
    answer = with_public(f"v=0\r\n{line}\r\na=end-of-candidates\r\n", ("203.0.113.7",))
    assert answer.splitlines()[2].endswith("203.0.113.7 39019 typ srflx raddr 10.0.0.5 rport 39019")
    assert len(answer.splitlines()) == 4


@contextmanager
def coturn() -> Generator[int]:
    """A TURN server on loopback that shares SECRET; its port."""
    program = shutil.which("turnserver") or shutil.which("turnserver", path="/usr/sbin:/usr/local/bin")
    if program is None:
        pytest.skip("needs coturn (apt install coturn)")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            *(program, "-n", "--use-auth-secret", f"--static-auth-secret={SECRET}", "--realm=penstock"),
            *("--listening-ip=127.0.0.1", "--relay-ip=127.0.0.1", f"--listening-port={port}"),
            *("--allow-loopback-peers", "--cli-password=x", "--no-cli", "--no-tls", "--no-dtls"),
            *("--log-file=stdout", "--pidfile=/dev/null", "--min-port=49500", "--max-port=49999"),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield port
    finally:
        process.terminate()
        process.wait(10)


class Relayed(Client):
    """A client that can only be reached through TURN."""

    def __init__(self, servers: list[dict[str, Any]]) -> None:
        super().__init__()
        self.pc = RTCPeerConnection(
            RTCConfiguration(
                iceServers=[RTCIceServer(**server) for server in servers],
                iceTransportPolicy=RTCIceTransportPolicy.RELAY,
            )
        )
        self.channel = self.pc.createDataChannel("penstock")
        self.channel.on("open", self.opened.set)
        self.channel.on("message", self._message)
        self.pc.on("track", self._track)


@pytest.mark.net
@pytest.mark.slow
def test_a_client_is_relayed_by_coturn_with_credentials_of_ours():
    async def main(port: int) -> None:
        ice = read_ice([f"turn:127.0.0.1:{port}?transport=udp"], secret=SECRET)
        async with serving(ice=ice) as server, aiohttp.ClientSession(server.url) as http:
            async with http.get("/ice-servers") as r:
                told = await r.json()
            assert told["ttl_s"] == 3600
            client: Client = Relayed(told["iceServers"])
            for _ in range(50):  # until it listens
                client = Relayed(told["iceServers"])
                client.pc.addTrack(Colour())
                client.pc.addTrack(Tone())
                if " typ relay" in await client.offer():
                    break
                await client.pc.close()
                await asyncio.sleep(0.1)
            offer = await client.offer()
            assert " typ host" not in offer
            await client.connect(server.url)
            await within(client.tracks["video"].recv(), 20)
            client.say({"v": 1, "type": "ping", "id": 1})
            await client.heard("pong")
            await client.pc.close()
            await until(lambda: not server.sessions.live)

            wrong = Relayed([told["iceServers"][0] | {"credential": "wrong"}])
            wrong.pc.addTrack(Tone())
            assert " typ relay" not in await wrong.offer()
            await wrong.pc.close()

            async with http.post("/whip/loopback", data=await plain_offer(), headers=SDP) as r:
                (link,) = r.headers.getall("Link")
                assert link.startswith(f'<turn:127.0.0.1:{port}?transport=udp>; rel="ice-server"; username="')

    with coturn() as port:
        asyncio.run(main(port))


async def plain_offer() -> str:
    client = Client()
    try:
        return await client.offer()
    finally:
        await client.pc.close()


@pytest.mark.net
def test_a_dead_stun_server_does_not_hold_up_the_answer():
    async def main() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as deaf:
            deaf.bind(("127.0.0.1", 0))
            ice = Ice(stun=(f"stun:127.0.0.1:{deaf.getsockname()[1]}",))
            async with serving(ice=ice) as server:
                client = Client()
                loop = asyncio.get_running_loop()
                start = loop.time()
                await client.connect(server.url)
                assert loop.time() - start < 4  # aioice alone waits 5 s
                await client.pc.close()

    asyncio.run(main())


def test_a_name_is_looked_up_once_for_all_and_a_dead_name_server_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
):
    async def main() -> None:
        loop = asyncio.get_running_loop()
        asked: list[str] = []
        answer = asyncio.Event()

        async def getaddrinfo(host: str, *_: object, **__: object) -> list[Any]:
            asked.append(host)
            await answer.wait()
            if host == "nowhere.example":
                raise socket.gaierror("no such name")
            return [(socket.AF_INET, socket.SOCK_DGRAM, 0, "", ("192.0.2.7", 0))]

        monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
        names = StunNames()
        assert await names.address("192.0.2.1", 0.5) == "192.0.2.1"
        start = loop.time()
        assert await asyncio.gather(*(names.address("stun.example", 0.5) for _ in range(9))) == [None] * 9
        assert loop.time() - start < 2
        assert asked == ["stun.example"]
        answer.set()
        assert await names.address("stun.example", 0.5) == "192.0.2.7"
        assert asked == ["stun.example"]
        assert await names.address("nowhere.example", 0.5) is None
        assert await names.address("nowhere.example", 0.5) is None
        assert asked == ["stun.example", "nowhere.example"], "not again at once"
        await asyncio.sleep(max(FRESH_S, RETRY_S) + 1)
        assert await names.address("stun.example", 0.5) == "192.0.2.7"
        assert len(asked) == 3

    run_virtual(main())
