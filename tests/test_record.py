"""Recordings: only with consent, playable whatever happens, never over their quota."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from fakes import Collected, FakeContext, feed
from penstock.pipeline.clock import MS, SECOND, ManualClock
from penstock.pipeline.frame import AudioFrame, TokenFrame, VideoFrame
from penstock.pipeline.session import SessionEvent
from penstock.pipeline.stage import SetParams, StageError
from penstock.transport.disk_room import IDLE, DiskRoom
from penstock.transport.record_stage import Record, RecordOptions, RecordParams, default_folder
from penstock.transport.recording import RETRY, Recording

ROOT = Path(__file__).parent.parent
GREY = np.full((48, 64, 3), 120, np.uint8)
HUSH = np.zeros((320, 1), np.int16)


def picture(at: int) -> VideoFrame:
    return VideoFrame(pts=at, image=GREY)


def sound(at: int) -> AudioFrame:
    return AudioFrame(pts=at, pcm=HUSH, rate_hz=16_000)


def pictures_in(path: Path) -> int:
    with av.open(str(path)) as file:
        return sum(1 for _ in file.decode(video=0))


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in (folder / "events.jsonl").read_text().splitlines()]


def stage(folder: Path, *, consent: bool = False, **options: Any) -> tuple[Record, FakeContext]:
    made = Record(RecordOptions(folder=str(folder), keep_free=0, **options), RecordParams(consent=consent))
    made.ctx = context = FakeContext(ManualClock())
    context.connected = frozenset({"video", "audio", "text"})
    return made, context


def room(root: Path, **more: Any) -> DiskRoom:
    given: dict[str, Any] = {"quota": 10**9, "keep_free": 0}
    return DiskRoom(root, **(given | more))


def test_nothing_is_kept_before_consent_and_nothing_after_it_is_withdrawn(tmp_path: Path):
    async def main() -> None:
        record, context = stage(tmp_path)
        out = Collected(source="asr.commit")
        await record.setup()
        await feed(record, "video", picture(0), out)
        await feed(record, "text", TokenFrame(pts=0, text="secret"), out)
        assert not os.listdir(tmp_path)
        await record.control(SetParams({"consent": True}))
        assert ("recording", {"on": True, "reason": ""}) in context.events
        for n in range(30):
            await feed(record, "video", picture(SECOND + n * 33 * MS), out)
            await feed(record, "audio", sound(SECOND + n * 20 * MS), out)
        await feed(record, "text", TokenFrame(pts=2 * SECOND, text="spoken"), out)
        context.listeners[0](SessionEvent("vad", "speech_start", {"p": 0.9}, 2 * SECOND))
        await record.control(SetParams({"consent": False}))
        assert context.events[-1] == ("recording", {"on": False, "reason": ""})
        await feed(record, "text", TokenFrame(pts=3 * SECOND, text="secret"), out)
        await record.close()
        folder = tmp_path / "s-test"
        assert pictures_in(folder / "0001.mkv") == 30
        texts = [row["text"] for row in lines_of(folder) if row["type"] == "text"]
        assert texts == ["spoken"]
        told = next(row for row in lines_of(folder) if row["type"] == "event")
        assert told["name"] == "speech_start"
        assert told["at_ms"] == 1000
        assert folder.stat().st_mode & 0o077 == 0
        assert not context.listeners

    asyncio.run(main())


def test_an_operator_who_has_consent_records_from_the_start(tmp_path: Path):
    async def main() -> None:
        record, _ = stage(tmp_path, require_consent=False)
        await record.setup()
        for n in range(10):
            await feed(record, "video", picture(n * 33 * MS), Collected())
        await record.finish(Collected())
        await record.close()
        assert pictures_in(tmp_path / "s-test/0001.mkv") == 10

    asyncio.run(main())


def test_segments_follow_each_other_and_hold_every_picture_once(tmp_path: Path):
    recording = Recording(tmp_path, frozenset({"video", "voice"}), 2 * SECOND, room(tmp_path))
    for n in range(150):  # 5 s
        recording.media("video", picture(n * SECOND // 30))
        if 60 <= n < 90:
            recording.media("voice", sound(n * SECOND // 30))
    recording.close()
    names = sorted(p.name for p in tmp_path.glob("*.mk?"))
    assert names == ["0001.mkv", "0002.mkv", "0002.voice.mka", "0003.mkv"]
    assert [pictures_in(tmp_path / f"000{n}.mkv") for n in (1, 2, 3)] == [60, 60, 30]
    assert recording.lost == 0


def test_a_folder_that_cannot_be_written_is_told_at_the_start(tmp_path: Path):
    (tmp_path / "file").write_text("")

    async def main() -> None:
        record, _ = stage(tmp_path / "file/under", require_consent=False)
        with pytest.raises(StageError, match="cannot record to"):
            await record.setup()
        await record.close()

    asyncio.run(main())


def free(left: list[int]) -> Callable[[Path], int]:
    return lambda path: left[0]


def aged(path: Path, size: int, at: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x" * size)
    os.utime(path, ns=(at, at))
    return path


def test_the_oldest_finished_segments_make_room(tmp_path: Path):
    now = 10 * IDLE
    old = aged(tmp_path / "s-1/0001.mkv", 600, now - 3 * IDLE)
    beside = aged(tmp_path / "s-1/events.jsonl", 10, now - 3 * IDLE)
    left = aged(tmp_path / "s-2/0001.part.mkv", 600, now - 2 * IDLE)  # by a process that was killed
    running = aged(tmp_path / "s-3/0001.part.mkv", 600, now)
    newer = aged(tmp_path / "s-3/0000.mkv", 200, now - SECOND)
    about = room(tmp_path, quota=1500, now=lambda: now)
    assert about.lacks() == ""
    assert not old.exists()
    assert not beside.parent.exists()  # nothing is left of that session
    assert left.exists()
    assert room(tmp_path, quota=1000, now=lambda: now).lacks() == ""
    assert not left.exists()
    full = room(tmp_path, quota=500, now=lambda: now).lacks()
    assert "quota" in full
    assert running.exists()  # what is being written stays
    assert not newer.exists()


def test_nothing_is_deleted_where_that_would_not_help(tmp_path: Path):
    """Another program has filled the disk."""
    kept = [aged(tmp_path / f"s-1/000{n}.mkv", 600, n) for n in range(3)]
    assert "kept free" in room(tmp_path, keep_free=5000, free=free([1000])).lacks()
    assert all(path.exists() for path in kept)

    def free_now(root: Path) -> int:
        return 1000 + 600 * sum(not path.exists() for path in kept)

    freed = room(tmp_path, keep_free=1500, free=free_now)
    assert freed.lacks() == ""
    assert [path.exists() for path in kept] == [False, True, True]


def test_full_stop_keeps_everything(tmp_path: Path):
    kept = aged(tmp_path / "s-1/0001.mkv", 600, 5)
    assert "quota" in room(tmp_path, quota=500, delete=False).lacks()
    assert kept.exists()
    assert "kept free" in room(tmp_path, keep_free=2000, free=free([1000]), delete=False).lacks()


def test_recording_goes_on_when_there_is_room_again(tmp_path: Path):
    left = [0]
    about = room(tmp_path, keep_free=1, free=free(left))
    recording = Recording(tmp_path / "s", frozenset({"video"}), 60 * SECOND, about)
    recording.media("video", picture(0))
    assert "kept free" in recording.why
    left[0] = 100
    recording.media("video", picture(RETRY // 2))
    assert recording.lost == 2
    for n in range(5):
        recording.media("video", picture(RETRY + n * 33 * MS))
    recording.close()
    assert recording.why == ""
    assert pictures_in(tmp_path / "s/0001.mkv") == 5


WRITER = """
import sys, numpy as np
from pathlib import Path
from penstock.pipeline.frame import VideoFrame
from penstock.transport.disk_room import DiskRoom
from penstock.transport.recording import Recording
rng = np.random.default_rng(0)
recording = Recording(Path(sys.argv[1]), frozenset({"video"}), 60 * 10**9, DiskRoom(Path(sys.argv[1]), 10**9, 0))
noise = rng.integers(0, 255, (8, 120, 160, 3), np.uint8)
for n in range(int(sys.argv[2])):
    recording.media("video", VideoFrame(pts=n * 10**9 // 30, image=noise[n % 8]))
    recording.event(n * 10**9 // 30, {"n": n})
print(recording.why, flush=True)
if sys.argv[3] == "hang":
    sys.stdin.read()
recording.close()
print("closed", recording.lost > 0, flush=True)
"""
ENV = os.environ | {"PYTHONPATH": str(ROOT / ".typing")}


def test_a_killed_process_leaves_a_playable_recording(tmp_path: Path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path), "300", "hang"],
        env=ENV,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == b""
        process.send_signal(signal.SIGKILL)
    assert pictures_in(tmp_path / "0001.part.mkv") > 300 - 90  # of ten seconds at most the last ones
    assert len(lines_of(tmp_path)) == 300


def test_a_full_disk_ends_the_recording_in_words_and_nothing_else(tmp_path: Path):
    script = f'mount -t tmpfs -o size=1m none "{tmp_path}" && exec "$0" "$@"'
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", script]
    done = subprocess.run(
        [*command, sys.executable, "-c", WRITER, str(tmp_path), "300", "go"],
        env=ENV,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("needs the right to mount in a namespace of its own (unshare, package util-linux)")
    assert "No space left" in done.stdout, done.stdout + done.stderr
    assert done.stdout.endswith("closed True\n"), done.stderr


def test_the_default_folder_is_the_services(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/penstock")
    assert default_folder() == Path("/var/lib/penstock/recordings")
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setenv("XDG_STATE_HOME", "/home/me/state")
    assert default_folder() == Path("/home/me/state/penstock/recordings")
