"""`penstock top`: what it reads from a server, what it shows, what it says when there is none."""

from __future__ import annotations

import asyncio
import io
import json
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from client import serving, until
from graphs import STAGES, compile_test
from penstock.pipeline.clock import SECOND, MonotonicClock
from penstock.pipeline.frame import Frame, TokenFrame
from penstock.pipeline.rows import Row
from penstock.pipeline.stage import In, Out, Outputs, Ports, Stage, StageError
from penstock.pipeline.top import _focus, picture, watch  # pyright: ignore[reportPrivateUsage]
from penstock.transport.access import Access
from penstock.transport.remote import Remote
from rich.console import Console
from row_models import Counting


class Summing(Stage):
    """Sends one row for each token."""

    ports = Ports(inputs={"text": In(TokenFrame)}, outputs={"text": Out(TokenFrame, "token")})
    degrade = ("steps-1", "passthrough")

    async def setup(self) -> None:
        self.state = {"sum": 0}
        await self.ctx.pool().load("count", Counting)

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        total = await self.ctx.pool().run("count", Row({"n": 1}, state=self.state))
        await out.send("text", TokenFrame(pts=frame.pts, text=str(total)))


GRAPH = """
penstock: 1
graph: sums
nodes:
  src:  {use: test.tokens, frames: 100000}
  sums: {use: test.summing, in: src.text}
  out:  {use: test.sink, in: {text: [sums.text]}}
"""


@pytest.fixture(autouse=True)
def _stage() -> Any:  # pyright: ignore[reportUnusedFunction]
    STAGES["test.summing"] = Summing
    yield
    del STAGES["test.summing"]


def shown(snapshot: dict[str, Any], width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(picture(snapshot))
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.net
def test_it_shows_sessions_nodes_and_pools_of_a_running_server(capsys: pytest.CaptureFixture[str]) -> None:
    async def main() -> dict[str, Any]:
        async with serving({"sums": compile_test(GRAPH)}, access=Access(token="sesame")) as server:
            headers = {"Authorization": "Bearer sesame"}
            async with aiohttp.ClientSession(server.url, headers=headers) as http:
                await http.post("/sessions", json={"graph": "sums"})
            (live,) = server.desk.running()
            server.sessions.graphs["gone"] = live.session.plan  # type: ignore[index]
            server.sessions.broken["gone"] = "node 'cam': no camera"
            await until(lambda: live.session.runners["sums"].processed > 3)
            async with Remote(server.url, "sesame") as daemon:
                snapshot = await daemon.snapshot()
            with pytest.raises(StageError, match="asks for a token: give --token"):
                async with Remote(server.url) as daemon:
                    await daemon.snapshot()
            with pytest.raises(StageError, match="the token is not known there, has expired or was revoked"):
                async with Remote(server.url, "wrong") as daemon:
                    await daemon.snapshot()
            console = Console(file=io.StringIO())
            clock = MonotonicClock()
            await watch(server.url, "sesame", clock, console, every=SECOND, once=True, as_json=True)
            return snapshot

    snapshot = asyncio.run(main())
    (session,) = snapshot["sessions"]
    assert [node["name"] for node in session["nodes"]] == ["src", "sums", "out"]
    assert session["nodes"][1]["pool"] == "main"
    assert session["nodes"][1]["levels"] == 2
    assert snapshot["pools"]["main"]["rows"]["done"] > 0
    assert sum(snapshot["pools"]["main"]["batches"].values()) == snapshot["pools"]["main"]["forwards"]
    text = shown(snapshot)
    for word in ("1 session ", "sums", "0/2", "main thread", "loop lag"):
        assert word in text
    assert json.loads(capsys.readouterr().out)["server"]["sessions"] == 1
    assert snapshot["broken"] == {"gone": "node 'cam': no camera"}


def test_an_empty_server_and_a_crowded_one_are_shown() -> None:
    server = {"url": "http://x", "sessions": 0, "loop_lag_ms": 0.0, "longest_block_ms": 0.0}
    empty = {
        "server": server,
        "sessions": [],
        "pools": {},
        "broken": {"door": "node 'cam': no device '/dev/video7'"},
    }
    assert "no session runs\ndoor cannot start: node 'cam': no device '/dev/video7'" in shown(empty)
    assert "and 40 more sessions" in shown({"server": server | {"sessions": 40}, "sessions": [], "pools": {}})


def test_who_only_watches_is_counted_for_the_server_and_each_session_at_80_columns() -> None:
    node = {
        "name": "out", "fps": 14.2, "age_ms": 120.0, "age_p95_ms": 233.0, "queue": 0, "drops": 0, "late": 0,
        "busy_pct": 1.0, "state": "running", "level": 0, "levels": 0, "restarts": 0,
    }  # fmt: skip
    session = {
        "graph": "studio", "id": "s-0123456789abcdef", "kind": "client", "remote": "192.168.100.101", "state": "connected",
        "up_s": 3723.0, "viewers": 12, "nodes": [node],
    }  # fmt: skip
    alone = session | {"id": "h-1", "kind": "headless", "remote": "", "state": "running", "viewers": 0}
    server = {
        "url": "http://127.0.0.1:8080", "sessions": 2, "viewers": 12, "loop_lag_ms": 0.0, "longest_block_ms": 0.0
    }  # fmt: skip
    lines = (
        shown({"server": server, "sessions": [session, alone], "pools": {}}, 80)
        .replace("\xa0", " ")
        .splitlines()
    )
    assert lines[0].startswith("penstock  http://127.0.0.1:8080  2 sessions, 12 viewers  loop lag 0 ms")
    studios = [line for line in lines if line.startswith("studio")]
    assert studios[0].startswith("studio  12 viewers  s-0123456789  client 192.168.100.101  connected")
    assert studios[1].startswith("studio  h-1  headless  running  up 1:02:03")


def test_it_says_what_a_sender_was_told() -> None:
    track = {"track": "video", "kbps": 78.6, "expected": 0.91, "gain_per_kbps": 0.002, "why": "deadline"}
    told = {
        "sender": "x264", "fps": 2.0, "kbps": 79, "why": "deadline", "dqp": 24.0, "source": "boxes", "tracks": [track]
    }  # fmt: skip
    why = "its largest picture has to come in time"
    assert _focus(told) == f"  sees 2/s, video 79 kb/s for 91% right ({why}), 24 steps by boxes"
    context = track | {"track": "context", "kbps": 19.2, "why": "enough"}
    assert "; context 19 kb/s for 91% right (more would not help)" in _focus(
        told | {"tracks": [track, context]}
    )
    assert _focus(told | {"kbps": 0, "dqp": 0.0}) == "  sees 2/s, any rate"
    assert _focus(told | {"sender": "none"}) == _focus(None) == ""


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (404, "is no Penstock server: it answers /sessions with 404"),
        (502, "answers /sessions with 502: the server behind it is away"),
    ],
)
def test_a_proxy_whose_server_is_away_is_told_from_another_service(status: int, words: str) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, text="<html>")

    async def main() -> None:
        app = web.Application()
        app.router.add_get("/sessions", answer)
        async with TestServer(app) as proxy, Remote(str(proxy.make_url("/"))) as daemon:
            await daemon.snapshot()

    with pytest.raises(StageError, match=words):
        asyncio.run(main())


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:9", r"no server answers at \S+ \(Connection refused\)"),
        ("ftp://127.0.0.1", "no address of a server"),
    ],
)
def test_where_no_server_answers_that_is_said(url: str, words: str) -> None:
    async def main() -> None:
        async with Remote(url) as daemon:
            await daemon.snapshot()

    with pytest.raises(StageError, match=words):
        asyncio.run(main())
