"""Which sources a caller of the API may name."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest
from client import serving, until
from graphs import compile_test
from hypothesis import given
from hypothesis import strategies as st
from penstock.pipeline.stage import StageError
from penstock.transport.sources import Sources

ALLOWED = [
    "rtsp://10.1.0.0/16",
    "rtsp://[2001:db8::]/32",
    "https://cameras.example.org/live/",
    "http://nvr:8000",
    "/dev/video0",
]


@pytest.mark.parametrize(
    "source",
    [
        "rtsp://10.1.2.3/stream",
        "rtsp://user:pass@10.1.2.3:8554/stream?x=1",
        "rtsp://[2001:db8::7]/stream",
        "https://cameras.example.org/live/door.m3u8",
        "http://nvr:8000/any",
        "/dev/video0",
    ],
)
def test_listed_sources_are_taken(source: str):
    assert Sources(ALLOWED).check(source) == source


@pytest.mark.parametrize(
    "source",
    [
        "rtsp://10.2.0.1/stream",
        "rtsp://localhost/stream",
        "rtsp://10.1.0.1.evil.example/x",
        "rtsp://167837953/x",  # 10.1.1.1 as one number: FFmpeg would read it
        "rtsp://10.1.1/x",
        "rtsp://0x0a010101/x",
        "http://10.1.2.3/x",  # another scheme
        "https://cameras.example.org/live/../secret",
        "https://cameras.example.org/live/%2e%2e/secret",
        "https://cameras.example.org/lively",
        "https://cameras.example.org:444x/live/",
        "https://evil@cameras.example.org@evil.example/live/x",
        "https://cameras.example.org\\@evil.example/live/x",
        "http://nvr:8001/any",
        "concat:rtsp://10.1.2.3/a|file:///etc/passwd",
        "file:///etc/passwd",
        "data://text/plain,x",
        "/etc/passwd",
        "/dev/video1",
        "relative.mp4",
        "../../etc/passwd",
        "rtsp://10.1.2.3/\n",
        "",
        "x" * 5000,
    ],
)
def test_all_else_is_refused(source: str):
    with pytest.raises(StageError, match="source"):
        Sources(ALLOWED).check(source)


def test_a_folder_holds_what_links_point_to(tmp_path: Path):
    media = tmp_path / "media"
    media.mkdir()
    (media / "a.mp4").touch()
    (tmp_path / "secret").touch()
    (media / "link").symlink_to(tmp_path / "secret")
    sources = Sources([str(media)])
    assert sources.check(str(media / "a.mp4")) == str(media / "a.mp4")
    for wrong in (media / "link", media / "../secret", tmp_path / "media2/x", tmp_path / "secret"):
        with pytest.raises(StageError, match="not allowed"):
            sources.check(str(wrong))


@given(st.text(max_size=100) | st.text(max_size=60).map("rtsp://10.1.".__add__))
def test_without_a_list_nothing_is_taken(source: str):
    with pytest.raises(StageError):
        Sources().check(source)


@pytest.mark.parametrize(
    "entry", ["/", "media", "rtsp://10.1.0.1/16", "ftp://x/", "rtsp://u:hunter2@x/", "rtsp:///x", "*"]
)
def test_a_wrong_entry_is_told_without_its_password(entry: str):
    with pytest.raises(StageError, match="allowed source") as caught:
        Sources([entry])
    assert "hunter2" not in str(caught.value)


FILE = """
penstock: 1
graph: door
nodes:
  cam: {use: file.in, path: /nowhere.mp4}
  out: {use: test.sink, in: cam.audio}
"""
TONE = """
penstock: 1
graph: tone
nodes:
  cam: {use: synthetic.in}
  out: {use: test.sink, in: cam.audio}
"""


@pytest.mark.net
def test_a_graph_is_started_over_the_api_on_a_listed_source_only(tmp_path: Path):
    import wave

    with wave.open(str(tmp_path / "a.wav"), "wb") as sink:
        sink.setparams((1, 2, 16_000, 0, "NONE", ""))
        sink.writeframes(bytes(96_000))
    plans = {"door": compile_test(FILE), "tone": compile_test(TONE)}

    async def main() -> None:
        async with serving(plans) as server, aiohttp.ClientSession(server.url) as http:

            async def start(graph: str, source: str) -> tuple[int, str]:
                async with http.post("/sessions", json={"graph": graph, "source": source}) as r:
                    return r.status, await r.text()

            wav = str(tmp_path / "a.wav")
            assert (await start("door", wav))[0] == 409
            server.desk.headless.sources = Sources([str(tmp_path), "rtsp://127.0.0.1:1"])
            status, said = await start("door", wav)
            assert status == 201, said
            (live,) = server.desk.headless.live.values()
            await until(lambda: live.session.runners["out"].processed > 3)
            status, said = await start("door", "rtsp://user:hunter2@127.0.0.1:1/x")
            assert status == 409
            assert "hunter2" not in said
            status, said = await start("tone", wav)
            assert status == 409
            assert "0 nodes file.in" in said

    asyncio.run(main())
