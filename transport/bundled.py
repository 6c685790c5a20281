"""Where the codec libraries are that PyAV brings with it, for what FFmpeg does not pass on of them."""

from __future__ import annotations

import ctypes.util
from collections.abc import Iterator
from pathlib import Path

import av


def candidates(name: str) -> Iterator[str]:
    """Paths of lib`name`: PyAV's own first, which its wheels always have, then the system's."""
    yield from map(str, sorted((Path(av.__file__).parent.parent / "av.libs").glob(f"lib{name}[-.]*")))
    yield from map(str, sorted((Path(av.__file__).parent / ".dylibs").glob(f"lib{name}[-.]*")))
    if (found := ctypes.util.find_library(name)) is not None:
        yield found
