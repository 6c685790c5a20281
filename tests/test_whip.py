"""WHIP and WHEP as RFC 9725 has them, trickle, CORS, and ICE servers: by hand, by FFmpeg, through a real coturn."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path

import aiohttp
import av
import pytest
from aiortc import RTCSessionDescription
from client import Client, serving, until, within
from hypothesis import given
from hypothesis import strategies as st
from penstock.transport.access import Access
from penstock.transport.offer import OfferError
from penstock.transport.trickle import SDPFRAG, parse_fragment

SDP = {"Content-Type": "application/sdp"}
APP = "https://app.example.org"


def split(offer: str) -> tuple[str, str]:
    """The offer without candidates, and the fragment with those of its first section."""
    lines = offer.splitlines()
    ufrag = next(line for line in lines if line.startswith("a=ice-ufrag:"))
    candidates = list(dict.fromkeys(line for line in lines if line.startswith("a=candidate:")))
    kept = [line for line in lines if not line.startswith(("a=candidate:", "a=end-of-candidates"))]
    fragment = [ufrag, "m=audio 9 UDP/TLS/RTP/SAVPF 0", "a=mid:0", *candidates, "a=end-of-candidates"]
    return "\r\n".join(kept) + "\r\n", "\r\n".join(fragment) + "\r\n"


@pytest.mark.net
@pytest.mark.parametrize("kind", ["whip", "whep"])
def test_status_codes_of_a_session_whose_candidates_come_later(kind: str):
    async def main() -> None:
        async with serving() as server, aiohttp.ClientSession(server.url) as http:
            client = Client()
            client.pc.addTransceiver("video", direction="sendonly" if kind == "whip" else "recvonly")
            offer, fragment = split(await client.offer())
            assert "a=candidate" in fragment
            async with http.post(f"/{kind}/loopback", data=offer, headers=SDP) as r:
                assert r.status == 201
                location, etag, answer = r.headers["Location"], r.headers["ETag"], await r.text()
            assert etag.startswith('"')
            assert etag.endswith('"')
            patch = {"Content-Type": SDPFRAG, "If-Match": etag}
            other = fragment.replace("a=ice-ufrag:", "a=ice-ufrag:x")
            for headers, body, status in (
                ({"Content-Type": SDPFRAG}, fragment, 428),
                (patch | {"If-Match": '"other"'}, fragment, 412),
                (patch | {"Content-Type": "application/json"}, fragment, 415),
                (patch, "hello", 400),
                (patch, "", 400),
                (patch | {"If-Match": "*"}, fragment, 422),  # an ICE restart
                (patch, other, 422),
                (patch, fragment, 204),
            ):
                async with http.patch(location, data=body, headers=headers) as r:
                    assert r.status == status, (headers, await r.text())
            await client.pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
            await within(client.opened.wait())
            for method, path, status in (
                ("GET", f"/{kind}/loopback", 405),
                ("PUT", f"/{kind}/loopback", 405),
                ("GET", location, 405),
                ("DELETE", location.replace("loopback", "other"), 404),
                ("DELETE", location, 200),
            ):
                async with http.request(method, path) as r:
                    assert r.status == status, (method, path)
            await until(lambda: not server.sessions.live)
            async with http.delete(location) as r:
                assert r.status == 404
            await client.pc.close()

    asyncio.run(main())


@pytest.mark.net
def test_a_session_takes_candidates_that_come_after_the_offer():
    async def main() -> None:
        async with serving() as server, aiohttp.ClientSession(server.url) as http:
            client = Client()
            offer, fragment = split(await client.offer())
            async with http.post("/session", json={"sdp": offer}) as r:
                answer = await r.json()
            async with http.patch(
                f"/session/{answer['session']}", data=fragment, headers={"Content-Type": SDPFRAG}
            ) as r:
                assert r.status == 204
            await client.pc.setRemoteDescription(RTCSessionDescription(answer["sdp"], "answer"))
            await within(client.opened.wait())
            await client.pc.close()

    asyncio.run(main())


@pytest.mark.net
def test_only_allowed_origins_may_call_and_a_preflight_needs_no_token():
    async def main() -> None:
        access = Access("secret", origins=frozenset({APP}))
        asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        async with serving(access=access) as server, aiohttp.ClientSession(server.url) as http:
            async with http.options("/whip/loopback", headers={"Origin": APP} | asks) as r:
                assert r.status == 204
                assert r.headers["Access-Control-Allow-Origin"] == APP
                assert "PATCH" in r.headers["Access-Control-Allow-Methods"]
                assert "If-Match" in r.headers["Access-Control-Allow-Headers"]
            async with http.options("/whip/loopback", headers={"Origin": "https://evil.example"} | asks) as r:
                assert r.status == 401
                assert "Access-Control-Allow-Origin" not in r.headers
            token = {"Authorization": "Bearer secret"}
            async with http.get("/graphs", headers={"Origin": APP} | token) as r:
                assert r.status == 200
                assert r.headers["Access-Control-Allow-Origin"] == APP
                assert "Location" in r.headers["Access-Control-Expose-Headers"]
                assert r.headers["Vary"] == "Origin"
            async with http.get("/graphs", headers={"Origin": "https://evil.example"} | token) as r:
                assert r.status == 403
            async with http.options("/whip/loopback", headers=token) as r:
                assert (r.status, r.headers["Accept-Post"]) == (204, "application/sdp")

    asyncio.run(main())


@pytest.mark.net
def test_no_fragment_hurts_a_session_or_its_neighbour():
    pieces = [
        *(
            "a=candidate:1 1 udp 2122260223 192.0.2.1 9 typ host",
            "a=candidate:1 1 tcp 1 10.0.0.1 9 typ host tcptype active",
        ),
        *(
            "a=candidate:1 2 udp 1 ::1 9 typ srflx raddr x rport 9",
            "a=candidate:9 1 udp 1 255.255.255.255 0 typ relay",
        ),
        *(
            "a=candidate:1 1 udp 1 nobody-is-here.local 9 typ host",
            "a=mid:0",
            "a=mid:none",
            "m=video 0 x",
            "a=end-of-candidates",
        ),
        *("a=ice-ufrag:x", "a=ice-ufrag:", "a=ice-pwd:", "\0", "a=candidate:" + "1 " * 500, "m=" * 200),
    ]
    chance = random.Random(7)

    async def main() -> None:
        async with serving() as server, aiohttp.ClientSession(server.url) as http:
            target, neighbour = Client(), Client()
            for client in (target, neighbour):
                await client.connect(server.url)
            for _ in range(80):
                body = "\r\n".join(chance.choices(pieces, k=chance.randrange(1, 12)))
                path, headers = f"/session/{target.session}", {"Content-Type": SDPFRAG}
                async with http.patch(path, data=body, headers=headers) as r:
                    assert r.status in (204, 400, 422), (body, r.status)
            for client in (target, neighbour):
                client.say({"v": 1, "type": "ping", "id": 5})
                await client.heard("pong")
                await client.pc.close()
            await until(lambda: not server.sessions.live)

    asyncio.run(main())


# ---------------------------------------------------------------- FFmpeg


@pytest.mark.net
@pytest.mark.slow
@pytest.mark.skipif("whip" not in av.formats_available, reason="this build of PyAV has no WHIP muxer")
def test_ffmpeg_publishes_by_whip():
    async def main() -> None:
        async with serving(access=Access("secret")) as server:
            script = str(Path(__file__).with_name("whip_push.py"))
            pushing = await asyncio.create_subprocess_exec(
                *(sys.executable, script, f"{server.url}/whip/loopback", "secret", "4"),
                stderr=subprocess.PIPE,
            )
            try:
                await until(lambda: bool(server.sessions.live), 30)
                (live,) = server.sessions.live.values()
                seen: dict[str, int] = {}

                def media() -> bool:
                    if live.peer is not None:
                        seen.update({kind: t.counts["delivered"] for kind, t in live.peer.tracks.items()})
                    return seen.get("video", 0) > 15 and seen.get("audio", 0) > 30

                await until(media, 30)
                await until(lambda: not server.sessions.live, 30)  # it says goodbye by DELETE
                _, errors = await asyncio.wait_for(pushing.communicate(), 30)
                assert pushing.returncode == 0, errors.decode()[-2000:]
            finally:
                if pushing.returncode is None:
                    pushing.kill()
                    await pushing.wait()

    asyncio.run(main())


# ---------------------------------------------------------------- fragments


def test_a_fragment_is_read():
    found = parse_fragment(
        "a=ice-ufrag:EsAw\r\na=ice-pwd:P2uYro0UCOQ4zxjKXaWCBui1\r\nm=audio 9 RTP/AVP 0\r\na=mid:7\r\n"
        "a=candidate:1 1 udp 2122260223 192.0.2.1 61764 typ host\r\n"
        "a=candidate:2 1 udp 2122260223 abc.local 61765 typ host generation 0 ufrag EsAw\r\na=end-of-candidates\r\n"
    )
    assert found.ufrags == {"EsAw"}
    assert [(c.ip, c.port, c.sdpMid) for c in found.candidates] == [
        ("192.0.2.1", 61764, "7"),
        ("abc.local", 61765, "7"),
    ]
    assert found.end


def test_a_section_for_each_candidate_is_no_more_sections():
    """Simple clients send each candidate with its m= line; a machine with a few networks has a dozen."""
    part = "m=audio 9 RTP/AVP 0\r\na=mid:{}\r\na=candidate:1 1 udp 9 ::1 9 typ host\r\n"
    assert len(parse_fragment("".join(part.format(i % 3) for i in range(30))).candidates) == 30
    with pytest.raises(OfferError, match="9 sections and 9 candidates"):
        parse_fragment("".join(part.format(i) for i in range(9)))
    with pytest.raises(OfferError, match="9 sections"):
        parse_fragment("".join(part.replace("a=mid:{}\r\n", "") for _ in range(9)))


@pytest.mark.parametrize(
    "candidate",
    [
        "1 1 udp 1 evil.example.org 5 typ host",
        "1 1 udp 1 192.0.2.1 99999 typ host",
        "1 1 udp 1 192.0.2.1 5 typ x",
        "",
    ],
)
def test_a_wrong_candidate_is_told_with_its_line(candidate: str):
    with pytest.raises(OfferError, match="line 2"):
        parse_fragment(f"a=mid:0\r\na=candidate:{candidate}\r\n")


@given(
    st.text(max_size=300)
    | st.lists(
        st.sampled_from(
            [
                "a=candidate:1 1 udp 9 ::1 9 typ host",
                "m=x",
                "a=mid:",
                "a=end-of-candidates",
                "a=",
                "a=candidate: ",
            ]
        )
    ).map("\n".join)
)
def test_any_fragment_is_read_or_refused_in_words(text: str):
    try:
        parse_fragment(text)
    except OfferError as e:
        assert str(e)
