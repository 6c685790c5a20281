"""How much recordings may take, and what goes first when there is no room. Blocking."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..pipeline.clock import SECOND, MonotonicClock

log = logging.getLogger(__name__)

IDLE = 600 * SECOND  # what nobody wrote to for so long belongs to no running session
SEGMENTS = (".mkv", ".mka")


@dataclass(frozen=True, slots=True)
class DiskRoom:
    """root: the folder of all recordings. quota: bytes that everything in it may take. keep_free: bytes of the
    file system that are left to others. delete: finished segments make room, the oldest first; else
    recording stops when there is none. free: bytes left on a file system. now: Unix time in ns."""

    root: Path
    quota: int
    keep_free: int
    delete: bool = True
    free: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free
    now: Callable[[], int] = MonotonicClock().wall

    def lacks(self) -> str:
        """Make room if that is allowed. Returns why nothing more can be written, in words; else "".

        Nothing is deleted where that would not help: what others fill a disk with is not ours to make up for.
        """
        while (lack := self._lack())[0]:
            why, missing = lack
            if not self.delete:
                return why
            if missing and missing > sum(size for _, size, _ in self._finished(self._files())):
                return why
            if not self._delete_oldest():
                return why
        return ""

    def _lack(self) -> tuple[str, int]:
        """Why nothing can be written, or "", and the bytes that the file system is short of."""
        try:
            left = self.free(self.root)
        except OSError as e:
            return f"{self.root}: {e.strerror}", 0
        if left < self.keep_free:
            why = f"{self.root} has {_size(left)} left; {_size(self.keep_free)} are kept free"
            return why, self.keep_free - left
        used = sum(size for _, size, _ in self._files())
        if used >= self.quota:
            why = f"the recordings take {_size(used)} of their quota of {_size(self.quota)}"
            return why, 0  # of our own making
        return "", 0

    def _finished(self, files: list[tuple[int, int, Path]]) -> list[tuple[int, int, Path]]:
        """Segments that nobody writes to; what a killed process left unfinished is one of them."""
        idle = self.now() - IDLE
        return [
            (at, size, path)
            for at, size, path in files
            if path.suffix in SEGMENTS and (at < idle or not path.stem.endswith(".part"))
        ]

    def _files(self) -> list[tuple[int, int, Path]]:
        """(mtime ns, bytes, path) of all that was recorded."""
        found: list[tuple[int, int, Path]] = []
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder, name)
                try:
                    about = path.lstat()
                except OSError:  # gone meanwhile
                    continue
                found.append((about.st_mtime_ns, about.st_size, path))
        return found

    def _delete_oldest(self) -> bool:
        """Delete one finished segment, and what its session leaves when that was its last."""
        files = self._files()
        done = self._finished(files)
        if not done:
            return False
        idle, oldest = self.now() - IDLE, min(done)[2]
        try:
            oldest.unlink()
            log.info("deleted the recording %s to make room", oldest)
            beside = [(at, path) for at, _, path in files if path.parent == oldest.parent and path != oldest]
            if all(at < idle and path.suffix not in SEGMENTS for at, path in beside):
                shutil.rmtree(oldest.parent)
        except OSError as e:
            log.warning("cannot delete %s: %s", oldest, e.strerror)
            return False
        return True


def _size(count: int) -> str:
    for unit, by in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= by:
            return f"{count / by:.1f} {unit}"
    return f"{count} B"
