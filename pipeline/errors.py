"""Errors of more than one module: faults in a file with their places, failures for good."""

from __future__ import annotations

from dataclasses import dataclass

from .stage import StageError


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One thing wrong at one place. Lines and columns count from 1."""

    line: int
    column: int
    message: str


class CriticalFailure(Exception):
    """A node that the session cannot do without has failed for good."""


class LastingError(StageError):
    """Starting the stage again would not help, or would destroy what it has written: its node is given up."""


class GraphError(StageError):
    """A graph cannot be used. Holds every fault found, in file order."""

    def __init__(self, path: str, faults: list[Fault]) -> None:
        self.path = path
        self.faults = sorted(faults)
        super().__init__("\n".join(f"{path}:{f.line}:{f.column}: {f.message}" for f in self.faults))


def of_node(node: str, error: StageError) -> StageError:
    """The error with its node's name in front, once: some stages say it themselves."""
    name = f"node {node!r}: "
    return StageError(name + str(error).removeprefix(name))


def one_line(error: BaseException) -> str:
    """The error as one line for logs and pages."""
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:300]
