"""The systemd unit and the folder of its graphs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from penstock.pipeline import library, service
from penstock.pipeline.stage import StageError


def test_the_unit_is_whole_for_both_managers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("penstock.pipeline.service._program", lambda: "/usr/bin/penstock")
    text = service.unit_text("/opt/penstock/bin/penstock", user=False)
    assert "@" not in text.replace("penstock@", "").replace("@system-service", "").replace(
        "@privileged", ""
    ).replace("@resources", "")
    assert "ExecStart=/opt/penstock/bin/penstock" in text
    assert "DynamicUser=yes" in text
    users = service.unit_text("/home/me/.venv/bin/penstock", user=True)
    assert "DynamicUser" not in users
    assert "WantedBy=default.target" in users
    assert "ProtectHome=read-only" in users
    ran: list[list[str]] = []
    path = service.install("main", user=True, folder=tmp_path, run=lambda c: ran.append(c) or 0)
    assert path.read_text().startswith("# One Penstock server")
    assert ran == [["systemctl", "--user", "daemon-reload"]]
    with pytest.raises(StageError, match="systemd did not take"):
        service.install("main", user=True, folder=tmp_path, run=lambda c: 1)
    with pytest.raises(StageError, match=r"instance '\.\./x'"):
        service.install("../x", user=True, folder=tmp_path)


def test_installing_is_refused_in_words_without_systemd(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.which", lambda name: None)  # type: ignore[misc]
    with pytest.raises(StageError, match="not started by systemd"):
        service.check_systemd(user=True)


def test_systemd_finds_the_unit_hardened(tmp_path: Path):
    if shutil.which("systemd-analyze") is None:
        pytest.skip("needs systemd-analyze (package systemd)")
    unit = tmp_path / "penstock@main.service"
    unit.write_text(service.unit_text("/bin/true", user=False))
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=30", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "Overall exposure level" in done.stdout, done.stderr
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_services_folder_names_the_graphs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CONFIGURATION_DIRECTORY", raising=False)
    assert library.configured() == []
    monkeypatch.setenv("CONFIGURATION_DIRECTORY", str(tmp_path))
    assert library.configured() == []
    (tmp_path / "b.yaml").write_text("")
    (tmp_path / "a.yaml").write_text("")
    assert library.configured() == [str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")]
