"""Wrong options of the command line, in the same words as wrong values of a graph file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import typer
from pydantic import ValidationError
from typer.core import TyperGroup

from .faults import first_in_words

T = TypeVar("T")


class Commands(TyperGroup):
    """All commands. typer has its values checked by pydantic and tells that library's words, without the value."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as e:
            if isinstance(e.__cause__, ValidationError):
                e.message = first_in_words(e.__cause__)
            raise


def option(name: str, parse: Callable[[str], T], value: str) -> T:
    """The value as `parse` reads it. Raises: BadParameter that names the option."""
    try:
        return parse(value)
    except ValueError as e:
        raise typer.BadParameter(str(e), param_hint=name) from e
