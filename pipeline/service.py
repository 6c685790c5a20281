"""Install Penstock as a systemd service, for the whole machine or for one user.

The unit comes from the package's template; nothing is started or enabled that the user did not ask for.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from .stage import StageError

INSTANCE = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")
TEMPLATE, EDGE_TEMPLATE = "penstock@.service", "penstock-edge@.service"
# what a user manager cannot do without privileges
SYSTEM_ONLY = re.compile(
    r"^(DynamicUser|ConfigurationDirectory|ProtectClock|ProtectKernel\w+|ProtectHostname|ProtectProc|ProcSubset|"
    r"Capability\w+|AmbientCapabilities|Device\w+|PrivateDevices|SupplementaryGroups|ProtectControlGroups|"
    r"WorkingDirectory|RemoveIPC)=|^Environment=HOME="
)
Run = Callable[[list[str]], int]


def unit_text(program: str, *, user: bool, template: str = TEMPLATE) -> str:
    """The unit file for that program path."""
    text = (files("penstock.systemd") / template).read_text(encoding="utf-8")
    # a virtual environment elsewhere may still use an interpreter that lies in somebody's home (pyenv, uv)
    in_home = any(
        Path(part).resolve().is_relative_to(home)
        for part in (program, sys.base_prefix)
        for home in ("/home", "/root")
    )
    text = text.replace("@PENSTOCK@", program)
    text = text.replace("@HOME_ACCESS@", "read-only" if in_home or user else "yes")
    if user:
        lines = [line for line in text.splitlines() if not SYSTEM_ONLY.match(line)]
        text = "\n".join(lines).replace("multi-user.target", "default.target") + "\n"
        text = re.sub(r"/etc/penstock/([\w-]*%i\.env)", r"%E/penstock/\1", text)
        text = re.sub(r"^(After|Wants)=network-online.target\n", "", text, flags=re.MULTILINE)
    return text


def unit_folder(*, user: bool) -> Path:
    if not user:
        return Path("/etc/systemd/system")
    config = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(config) / "systemd/user"


def check_systemd(*, user: bool) -> None:
    """Raises: StageError when this machine does not run systemd, or the rights are missing."""
    if shutil.which("systemctl") is None or not Path("/run/systemd/system").is_dir():
        raise StageError(
            "this machine was not started by systemd; run `penstock serve` under what supervises it instead"
        )
    if not user and os.geteuid() != 0:
        raise StageError("installing for the whole machine needs root: use sudo, or add --user")


def install(
    instance: str,
    *,
    user: bool,
    folder: Path | None = None,
    run: Run | None = None,
    template: str = TEMPLATE,
) -> Path:
    """Write the unit and let systemd read it. Returns its path. Raises: StageError."""
    _check_instance(instance)
    path = (folder or unit_folder(user=user)) / template
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(unit_text(_program(), user=user, template=template), encoding="utf-8")
    except OSError as e:
        raise StageError(f"cannot write {path}: {e.strerror or e}") from e
    systemctl = ["systemctl", *(["--user"] if user else [])]
    if (run or _run)([*systemctl, "daemon-reload"]) != 0:
        raise StageError(f"systemd did not take {path}; `systemd-analyze verify {path}` says why")
    return path


def status_command(instance: str, *, user: bool) -> list[str]:
    _check_instance(instance)
    return ["systemctl", *(["--user"] if user else []), "status", "--no-pager", f"penstock@{instance}"]


def logs_command(instance: str, *, user: bool, follow: bool) -> list[str]:
    _check_instance(instance)
    unit = ["--user-unit" if user else "--unit", f"penstock@{instance}"]
    return ["journalctl", *unit, "--output=cat", *(["--follow"] if follow else ["--lines=100"])]


def _check_instance(instance: str) -> None:
    if not INSTANCE.fullmatch(instance):
        raise StageError(f"instance {instance!r} must be lower case letters, digits and -, at most 32")


def _program() -> str:
    """The command that runs this installation."""
    beside = Path(sys.executable).parent / "penstock"
    found = str(beside) if beside.exists() else shutil.which("penstock")
    if not found:
        raise StageError("the command 'penstock' was not found; install the package first")
    return found


def _run(command: list[str]) -> int:
    return subprocess.run(command, check=False).returncode
