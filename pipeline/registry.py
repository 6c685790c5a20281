"""Which class a node's `use:` names: ours from the folders' catalogues, users' own from entry points."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points

from .stage import Stage, StageError

_ROOT = __name__.split(".")[0]  # "penstock"


EXTRA: dict[str, type[Stage]] = {}
"""Stages of an embedding program or a test, by `use` name: classes that need no packaging."""


class UnknownStage(StageError):
    """`use:` names nothing we know."""


@cache
def catalog() -> Mapping[str, str]:
    """`use` name → "module:Class". Importing no stage: listing must be instant.

    `stages` and `transport` declare theirs in a dict CATALOG; other packages may add to the entry point
    group "penstock.stages". Ours win: nothing can silently replace an embedded stage.
    """
    table = {ep.name: ep.value for ep in entry_points(group="penstock.stages")}
    for folder in ("stages", "transport"):
        name = f"{_ROOT}.{folder}"
        entries: Mapping[str, str] = importlib.import_module(name).CATALOG
        table |= {use: f"{name}.{where}" for use, where in entries.items()}
    return table


def load(use: str) -> type[Stage]:
    """The stage class of a `use` name. Raises: UnknownStage, or StageError when a package is missing."""
    if use in EXTRA:
        return EXTRA[use]
    table = catalog()
    if use not in table:
        match = get_close_matches(use, table, n=1)
        hint = f"; did you mean {match[0]!r}?" if match else ";"
        raise UnknownStage(f"unknown stage {use!r}{hint} known: {', '.join(sorted(table))}")
    module, _, name = table[use].partition(":")
    try:
        cls = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as e:
        raise StageError(f"stage {use!r} needs the package {e.name!r}, which is not installed") from e
    if not (isinstance(cls, type) and issubclass(cls, Stage)):
        raise StageError(f"stage {use!r}: {table[use]} is not a Stage")
    return cls
