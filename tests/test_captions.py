import html
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.clock import MS, SECOND
from penstock.pipeline.frame import TokenFrame
from penstock.transport.captions import CaptionFile, one_line, srt_cue, vtt_cue

_STAMP = r"(\d{2,}):(\d\d):(\d\d)[.,](\d{3})"


def _ns(parts: tuple[str, ...]) -> int:
    h, m, s, ms = map(int, parts)
    return (((h * 60 + m) * 60 + s) * 1000 + ms) * MS


def parse(text: str) -> list[tuple[int, int, str]]:
    """Cues of a WebVTT or SubRip file by their grammar: blocks between blank lines, one timing line in each."""
    blocks = text.split("\n\n")
    assert blocks.pop() == "", "the last cue is complete"
    if blocks and blocks[0] == "WEBVTT":
        blocks.pop(0)
    cues: list[tuple[int, int, str]] = []
    for number, block in enumerate(blocks, 1):
        lines = block.split("\n")
        if lines[0].isdigit():
            assert int(lines.pop(0)) == number
        assert len(lines) == 2, block
        timing = re.fullmatch(f"{_STAMP} --> {_STAMP}", lines[0])
        assert timing, lines[0]
        assert "-->" not in lines[1]
        cues.append((_ns(timing.groups()[:4]), _ns(timing.groups()[4:]), lines[1]))
    return cues


@given(st.lists(st.tuples(st.text(max_size=60), st.integers(0, 10**13), st.integers(0, 10**10)), max_size=8))
@settings(max_examples=60, deadline=None)
def test_any_text_makes_files_that_parse(
    tmp_path_factory: pytest.TempPathFactory, said: list[tuple[str, int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("cues")
    for suffix in (".vtt", ".srt"):
        path = folder / f"c{suffix}"
        file = CaptionFile(path)
        for text, start, length in said:
            file.write(TokenFrame(pts=start, until=start + length, text=text), "asr.commit")
        file.close()
        cues = parse(path.read_bytes().decode())
        kept = [one_line(t) for t, _, _ in said if one_line(t)]
        if suffix == ".vtt":
            assert [html.unescape(t) for _, _, t in cues] == kept or any("&" in t for t in kept)
        assert len(cues) == len(kept)
        assert all(start < end for start, end, _ in cues)
        assert [c[0] for c in cues] == sorted(c[0] for c in cues)


def test_cues_are_as_the_standards_write_them() -> None:
    assert vtt_cue(3_661_042 * MS, 3_662_000 * MS, "a <b> & c") == (
        "01:01:01.042 --> 01:01:02.000\na &lt;b&gt; &amp; c\n\n"
    )
    assert srt_cue(7, 0, SECOND, "go -->\n\nthere") == "7\n00:00:00,000 --> 00:00:01,000\ngo → there\n\n"


def test_partials_are_left_out_and_deltas_joined(tmp_path: Path) -> None:
    file = CaptionFile(tmp_path / "a.vtt")
    file.write(TokenFrame(pts=0, text="hel"), "asr.partial")
    file.write(TokenFrame(pts=SECOND, until=2 * SECOND, text="hello"), "asr.commit")
    file.write(TokenFrame(pts=3 * SECOND, text="It is ", end=False), "agent.say")
    file.write(TokenFrame(pts=4 * SECOND, text="ten."), "agent.say")
    file.write(TokenFrame(pts=9 * SECOND, text="cut off", end=False), "agent.say")
    file.close()
    file.close()
    cues = parse((tmp_path / "a.vtt").read_text())
    assert [(c[0] // SECOND, c[2]) for c in cues] == [(1, "hello"), (3, "It is ten."), (9, "cut off")]


def test_the_file_is_valid_after_every_cue_without_closing(tmp_path: Path) -> None:
    path = tmp_path / "a.srt"
    file = CaptionFile(path)
    for n in range(3):
        file.cue(n * SECOND, (n + 1) * SECOND, f"line {n}")
        assert len(parse(path.read_text())) == n + 1
    file.close()


def test_json_lines_hold_everything(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    file = CaptionFile(path)
    file.write(TokenFrame(pts=5 * SECOND, text="h\ud800\n☃", utterance=3), "asr.partial", origin=SECOND)
    file.close()
    assert json.loads(path.read_text()) == {
        "from": "asr.partial", "kind": "partial", "text": "h\ud800\n☃", "pts_ms": 4000, "until_ms": 0,
        "utterance": 3, "end": True,
    }  # fmt: skip


def test_plain_text_has_a_line_a_commit(tmp_path: Path) -> None:
    file = CaptionFile(tmp_path / "a.txt")
    file.write(TokenFrame(pts=0, text="one\ntwo"), "asr.commit")
    file.close()
    assert (tmp_path / "a.txt").read_text() == "one two\n"


def test_a_run_that_fails_early_keeps_the_older_file_and_leaves_no_empty_one(tmp_path: Path) -> None:
    old = tmp_path / "old.vtt"
    old.write_text("mine")
    for name in ("old.vtt", "new.vtt"):
        CaptionFile(tmp_path / name).close(ended=False)
    assert old.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [old]
    CaptionFile(old).close()
    assert old.read_text() == "WEBVTT\n\n"
