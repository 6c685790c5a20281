"""Public checkpoints: which there are, which are here, and how they get here. The list is `data/checkpoints.toml`.

    <home>/<name>/…files…      as the loaders read them
    <home>/<name>/manifest.json  where each came from: hub id, commit, size, SHA-256

Nothing is loaded from the hub while a graph runs: what is not here is named, with the command that pulls it. Files that
can hold code are not taken; a checkpoint published as pickle is read once, with torch's restricted reader, and kept
as safetensors.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from fnmatch import fnmatch
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

TABLE = Path(__file__).parent / "data" / "checkpoints.toml"
MANIFEST = "manifest.json"
HARMLESS = (".safetensors", ".json", ".txt", ".model", ".jinja")
_FIELDS = ("name", "stage", "about", "licence", "gb", "needs", "parts")
_BLOCK = 1 << 20


class NotHere(ValueError):
    """A checkpoint that has not been pulled, or of which files are missing or damaged."""


@dataclass(frozen=True, slots=True)
class Part:
    """Files of one hub repository."""

    hub: str
    files: tuple[str, ...]  # patterns
    into: str = ""  # a folder of the model's
    name: str = ""  # `as`: of the one file it becomes
    pickle: bool = False

    def takes(self, path: str) -> bool:
        """Is this file of the repository wanted, and harmless?"""
        ends = (".pt", ".pth") if self.pickle else HARMLESS
        return path.endswith(ends) and any(fnmatch(path, pattern) for pattern in self.files)

    def place(self, path: str) -> str:
        """Where a file of the repository goes in the model's folder. `.fp16` in names is only a variant's mark."""
        if self.name:
            return self.name
        return str(PurePosixPath(self.into) / path.replace(".fp16.", "."))


@dataclass(frozen=True, slots=True)
class Card:
    """One checkpoint of the list."""

    name: str
    stage: str
    about: str
    licence: str
    gb: float
    needs: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Held:
    """A file that is here."""

    path: str  # in the model's folder
    size: int
    sha256: str
    hub: str
    commit: str


def home() -> Path:
    """Where pulled checkpoints lie: PENSTOCK_MODELS, else the service's or the user's data folder."""
    if named := os.environ.get("PENSTOCK_MODELS"):
        return Path(named)
    if service := os.environ.get("STATE_DIRECTORY", "").partition(":")[0]:
        return Path(service) / "models"
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "penstock" / "models"


@cache
def cards(table: Path = TABLE) -> Mapping[str, Card]:
    """By name. Raises: ValueError that names the entry with a fault."""
    found: dict[str, Card] = {}
    for entry in tomllib.loads(table.read_text())["model"]:
        missing = [f for f in _FIELDS if f not in entry]
        if missing or entry["name"] in found:
            what = f"lacks {', '.join(missing)}" if missing else "is there twice"
            raise ValueError(f"{table.name}: the model {entry.get('name', '?')!r} {what}")
        parts = tuple(
            Part(p["hub"], tuple(p["files"]), p.get("into", ""), p.get("as", ""), p.get("pickle", False))
            for p in entry["parts"]
        )
        found[entry["name"]] = Card(**{k: entry[k] for k in _FIELDS[:-1]}, parts=parts)
    return found


def card(name: str) -> Card:
    """Raises: ValueError that lists what there is."""
    known = cards()
    if name not in known:
        raise ValueError(f"unknown model {name!r}; there are: {', '.join(known)}")
    return known[name]


# ---------------------------------------------------------------- what is here


def held(name: str) -> tuple[Held, ...]:
    """The files of a pulled checkpoint; empty when it was not pulled. Raises: NotHere for a damaged manifest."""
    path = home() / card(name).name / MANIFEST
    if not path.exists():
        return ()
    try:
        return tuple(Held(**entry) for entry in json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as e:
        raise NotHere(f"{path} is damaged ({e}): penstock models pull {name}") from e


def path(name: str) -> Path:
    """The folder of a pulled checkpoint, all its files there in their sizes. Raises: NotHere, with what to do."""
    wanted, folder = card(name), home() / name
    files = held(name)
    if not files:
        raise NotHere(
            f"model {name!r} is not here: penstock models pull {name}  "
            f"(about {wanted.gb:g} GB, licence: {wanted.licence})"
        )
    for file in files:
        there = folder / file.path
        if not there.is_file() or there.stat().st_size != file.size:
            raise NotHere(f"model {name!r}: {there} is missing or not whole: penstock models pull {name}")
    return folder


def damaged(name: str, progress: Callable[[int], None] = lambda _: None) -> list[str]:
    """Files whose bytes are not those that were pulled. progress: bytes read since its last call."""
    folder = home() / name
    return [f.path for f in held(name) if not _same(folder / f.path, f.sha256, progress)]


def remove(name: str) -> int:
    """Delete a pulled checkpoint. Returns: the bytes freed. Raises: NotHere when there is none."""
    folder = home() / card(name).name
    if not folder.is_dir():
        raise NotHere(f"model {name!r} is not here")
    size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    shutil.rmtree(folder)
    return size


def sha256(path: Path, progress: Callable[[int], None] = lambda _: None) -> str:
    """Of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            progress(len(block))
    return digest.hexdigest()


def _same(path: Path, expected: str, progress: Callable[[int], None]) -> bool:
    return path.is_file() and sha256(path, progress) == expected


def write_manifest(folder: Path, files: list[Held]) -> None:
    """Last of all: a folder without it was not pulled whole."""
    text = json.dumps([asdict(f) for f in files], indent=1)
    fresh = folder / f"{MANIFEST}.new"
    fresh.write_text(text)
    fresh.replace(folder / MANIFEST)


def plain(value: Any) -> Any:
    """A checkpoint's nested dictionaries → {dotted name: tensor}; what is no tensor is left out."""
    import torch

    flat: dict[str, Any] = {}

    def walk(prefix: str, node: Any) -> None:
        if isinstance(node, torch.Tensor):
            flat[prefix] = node.detach().clone().contiguous()
        elif isinstance(node, Mapping):
            for key, child in node.items():  # pyright: ignore[reportUnknownVariableType]
                walk(f"{prefix}.{key}" if prefix else str(key), child)  # pyright: ignore[reportUnknownArgumentType]

    walk("", value)
    return flat
