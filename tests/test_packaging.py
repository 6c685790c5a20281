"""What works in a checkout must be in the wheel too."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIG = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS = ("pipeline", "stages", "models", "transport", "deploy/graphs", "deploy/systemd")


def test_every_folder_with_code_is_a_listed_package() -> None:
    listed = {
        CONFIG["package-dir"].get(p, p.removeprefix("penstock.").replace(".", "/"))
        for p in CONFIG["packages"]
    }
    with_code = {
        str(path.parent.relative_to(ROOT))
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if "__pycache__" not in path.parts
    }
    assert with_code - listed == set()


def test_every_data_file_is_listed() -> None:
    missing: list[str] = []
    for package in CONFIG["packages"]:
        folder = ROOT / CONFIG["package-dir"].get(
            package, package.removeprefix("penstock.").replace(".", "/")
        )
        listed = {p for pattern in CONFIG["package-data"].get(package, []) for p in folder.glob(pattern)}
        inner = {
            ROOT / CONFIG["package-dir"].get(p, p.removeprefix("penstock.").replace(".", "/"))
            for p in CONFIG["packages"]
        } - {folder}
        for path in folder.rglob("*"):
            data = path.is_file() and path.suffix not in (".py", ".pyc")
            if data and path not in listed and not any(path.is_relative_to(i) for i in inner):
                missing.append(str(path.relative_to(ROOT)))
    assert missing == []


def test_weights_that_come_along_are_those_on_their_card() -> None:
    folder = ROOT / "models" / "data"
    card = (folder / "README.md").read_text()
    weights = sorted(folder.glob("*.safetensors"))
    assert len(weights) >= 4
    for path in weights:
        assert f"`{path.name}`" in card
        assert hashlib.sha256(path.read_bytes()).hexdigest() in card, path.name


def test_the_command_names_a_function_that_exists() -> None:
    script = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["penstock"]
    module, _, name = script.partition(":")
    assert callable(getattr(__import__(module, fromlist=[name]), name))


def test_each_decision_has_a_number_of_its_own() -> None:
    numbers = [path.name[:4] for path in (ROOT / "docs" / "adr").glob("[0-9]*.md")]
    assert sorted(numbers) == [f"{n:04}" for n in range(1, len(numbers) + 1)]
    for path in (ROOT / "docs" / "adr").glob("[0-9]*.md"):
        assert path.read_text(encoding="utf-8").startswith(f"# {int(path.name[:4])}. "), path.name
