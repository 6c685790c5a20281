"""What is wrong in a file, all of it at once, each with its place and what is accepted instead."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .errors import Fault
from .units import Quantity, parse_duration
from .yaml_marks import Marks, Path


def near(value: str, accepted: list[str] | tuple[str, ...]) -> str:
    """ "; did you mean 'x'? it takes: a, b" for an error's end."""
    match = get_close_matches(value, accepted, n=1)
    hint = f"; did you mean {match[0]!r}?" if match else ";"
    return f"{hint} accepted: {', '.join(accepted) if accepted else 'nothing'}"


_EXPECTED = {
    "bool_parsing": "true or false is expected",
    "bool_type": "true or false is expected",
    "dict_type": "a mapping is expected, as {name: value}",
    "extra_forbidden": "there is no such key",
    "finite_number": "a finite number is expected",
    "float_parsing": "a number is expected",
    "float_type": "a number is expected",
    "int_from_float": "a whole number is expected",
    "int_parsing": "a whole number is expected",
    "int_type": "a whole number is expected",
    "mapping_type": "a mapping is expected, as {name: value}",
    "missing": "it must be given",
    "model_attributes_type": "a mapping is expected, as {name: value}",
    "model_type": "a mapping is expected, as {name: value}",
    "path_type": "a path is expected",
}
_PLAIN = re.compile(r"[\w./ -]{1,60}")  # needs no quotes in YAML
_LISTS = ("frozen_set_type", "list_type", "set_type", "tuple_type")
_LENGTHS = {
    "string_too_long": "at most {max_length} characters are taken",
    "string_too_short": "at least {min_length} characters are expected",
    "too_long": "at most {max_length} entries are taken",
    "too_short": "at least {min_length} entries are expected",
}
_BOUNDS = {
    "greater_than": ("more than", "gt"),
    "greater_than_equal": ("at least", "ge"),
    "less_than": ("less than", "lt"),
    "less_than_equal": ("at most", "le"),
}


def first_in_words(error: ValidationError, tell: bool = True, nowhere: str = "") -> str:
    """The first of the errors, after its place; nowhere: what to call the whole. tell: as of `in_words`."""
    first = error.errors()[0]
    where = ".".join(map(str, first["loc"]))[:80] or nowhere
    words = in_words(first, tell)
    return f"{where}: {words}" if where else words


def in_words(error: ErrorDetails, tell: bool = True) -> str:
    """What is expected instead, without the place. tell: may the value be shown? (A secret may not.)"""
    kind, ctx, value = error["type"], error.get("ctx", {}), error["input"]
    if kind == "value_error":  # whoever refused it knows whether the value may be shown
        return error["msg"].removeprefix("Value error, ")
    if kind in _BOUNDS and _is_nan(value):
        said = _EXPECTED["finite_number"]
    elif kind in _BOUNDS:
        words, key = _BOUNDS[kind]
        bound = type(value)(ctx[key]) if isinstance(value, Quantity) else ctx[key]
        said = f"it must be {words} {str(bound).removesuffix('.0')}"
    elif kind in _LENGTHS:
        said = "it must not be empty" if ctx.get("min_length") == 1 else _LENGTHS[kind].format(**ctx)
    elif kind in _LISTS:
        shown = tell and isinstance(value, str | int | float) and _PLAIN.fullmatch(str(value))
        said = f"a list is expected, as [{value if shown else 'a, b'}]"
    elif kind == "string_type":
        said = "text is expected" + ("; put it in quotes" if isinstance(value, int | float) else "")
    elif kind == "string_pattern_mismatch":
        said = f"accepted is what matches {ctx['pattern']}"
    elif kind in ("enum", "literal_error"):
        said = f"accepted: {ctx['expected']}"
    else:
        said = _EXPECTED.get(kind, error["msg"])
    return f"{said} (got {value!r:.80})" if tell and kind != "missing" else said


def _is_nan(value: object) -> bool:
    """No bound holds of it, so a bound is what refuses it first."""
    try:
        return isinstance(value, int | float | str) and math.isnan(float(value))
    except (ValueError, OverflowError):
        return False


class Faults:
    """Readers of the values that any part of a graph may hold; what does not fit becomes a fault."""

    def __init__(self, marks: Marks) -> None:
        self.marks = marks
        self.faults: list[Fault] = []

    def fault(self, where: Path, message: str) -> None:
        while where and where not in self.marks:
            where = where[:-1]
        self.faults.append(Fault(*self.marks.get(where, (1, 1)), message))

    def mapping(self, value: Any, where: Path, what: str) -> dict[str, Any]:
        if isinstance(value, dict):
            return value
        if value is not None:
            self.fault(where, f"{what} must be a mapping, not {value!r}")
        return {}

    def keys(self, value: Mapping[str, Any], where: Path, accepted: tuple[str, ...], what: str) -> None:
        for key in value:
            if key not in accepted:
                self.fault((*where, key), f"{what} has no key {key!r}{near(key, accepted)}")

    def duration(self, value: Any, where: Path) -> int:
        try:
            return parse_duration(value)
        except ValueError as e:
            self.fault(where, f"{where[-1]}: {e}" if where else str(e))
            return 0

    def model(
        self,
        model: type[BaseModel],
        values: Mapping[str, Any],
        where: Path,
        what: str,
        extra: tuple[str, ...] = (),
    ) -> BaseModel:
        fields = tuple(model.model_fields)
        unknown = [key for key in values if key not in fields]
        for key in unknown:
            self.fault((*where, key), f"{what} has no key {key!r}{near(key, (*fields, *extra))}")
        try:
            return model.model_validate({k: v for k, v in values.items() if k in fields})
        except ValidationError as e:
            for error in e.errors():
                loc = tuple(error["loc"])
                name = f"{'.'.join(map(str, loc))}: " if loc else ""
                self.fault((*where, *loc), f"{what}: {name}{in_words(error)}")
            return model.model_construct()
