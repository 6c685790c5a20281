"""`penstock run`: chat beside media, and disks that are full."""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
import sys
import wave
from pathlib import Path

import av
import pytest
from fakes import Collected, FakeContext
from penstock.pipeline.clock import SECOND, MonotonicClock
from penstock.pipeline.stage import Stage, StageError
from penstock.pipeline.units import AudioFormat, VideoFormat
from penstock.transport.chat_file import ChatFile
from penstock.transport.file_in import FileIn, FileInOptions
from penstock.transport.synthetic import SyntheticIn, SyntheticOptions, sound

ROOT = Path(__file__).parent.parent


def test_a_file_that_can_hold_no_more_ends_the_run_with_an_error_and_keeps_what_it_holds(
    tmp_path: Path,
) -> None:
    graph, out = tmp_path / "full.yaml", tmp_path / "out.mkv"
    graph.write_text(
        "penstock: 1\ngraph: full\nnodes:\n"
        "  source: {use: synthetic.in, video: 320x180@30, duration: 6s}\n"
        f"  out: {{use: file.out, in: {{video: source.video}}, path: {out}}}\n"
    )
    limited = ["sh", "-c", 'ulimit -f 20; exec "$0" "$@"', sys.executable, "-m", "penstock.pipeline"]
    env = os.environ | {"PYTHONPATH": str(ROOT / ".typing"), "PYTHONDONTWRITEBYTECODE": "1", "COLUMNS": "300"}
    done = subprocess.run([*limited, "run", str(graph)], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 1, done.stderr
    assert f"error: node out: cannot write '{out}': File too large" in done.stderr
    assert "Traceback" not in done.stderr
    with av.open(str(out)) as file:
        pictures = [p.time for p in file.decode(video=0)]
    assert pictures[0] == 0, "not begun again after the failure"
    assert len(pictures) > 20


def test_chat_is_typed_while_media_plays(tmp_path: Path) -> None:
    chat, beeps = tmp_path / "chat.txt", tmp_path / "a.wav"
    chat.write_text("what time is it\n[1.5s] neon\n\n[laughs] and now\n[9s] late\n")
    with wave.open(str(beeps), "wb") as file:
        file.setparams((1, 2, 48_000, 0, "NONE", ""))
        file.writeframes(sound(0, 3 * 48_000, AudioFormat(48_000)).tobytes())
    for stage in (
        FileIn(FileInOptions(path=str(beeps)), chat=str(chat)),
        SyntheticIn(SyntheticOptions(video=VideoFormat(96, 64, 30.0)), duration=3 * SECOND, chat=str(chat)),
    ):
        out = Collected()
        stage.ctx = context = FakeContext(MonotonicClock(), realtime=False)
        context.connected = frozenset({"audio", "text"})

        async def main(stage: Stage = stage, out: Collected = out) -> None:
            await stage.setup()
            await stage.run(out)
            await stage.close()

        asyncio.run(main())
        said = [(f.text, f.pts / SECOND, f.utterance) for f in out.of("text")]
        expected = [("what time is it", 0, 1), ("neon", 1.5, 2), ("[laughs] and now", 2.5, 3), ("late", 9, 4)]
        assert said == expected, "nor is lost what comes after the media's end"
        heard = [(p, f.pts) for p, f in out.frames if p in ("audio", "text")]
        assert all(later[1] >= earlier[1] - SECOND // 10 for earlier, later in itertools.pairwise(heard))


def test_a_text_file_alone_is_chat(tmp_path: Path) -> None:
    (tmp_path / "chat.txt").write_text("what time is it\n\nneon\n")
    stage, out = FileIn(FileInOptions(path=str(tmp_path / "chat.txt"))), Collected()
    stage.ctx = FakeContext(MonotonicClock(), realtime=False)

    async def main() -> None:
        await stage.setup()
        await stage.run(out)
        await stage.close()

    asyncio.run(main())
    said = [(f.text, f.pts // SECOND, f.utterance) for f in out.of("text")]
    assert said == [("what time is it", 0, 1), ("neon", 1, 2)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[2 soon] hello", "1: '2 soon' is not a duration"),
        ("a\n\n[3s]\n", "3: nothing is said at 3s"),
        ("[3s] a\n[2s] b", "2: 2s is before the line above"),
    ],
)
def test_a_wrong_line_of_chat_is_named(tmp_path: Path, text: str, words: str) -> None:
    chat = tmp_path / "chat.txt"
    chat.write_text(text)
    with pytest.raises(StageError, match=words):
        ChatFile(str(chat))


def test_what_is_no_text_is_not_typed(tmp_path: Path) -> None:
    chat = tmp_path / "chat.txt"
    chat.write_bytes(b"hello\n\xff\xfe\x00")
    with pytest.raises(StageError, match="is no text in UTF-8: invalid start byte at byte 6"):
        ChatFile(str(chat))
