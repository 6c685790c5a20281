"""Bring a public checkpoint here from the hub: only files that cannot hold code, checked, interrupted pulls go on.

Needs the extra `hub` (huggingface_hub).
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from . import registry
from .registry import Card, Held, Part

Progress = Callable[[int], None]  # bytes since the last call


class HubUnreachable(ConnectionError):
    """The hub did not answer, or said no."""


@dataclass(frozen=True, slots=True)
class Remote:
    """A file to bring."""

    part: Part
    path: str  # in its repository
    place: str  # in the model's folder
    size: int
    sha256: str  # "" where the hub does not tell one (small text files)
    commit: str


class Hub(Protocol):
    """What this needs of a hub."""

    def files(self, repository: str) -> tuple[str, Sequence[tuple[str, int, str]]]:
        """(commit, [(path, bytes, sha256 or "")])."""
        ...

    def download(self, repository: str, path: str, commit: str, into: Path, progress: Progress) -> Path:
        """The file, below `into`; goes on with one that was broken off."""
        ...


class HuggingFace:
    """huggingface.co, or what HF_ENDPOINT names. Raises: HubUnreachable in words."""

    def __init__(self, endpoint: str | None = None) -> None:
        self._endpoint = endpoint

    def files(self, repository: str) -> tuple[str, Sequence[tuple[str, int, str]]]:
        from huggingface_hub import HfApi

        with _words(repository):
            info: Any = HfApi(endpoint=self._endpoint).model_info(repository, files_metadata=True, timeout=20)
        return info.sha, [
            (s.rfilename, s.size or 0, s.lfs.sha256 if s.lfs else "") for s in info.siblings or ()
        ]

    def download(self, repository: str, path: str, commit: str, into: Path, progress: Progress) -> Path:
        from huggingface_hub import hf_hub_download
        from tqdm.auto import tqdm

        class Bar(tqdm):  # type: ignore[type-arg]
            """Tells of bytes, draws nothing."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **(kwargs | {"disable": True}))

            def update(self, n: float | None = 1) -> bool | None:
                progress(int(n or 0))
                return None

        with _words(repository):
            found: Any = hf_hub_download(
                repository,
                path,
                revision=commit,
                local_dir=into,
                tqdm_class=Bar,
                etag_timeout=20,
                endpoint=self._endpoint,
            )
        return Path(found)


class _words:
    """Turns the hub's many errors into one, in words."""

    def __init__(self, repository: str) -> None:
        self._repository = repository

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        from huggingface_hub.errors import (
            GatedRepoError,
            HfHubHTTPError,
            LocalEntryNotFoundError,
            OfflineModeIsEnabled,
            RepositoryNotFoundError,
        )

        # of whichever HTTP client the library uses: its own errors come from that one's
        transport: Any = HfHubHTTPError.__bases__[0]
        where = f"https://huggingface.co/{self._repository}"
        if isinstance(error, GatedRepoError):
            raise HubUnreachable(
                f"{where} asks you to accept its licence: do so there, then set HF_TOKEN"
            ) from error
        if isinstance(error, RepositoryNotFoundError):
            raise HubUnreachable(f"{where} does not exist, or needs HF_TOKEN") from error
        if isinstance(error, OfflineModeIsEnabled):
            raise HubUnreachable("HF_HUB_OFFLINE is set: nothing can be pulled") from error
        if isinstance(error, (HfHubHTTPError, LocalEntryNotFoundError, transport, OSError)):
            first = (str(error).strip().splitlines() or [""])[0][:200]
            raise HubUnreachable(
                f"{where} cannot be reached ({type(error).__name__}: {first}). Check the network, or copy the model's "
                f"folder from a machine that has it to {registry.home()}"
            ) from error


def wanted(card: Card, hub: Hub) -> list[Remote]:
    """All files of a checkpoint. Raises: HubUnreachable; ValueError when a part's patterns match nothing."""
    every: list[Remote] = []
    for part in card.parts:
        commit, files = hub.files(part.hub)
        its = [Remote(part, p, part.place(p), n, sha, commit) for p, n, sha in files if part.takes(p)]
        if not its:
            raise ValueError(f"{part.hub} has none of the files {', '.join(part.files)} any more")
        every += its
    return every


def pull(card: Card, files: Sequence[Remote], hub: Hub, progress: Progress) -> Path:
    """Bring the files here and check them; those that are here already are only checked.

    Raises: HubUnreachable; ValueError for bytes that are not what the hub promised; OSError when the disk is full.
    """
    folder = registry.home() / card.name
    short = sum(f.size for f in files) - sum(_there(folder, f) for f in files)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if short > free:
        raise OSError(f"{folder} has room for {free / 1e9:.1f} GB, {short / 1e9:.1f} GB are missing")
    known = {f.path: f for f in registry.held(card.name)}
    (folder / registry.MANIFEST).unlink(missing_ok=True)
    held: list[Held] = []
    for file in files:
        before = known.get(file.place)
        at = folder / file.place
        whole = before is not None and before.commit == file.commit and at.is_file()
        if before is not None and whole and registry.sha256(at) == before.sha256:
            progress(file.size)
            held.append(before)
            continue
        held.append(_bring(folder, file, hub, progress))
    shutil.rmtree(folder / ".part", ignore_errors=True)
    registry.write_manifest(folder, held)
    return folder


def _there(folder: Path, file: Remote) -> int:
    at = folder / file.place
    return at.stat().st_size if at.is_file() else 0


def _bring(folder: Path, file: Remote, hub: Hub, progress: Progress) -> Held:
    got = hub.download(file.part.hub, file.path, file.commit, folder / ".part", progress)
    digest = registry.sha256(got)
    if file.sha256 and digest != file.sha256:
        got.unlink()
        raise ValueError(
            f"{file.part.hub}/{file.path}: the bytes are not those that the hub promised; pull again"
        )
    at = folder / file.place
    at.parent.mkdir(parents=True, exist_ok=True)
    if file.part.pickle:
        as_safetensors(got, at)
        got.unlink()
        digest = registry.sha256(at)
    else:
        got.replace(at)
    return Held(file.place, at.stat().st_size, digest, file.part.hub, file.commit)


def as_safetensors(source: Path, target: Path) -> None:
    """A pickled checkpoint's tensors, by torch's reader that makes nothing but tensors and plain containers."""
    import torch
    from safetensors.torch import save_file

    try:
        read = torch.load(source, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as e:
        raise ValueError(f"{source.name} holds more than tensors, or is broken: it is not read ({e})") from e
    if isinstance(read, dict) and {"dims", "cfg", "state_dict"} <= read.keys():
        from .whisper_loader import causal, save

        save(causal(read, source), target)  # a causal Whisper: what says how to stream it must stay
        return
    tensors = registry.plain(read)
    if not tensors:
        raise ValueError(f"{source.name} holds no tensors")
    save_file(tensors, target)


def listed() -> Iterator[tuple[Card, int]]:
    """All cards, with the bytes that are here."""
    for card in registry.cards().values():
        yield card, sum(f.size for f in registry.held(card.name))
