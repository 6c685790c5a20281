"""Files, URLs and test pictures in the place of a graph's live ends: what `penstock run` binds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..pipeline.stage import Stage, StageError
from ..pipeline.units import parse_duration
from .captions import TEXT_SUFFIXES
from .file_in import FileIn
from .file_out import FileOut
from .media_writer import container_of
from .synthetic import SyntheticIn

Binding = Callable[[Any, Any], Stage]
Progress = Callable[[int, int], None]


def source(path: str, progress: Progress | None = None, chat: str = "") -> Binding:
    """A file, URL, device or `synthetic:10s` for `webrtc.in`. progress(pts, duration) in ns; 0: unknown.
    chat: a text file whose lines are typed meanwhile.

    Raises: StageError for a wrong duration; what is missing is told at the stage's setup.
    """
    if path.partition(":")[0] == "synthetic":
        length = path.partition(":")[2] or "10s"
        try:
            duration = parse_duration(length)
        except ValueError as e:
            raise StageError(f"--in {path!r}: {e}") from e
        return lambda o, p: SyntheticIn(o, p, duration=duration, chat=chat, on_progress=progress)
    return lambda o, p: FileIn(o, p, path=path, chat=chat, on_progress=progress)


def sink(paths: Sequence[str]) -> Binding:
    """Files or URLs for `webrtc.out`. Raises: StageError for a suffix or scheme that is not known."""
    for path in paths:
        if not path.lower().endswith(tuple(TEXT_SUFFIXES)):
            container_of(path)
    return lambda options, params: FileOut(options, params, paths=paths)
