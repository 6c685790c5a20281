"""Media through real encoders and back: what comes out is what went in, when it went in."""

import asyncio
import contextlib
import itertools
import os
import socket
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import Collected, FakeContext, feed
from penstock.pipeline.clock import MS, SECOND, MonotonicClock
from penstock.pipeline.frame import AudioFrame, Frame, TokenFrame, VideoFrame
from penstock.pipeline.stage import Stage, StageError
from penstock.pipeline.units import AudioFormat, Nanoseconds, VideoFormat
from penstock.transport.file_ends import sink, source
from penstock.transport.file_in import FileIn, FileInOptions
from penstock.transport.file_out import FileOut
from penstock.transport.synthetic import BEEP, SyntheticIn, SyntheticOptions

SMALL = VideoFormat(96, 64, 30.0)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        return


def context(*ports: str) -> FakeContext:
    made = FakeContext(MonotonicClock(), realtime=False)
    made.connected = frozenset(ports or ("video", "audio", "text"))
    return made


def read(path: Path | str, *ports: str, **options: Any) -> tuple[Collected, FakeContext]:
    """All that file.in gives, and what it told its session."""
    stage, out = FileIn(FileInOptions(path=str(path), **options)), Collected()
    stage.ctx = ctx = context(*ports)

    async def main() -> None:
        try:
            await stage.setup()
            await stage.run(out)
        finally:
            await stage.close()

    asyncio.run(main())
    return out, ctx


def write(paths: list[Path], frames: list[tuple[str, Frame]], *ports: str, finish: bool = True) -> None:
    stage, out = FileOut(paths=[str(p) for p in paths]), Collected(source="asr.commit")
    stage.ctx = context(*ports)

    async def main() -> None:
        try:
            await stage.setup()
            for port, frame in frames:
                await feed(stage, port, frame, out)
            if finish:
                await stage.finish(out)
        finally:
            await stage.close()

    asyncio.run(main())


def synthetic(seconds: float, video: VideoFormat = SMALL, rate_hz: int = 16_000) -> list[tuple[str, Frame]]:
    options = SyntheticOptions(
        duration=Nanoseconds(seconds * SECOND), video=video, audio=AudioFormat(rate_hz)
    )
    stage, out = SyntheticIn(options), Collected()
    stage.ctx = context()
    asyncio.run(stage.run(out))
    return out.frames


def flashes(frames: list[VideoFrame]) -> list[int]:
    """pts of the pictures where the white square comes."""
    lit = [float(f.image[1:6, 1:10].mean()) > 128 for f in frames]
    return [f.pts for f, now, before in zip(frames, lit, [False, *lit], strict=False) if now and not before]


def beeps(frames: list[AudioFrame]) -> list[int]:
    """pts of the samples where sound begins after at least half a second of silence."""
    out: list[int] = []
    quiet_since = -SECOND
    for frame in frames:
        loud = np.flatnonzero(np.abs(frame.pcm[:, 0]) > 1500)
        if len(loud):
            first = frame.pts + int(loud[0]) * SECOND // frame.rate_hz
            if first - quiet_since > SECOND // 2:
                out.append(first)
            quiet_since = frame.pts + int(loud[-1]) * SECOND // frame.rate_hz
    return out


def test_the_synthetic_source_flashes_when_it_beeps() -> None:
    frames = synthetic(2.5)
    pictures = [f for _, f in frames if isinstance(f, VideoFrame)]
    sounds = [f for _, f in frames if isinstance(f, AudioFrame)]
    assert len(pictures) == 75
    assert sum(len(f.pcm) for f in sounds) == 40_000
    assert flashes(pictures) == [0, SECOND, 2 * SECOND]
    assert [b // MS for b in beeps(sounds)] == [0, 1000, 2000]
    assert [f.pts for _, f in frames] == sorted(f.pts for _, f in frames)
    assert BEEP == 100 * MS


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm", "a.mov", "a.ts"])
def test_pictures_and_sound_come_back_in_step(tmp_path: Path, name: str) -> None:
    write([tmp_path / name], synthetic(3))
    assert [p.name for p in tmp_path.iterdir()] == [name]
    out, ctx = read(tmp_path / name, format="rgb24", audio=AudioFormat(16_000))
    pictures, sounds = out.of("video"), out.of("audio")
    assert ctx.events == []
    assert len(pictures) == 90
    assert pictures[0].image.shape == (64, 96, 3)
    steps = np.diff([f.pts for f in pictures])
    assert abs(steps - SECOND / 30).max() < 2 * MS
    for flash, beep in zip(flashes(pictures), beeps(sounds), strict=True):
        assert abs(flash - beep) < 34 * MS, "within one picture"
    assert sum(len(f.pcm) for f in sounds) == pytest.approx(48_000, abs=2_500)
    times = [f.pts for _, f in out.frames]
    assert max((a - b for a, b in itertools.pairwise(times)), default=0) < 100 * MS, "interleaved"


@pytest.mark.parametrize(
    ("name", "exact"),
    [("a.wav", True), ("a.flac", True), ("a.mp3", False), ("a.m4a", False), ("a.opus", False)],
)
def test_sound_files_come_back(tmp_path: Path, name: str, exact: bool) -> None:
    frames = synthetic(2)
    write([tmp_path / name], frames)
    out, _ = read(tmp_path / name, audio=AudioFormat(16_000))
    before = np.concatenate([f.pcm for _, f in frames if isinstance(f, AudioFrame)])
    after = np.concatenate([f.pcm for f in out.of("audio")])
    if exact:
        assert np.array_equal(before, after)
    else:
        assert [b / SECOND for b in beeps(out.of("audio"))] == pytest.approx([0, 1], abs=0.06)
        assert len(after) == pytest.approx(len(before), abs=2_500)


def test_uneven_times_are_kept(tmp_path: Path) -> None:
    times = [0, 33 * MS, 100 * MS, 900 * MS, 933 * MS, 2000 * MS]
    frames: list[tuple[str, Frame]] = [
        ("video", VideoFrame(pts=t, image=np.full((48, 64, 3), 40 * n, np.uint8)))
        for n, t in enumerate(times)
    ]
    for name in ("a.mp4", "a.mkv"):
        write([tmp_path / name], frames, "video")
        out, _ = read(tmp_path / name, format="rgb24")
        shown = out.of("video")
        assert [f.pts / MS for f in shown] == pytest.approx([t / MS for t in times], abs=1)
        assert [int(f.image.mean()) for f in shown] == pytest.approx([40 * n for n in range(6)], abs=4)


@pytest.mark.parametrize("format", ["rgb24", "i420"])
def test_odd_sizes_are_padded_not_refused(tmp_path: Path, format: str) -> None:
    frames: list[tuple[str, Frame]] = [("video", VideoFrame(pts=0, image=np.full((33, 47, 3), 90, np.uint8)))]
    write([tmp_path / "a.mkv"], frames, "video")
    out, _ = read(tmp_path / "a.mkv", format=format)
    (frame,) = out.of("video")
    assert (frame.width, frame.height, frame.format) == (48, 34, format)


def test_pictures_are_fitted_and_thinned_to_the_wanted_format(tmp_path: Path) -> None:
    write([tmp_path / "a.mp4"], synthetic(1, VideoFormat(320, 160, 50.0)), "video")
    out, _ = read(tmp_path / "a.mp4", video=VideoFormat(160, 160, 30.0))
    assert {(f.width, f.height) for f in out.of("video")} == {(160, 80)}
    assert len(out.of("video")) == 30
    out, _ = read(tmp_path / "a.mp4", video=VideoFormat(640, 480, 0.0))
    assert {(f.width, f.height) for f in out.of("video")} == {(320, 160)}, "never enlarged"
    assert len(out.of("video")) == 50


def test_late_speech_is_placed_by_its_time_and_gaps_are_silent(tmp_path: Path) -> None:
    tone = (8000 * np.sin(np.arange(8_000) * 0.2)).astype(np.int16)[:, None]
    frames: list[tuple[str, Frame]] = [
        ("audio", AudioFrame(pts=2 * SECOND, pcm=tone, rate_hz=16_000)),
        ("audio", AudioFrame(pts=2 * SECOND, pcm=tone, rate_hz=16_000)),  # too early: played after the first
        ("audio", AudioFrame(pts=5 * SECOND, pcm=tone, rate_hz=16_000)),
    ]
    write([tmp_path / "a.wav"], frames)
    out, _ = read(tmp_path / "a.wav", audio=AudioFormat(16_000))
    pcm = np.concatenate([f.pcm for f in out.of("audio")])[:, 0]
    assert len(pcm) == 5 * 16_000 + 8_000
    assert not pcm[: 2 * 16_000].any()
    assert np.array_equal(pcm[32_000:48_000], np.concatenate([tone, tone])[:, 0])
    assert not pcm[48_000:80_000].any()


def test_a_rate_that_the_encoder_lacks_is_resampled(tmp_path: Path) -> None:
    write([tmp_path / "a.opus"], synthetic(2, rate_hz=22_050))
    out, _ = read(tmp_path / "a.opus", audio=AudioFormat(48_000, 2))
    assert [b / SECOND for b in beeps(out.of("audio"))] == pytest.approx([0, 1], abs=0.06)
    assert out.of("audio")[0].pcm.shape == (960, 2)


@pytest.mark.parametrize("kind", ["mkv", "mp4"])
def test_a_file_read_for_its_pictures_may_have_more_sound(tmp_path: Path, kind: str) -> None:
    frames = [(port, frame) for port, frame in synthetic(4) if port == "audio" or frame.pts < 2 * SECOND]
    write([tmp_path / f"a.{kind}"], frames)
    for ports in (["video"], ["audio"], ["video", "audio"]):
        _, ctx = read(tmp_path / f"a.{kind}", *ports)
        assert not [fields for name, fields in ctx.events if name == "warning"], ports


def test_a_truncated_file_gives_what_is_there_then_warns(tmp_path: Path) -> None:
    write([tmp_path / "a.mkv", tmp_path / "a.mp4"], synthetic(4))
    data = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(data[: len(data) // 2])
    out, ctx = read(tmp_path / "cut.mkv")
    assert 30 < len(out.of("video")) < 100
    for told in (ctx, read(tmp_path / "cut.mkv", "video")[1]):
        assert any("of 4.0" in str(f["message"]) and "cut short" in str(f["message"]) for _, f in told.events)
    data = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[:300])
    with pytest.raises(StageError, match=r"cut\.mp4.*neither pictures nor sound"):
        read(tmp_path / "cut.mp4")


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "letter.mp4").write_text("dear sir or madam" * 50)
    for path, words in [
        (tmp_path / "missing.mp4", "no file"),
        (tmp_path, "is a folder"),
        (tmp_path / "letter.mp4", "not media"),
        ("/dev/video97", "no device"),
    ]:
        with pytest.raises(StageError, match=words):
            read(path)


def test_what_cannot_be_written_is_named_before_anything_runs(tmp_path: Path) -> None:
    for path, words in [
        (tmp_path / "no" / "a.mp4", "cannot write.*No such file"),
        (tmp_path / "no" / "a.vtt", "cannot write.*No such file"),
        (tmp_path / "a.xyz", r"files are \.mp4"),
    ]:
        with pytest.raises(StageError, match=words):
            write([path], [])
    with pytest.raises(StageError, match="the graph has none"):
        write([tmp_path / "a.wav"], [], "video")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StageError, match="Permission denied"):
        write([tmp_path / "a.mp4"], [])


def test_nothing_in_leaves_no_file(tmp_path: Path) -> None:
    write([tmp_path / "a.mp4"], [])
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_run_leaves_a_valid_file_and_a_killed_one_a_playable_part(tmp_path: Path) -> None:
    frames = synthetic(3)
    write([tmp_path / "a.mp4"], frames, finish=False)
    assert len(read(tmp_path / "a.mp4")[0].of("video")) >= 85, "at most what was not yet encoded is lost"

    stage, out = FileOut(paths=[str(tmp_path / "k.mkv")]), Collected()
    stage.ctx = context()

    async def main() -> None:
        await stage.setup()
        for port, frame in frames:
            await feed(stage, port, frame, out)
        await asyncio.gather(*stage._pending)  # pyright: ignore[reportPrivateUsage]
        data = (tmp_path / "k.part.mkv").read_bytes()  # as SIGKILL would leave it
        await stage.close()
        (tmp_path / "left.mkv").write_bytes(data)

    asyncio.run(main())
    assert len(read(tmp_path / "left.mkv")[0].of("video")) > 5


def test_text_goes_to_text_files_and_media_to_media(tmp_path: Path) -> None:
    said: tuple[str, Frame] = ("text", TokenFrame(pts=SECOND, until=2 * SECOND, text="hello"))
    write([tmp_path / "a.mp4", tmp_path / "a.vtt"], [*synthetic(1), said])
    assert "00:00:01.000 --> 00:00:02.000\nhello" in (tmp_path / "a.vtt").read_text()
    assert len(read(tmp_path / "a.mp4")[0].of("video")) == 30


def test_rotated_video_comes_upright(tmp_path: Path) -> None:
    """A telephone's portrait video: stored lying down, with a matrix that says so."""
    upright = np.zeros((96, 64, 3), np.uint8)
    upright[:48] = 220  # bright at the top
    lying = np.ascontiguousarray(np.rot90(upright, 3))
    path = tmp_path / "a.mp4"
    write([path], [("video", VideoFrame(pts=n * 33 * MS, image=lying)) for n in range(3)], "video")
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # ISO 14496-12 8.3.2: the matrix of a version 0 box
    one = 1 << 16
    quarter = (0, -one, 0, one, 0, 0, 0, 0, 1 << 30)
    data[at : at + 36] = b"".join((v & 0xFFFFFFFF).to_bytes(4, "big") for v in quarter)
    path.write_bytes(data)
    out, _ = read(path, format="rgb24")
    frame = out.of("video")[0]
    assert (frame.width, frame.height) == (64, 96)
    assert frame.image[:40].mean() > 180
    assert frame.image[56:].mean() < 40


def test_progress_tells_position_and_length(tmp_path: Path) -> None:
    write([tmp_path / "a.mp4"], synthetic(2))
    told: list[tuple[int, int]] = []
    for path in (str(tmp_path / "a.mp4"), "synthetic:2s"):
        told.clear()
        made: Stage = source(path, lambda pts, length: told.append((pts, length)))(
            FileInOptions(video=SMALL), None
        )
        made.ctx = context()

        async def main(stage: Stage = made) -> None:
            await stage.setup()
            await stage.run(Collected())
            await stage.close()

        asyncio.run(main())
        assert told[-1][0] == pytest.approx(2 * SECOND, abs=0.1 * SECOND)
        assert told[-1][1] == pytest.approx(2 * SECOND, abs=0.1 * SECOND)


def test_ends_refuse_what_they_do_not_know() -> None:
    with pytest.raises(StageError, match="is not a duration"):
        source("synthetic:soon")
    with pytest.raises(StageError, match=r"cannot write 'a\.doc'"):
        sink(["a.doc"])


@pytest.mark.net
def test_http_is_read_like_a_file_and_an_error_is_told(tmp_path: Path) -> None:
    write([tmp_path / "a.mp4"], synthetic(1))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        out, _ = read(f"{url}/a.mp4")
        assert len(out.of("video")) == 30
        with pytest.raises(StageError, match=r"cannot open 'http.*missing\.mp4'"):
            read(f"{url}/missing.mp4")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.net
def test_a_live_stream_is_read_from_its_first_frame(tmp_path: Path) -> None:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    write([tmp_path / "a.ts"], synthetic(2))
    data = (tmp_path / "a.ts").read_bytes()
    with socket.create_server(("127.0.0.1", port)) as server:

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                peer.sendall(data)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        out, _ = read(f"tcp://127.0.0.1:{port}")
        thread.join()
    assert len(out.of("video")) >= 59
    assert out.frames[0][1].pts == 0


@pytest.mark.net
def test_an_address_where_nobody_answers_is_told() -> None:
    with contextlib.closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        with pytest.raises(StageError, match="cannot open 'rtsp"):
            read(f"rtsp://127.0.0.1:{port}/cam", timeout="1s")


def test_a_damaged_middle_is_skipped_not_fatal(tmp_path: Path) -> None:
    write([tmp_path / "a.mkv"], synthetic(4))
    data = bytearray((tmp_path / "a.mkv").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 200] = bytes(200)
    (tmp_path / "b.mkv").write_bytes(data)
    out, _ = read(tmp_path / "b.mkv")
    assert len(out.of("video")) > 40
