"""Faults in a graph file, told with file, line and column."""

from __future__ import annotations

from dataclasses import dataclass

from .stage import StageError


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One thing wrong at one place. Lines and columns count from 1."""

    line: int
    column: int
    message: str


class GraphError(StageError):
    """A graph cannot be used. Holds every fault found, in file order."""

    def __init__(self, path: str, faults: list[Fault]) -> None:
        self.path = path
        self.faults = sorted(faults)
        super().__init__("\n".join(f"{path}:{f.line}:{f.column}: {f.message}" for f in self.faults))


def one_line(error: BaseException) -> str:
    """The error as one line for logs and pages."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:300]
