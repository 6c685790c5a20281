"""The settings of a server, and secrets that they name."""

from __future__ import annotations

from pathlib import Path

import pytest
from penstock.pipeline.clock import SECOND
from penstock.pipeline.errors import GraphError
from penstock.pipeline.secret import resolve
from penstock.pipeline.stage import StageError
from penstock.transport.access import read_networks, read_origins
from penstock.transport.settings import read_settings

NOW = 1_800_000_000 * SECOND


def test_settings_come_from_a_file_and_flags_stand_above_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TURN", "s3cret")
    path = tmp_path / "server.yaml"
    path.write_text(
        "max_sessions: 4\nlongest: 2h\nallow_origin: [https://app.example.org]\n"
        "ice_server: ['turn:turn.example.org']\nturn_secret: env:TURN\ntrusted_proxy: [10.0.0.0/8]\n"
    )
    settings = read_settings(path, {"max_sessions": 6})
    assert settings.limits().total == 6
    assert settings.limits().longest == 7200 * SECOND
    assert settings.ice().secret == "s3cret"
    assert settings.access("t", lambda: NOW).origins == {"https://app.example.org"}
    assert "s3cret" not in repr(settings) + repr(settings.ice())


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("max_sessions: 0", (1, 1), "it must be at least 1"),
        ("rate: 5\nmax_session: 5", (2, 1), "did you mean 'max_sessions'"),
        ("turn_secret: hunter2", (1, 1), "env:NAME"),
        ("public_ip: [nowhere]", (1, 1), "nowhere"),
        ("- x", (1, 1), "name: value"),
    ],
)
def test_a_wrong_setting_is_told_with_its_place(
    tmp_path: Path, text: str, place: tuple[int, int], words: str
):
    path = tmp_path / "server.yaml"
    path.write_text(text)
    with pytest.raises(GraphError) as caught:
        read_settings(path, {})
    (fault,) = caught.value.faults
    assert fault.line == place[0]
    assert words in fault.message
    assert "hunter2" not in fault.message


def test_a_wrong_flag_names_the_flag():
    with pytest.raises(StageError, match="--longest"):
        read_settings(None, {"longest": "soon"})
    with pytest.raises(StageError, match="--longest: 2 is not a duration"):
        read_settings(None, {"longest": 2})
    for origin in ("*", "app.example.org", "https://app.example.org/page"):
        with pytest.raises(StageError, match="origin"):
            read_origins([origin])
    with pytest.raises(StageError, match="trusted proxy"):
        read_networks(["everyone"])


def test_credentials_of_systemd_are_read(tmp_path: Path):
    (tmp_path / "turn").write_text("s3cret\n")
    environ = {"CREDENTIALS_DIRECTORY": str(tmp_path)}
    assert resolve("cred:turn", environ) == "s3cret"
    for wrong in ("cred:../turn", "cred:", "cred:."):
        with pytest.raises(StageError, match="credential"):
            resolve(wrong, environ)
    with pytest.raises(StageError, match="credential"):
        resolve("cred:turn", {})
