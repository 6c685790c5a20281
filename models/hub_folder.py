"""Where a checkpoint's folder is: what `model:` of a stage may name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from . import registry


def pulled(source: str, stage: str) -> str:
    """A name of `penstock models` for this stage → its folder; all else as it is. Raises: NotHere, a ValueError."""
    known = registry.cards().get(source)
    if known is None or known.stage != stage or Path(source).exists():
        return source
    return str(registry.path(source))


def hub_folder(
    source: str, stage: str, example: str, patterns: Sequence[str] = ("*.json", "*.safetensors")
) -> Path:
    """A folder as it is, a name of `penstock models` where it was pulled to, a hub id fetched.

    Only .json and .safetensors are fetched, and of these what `patterns` say. Raises: ValueError in words.
    """
    folder = Path(pulled(source, stage))
    if folder.exists():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
        names = [card.name for card in registry.cards().values() if card.stage == stage]
        raise ValueError(
            f"{source!r} is neither a folder nor a hub id such as {example} nor one of: {', '.join(names)}"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError as e:
        raise ValueError(f"{stage} needs the extra: pip install 'penstock[hub]'") from e
    try:
        return Path(snapshot_download(source, allow_patterns=[*patterns]))
    except Exception as e:
        why = first_line(e)
        raise ValueError(f"{source!r} is no folder and could not be fetched from the hub ({why})") from e


def first_line(error: Exception) -> str:
    """Of its words; its type where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
