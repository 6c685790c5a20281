"""Sources and sinks that live elsewhere: RTSP, RTMP, SRT and HLS against real peers on this machine."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from fakes import Collected, FakeContext, feed
from harness.rtsp_server import RtspServer
from penstock.pipeline.clock import SECOND, MonotonicClock
from penstock.pipeline.frame import AudioFrame, VideoFrame
from penstock.pipeline.stage import StageError
from penstock.pipeline.units import AudioFormat
from penstock.transport.file_out import FileOut
from penstock.transport.media_reader import MediaReader

pytestmark = pytest.mark.net

FFMPEG = shutil.which("ffmpeg")


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def send(path: str, seconds: float = 3, *, realtime: bool = True, paced: bool = False) -> None:
    """Grey pictures that get brighter, and silence, to a file or URL. paced: as fast as a camera gives them."""

    async def main() -> None:
        stage, out = FileOut(paths=[path]), Collected()
        stage.ctx = context = FakeContext(MonotonicClock(), realtime=realtime)
        context.connected = frozenset({"video", "audio"})
        await stage.setup()
        try:
            for n in range(int(seconds * 25)):
                if paced:
                    await asyncio.sleep(1 / 25)
                image = np.full((64, 96, 3), 40 + n % 200, np.uint8)
                await feed(stage, "video", VideoFrame(pts=n * SECOND // 25, image=image), out)
                pcm = np.zeros((640, 1), np.int16)
                await feed(stage, "audio", AudioFrame(pts=n * SECOND // 25, pcm=pcm, rate_hz=16_000), out)
            await stage.finish(out)
        finally:
            await stage.close()

    asyncio.run(main())


def pictures_in(path: Path | str) -> int:
    with av.open(str(path)) as file:
        return sum(1 for _ in file.decode(video=0))


@contextmanager
def listener(url: str, to: Path, *options: str) -> Generator[subprocess.Popen[bytes]]:
    """FFmpeg as the far end that takes a stream and writes it down."""
    if FFMPEG is None:
        pytest.skip("needs ffmpeg (package ffmpeg)")
    process = subprocess.Popen(
        [FFMPEG, "-nostdin", "-loglevel", "error", "-y", *options, "-i", url, "-c", "copy", str(to)],
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def listening(port: int) -> None:
    """Wait until somebody listens on that TCP port, without connecting."""
    for _ in range(500):
        rows = Path("/proc/net/tcp").read_text().splitlines()[1:]
        if any(row.split()[1].endswith(f":{port:04X}") and row.split()[3] == "0A" for row in rows):
            return
        time.sleep(0.02)
    raise TimeoutError(port)


def test_an_rtmp_server_gets_every_picture(tmp_path: Path):
    port, got = free_port(), tmp_path / "got.mkv"
    with listener(f"rtmp://127.0.0.1:{port}/live/x", got, "-listen", "1") as far:
        listening(port)
        send(f"rtmp://127.0.0.1:{port}/live/x")
        far.wait(20)
    assert pictures_in(got) >= 70


def test_srt_carries_a_stream_both_ways(tmp_path: Path):
    port, got = free_port(socket.SOCK_DGRAM), tmp_path / "got.mkv"
    with listener(f"srt://127.0.0.1:{port}?mode=listener", got, "-f", "mpegts") as far:
        send(f"srt://127.0.0.1:{port}?mode=caller&connect_timeout=10000", paced=True)
        far.wait(20)
    assert pictures_in(got) >= 40
    assert FFMPEG is not None
    back = free_port(socket.SOCK_DGRAM)
    sender = subprocess.Popen(
        [FFMPEG, "-nostdin", "-loglevel", "error", "-re", "-stream_loop", "-1", "-i", str(got), "-c", "copy"]
        + ["-f", "mpegts", f"srt://127.0.0.1:{back}?mode=listener"]
    )
    try:
        reader = MediaReader(
            f"srt://127.0.0.1:{back}?mode=caller&connect_timeout=10000", None, AudioFormat(16_000)
        )
        seen = 0
        while seen < 10:
            frames = reader.read()
            assert frames is not None
            seen += sum(port == "video" for port, _ in frames)
        reader.close()
    finally:
        sender.kill()
        sender.wait()


def test_srt_without_a_far_end_is_told_in_words():
    if FFMPEG is None:
        pytest.skip("needs ffmpeg (package ffmpeg)")
    url = f"srt://127.0.0.1:{free_port(socket.SOCK_DGRAM)}?connect_timeout=300"
    with pytest.raises(StageError, match="cannot open 'srt://"):
        MediaReader(url, None, AudioFormat(16_000), timeout_s=5)


def test_srt_names_the_program_that_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(StageError, match="needs the program ffmpeg"):
        MediaReader("srt://127.0.0.1:1", None, AudioFormat(16_000))


def test_an_rtsp_camera_is_read(tmp_path: Path):
    send(str(tmp_path / "cam.ts"), 4, realtime=False)
    server = RtspServer(tmp_path / "cam.ts")
    try:
        reader = MediaReader(server.url, None, AudioFormat(16_000))
        assert reader.live
        seen: list[VideoFrame] = []
        while len(seen) < 20:
            frames = reader.read()
            assert frames is not None
            seen += [frame for _, frame in frames if isinstance(frame, VideoFrame)]
        reader.close()
    finally:
        server.close()
    assert all(a.pts < b.pts for a, b in pairwise(seen))


def test_hls_files_keep_all_and_a_live_list_its_newest(tmp_path: Path):
    whole, live = tmp_path / "whole.m3u8", tmp_path / "live/now.m3u8"
    live.parent.mkdir()
    send(str(whole), 8, realtime=False)
    assert "#EXT-X-ENDLIST" in whole.read_text()
    assert pictures_in(whole) == 200
    send(str(live), 24)
    segments = sorted(live.parent.glob("*.ts"))
    assert 3 <= len(segments) <= 8
    assert "now0.ts" not in [s.name for s in segments]  # what nobody may ask for any more is deleted
