"""The command line, in process: what it prints and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from penstock.pipeline import library
from penstock.pipeline.cli import cli


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr("sys.argv", ["penstock", *args])
    with pytest.raises(SystemExit) as ended:
        cli()
    return int(ended.value.code or 0)


def test_check_tells_each_fault_on_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bad = tmp_path / "a graph [x].yaml"
    bad.write_text(
        "penstock: 1\ngraph: g\nnodes: {a: {use: webrtc.in}, b: {use: webrtc.out, in: {video: a.vido}}}\n"
    )
    assert run(monkeypatch, "check", str(bad), "loopback") == 1
    printed = capsys.readouterr()
    assert f"{bad}:3:56: node 'a' has no output port 'vido'; did you mean 'video'?" in printed.err
    assert "loopback.yaml: 2 nodes" in printed.out


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"- 1", b"a: [", b"penstock: 1"])
def test_check_refuses_what_is_no_graph(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_bytes(content)
    assert run(monkeypatch, "check", str(bad)) == 1
    assert "bad.yaml:1:" in capsys.readouterr().err or content == b"a: ["


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("run", "loopback"), "reads a live client: give --in"),
        (("run", "loopback", "--in", "x.mp4"), "feeds a live client: give --out"),
        (("run", "loopbak", "--in", "x", "--out", "y"), "no graph 'loopbak'; did you mean 'loopback'?"),
        (("check", "none.yaml"), "no graph file 'none.yaml'"),
        (("serve", "loopback", "--host", "0.0.0.0"), "lets other machines in: set PENSTOCK_TOKEN"),
        (("serve", "loopback", "loopback"), "are both named 'loopback'"),
        (("serve", "--config", "none.yaml"), "the settings file none.yaml cannot be read: No such file"),
        (
            ("run", "restyle", "--in", "synthetic:1s", "--out", "x.txt"),
            "'x.txt' holds text, and the graph has none",
        ),
        (("replay", "none.json"), "error: none.json: No such file or directory"),
    ],
)
def test_a_wrong_call_is_told_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], said: str
) -> None:
    monkeypatch.delenv("PENSTOCK_TOKEN", raising=False)
    monkeypatch.delenv("PENSTOCK_TOKEN_FILE", raising=False)
    assert run(monkeypatch, *args) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("serve", "--port", "99999"), "'--port': it must be at most 65535 (got '99999')"),
        (("serve", "--port", "80x"), "'--port': a whole number is expected (got '80x')"),
        (("serve", "--drain", "10"), "--drain: '10' is not a duration; write a number and a"),
        (("edge", "--to", "http://x", "--video", "big"), "--video: 'big' is not a video format"),
        (("edge", "--to", "http://x", "--video", "0x0@0"), "--video: '0x0@0' is out of range; from 16x16 to"),
        (("edge", "--to", "http://x", "--rate", "fast"), "--rate: 'fast' is not a rate; write 48k"),
        (("token", "create", "x", "--sessions", "-1"), "'--sessions': it must be at least 0 (got '-1')"),
    ],
)
def test_a_wrong_option_is_named_with_its_value_and_what_is_accepted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], said: str
) -> None:
    assert run(monkeypatch, *args) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("form", ["text", "mermaid", "dot"])
def test_every_embedded_graph_can_be_drawn(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    for name in library.embedded():
        assert run(monkeypatch, "graph", name, "--format", form) == 0
        assert len(capsys.readouterr().out.splitlines()) > 3


def test_every_embedded_graph_can_be_explained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in library.embedded():
        assert run(monkeypatch, "explain", name) == 0
        assert "worst case" in capsys.readouterr().out
