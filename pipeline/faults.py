"""What is wrong in a file, all of it at once, each with its place and what is accepted instead."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel, ValidationError

from .errors import Fault
from .units import parse_duration
from .yaml_marks import Marks, Path


def near(value: str, accepted: list[str] | tuple[str, ...]) -> str:
    """ "; did you mean 'x'? it takes: a, b" for an error's end."""
    match = get_close_matches(value, accepted, n=1)
    hint = f"; did you mean {match[0]!r}?" if match else ";"
    return f"{hint} accepted: {', '.join(accepted) if accepted else 'nothing'}"


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
            self.fault(where, str(e))
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
                message = error["msg"].removeprefix("Value error, ")
                given = (
                    "" if error["type"] in ("missing", "value_error") else f" (got {error['input']!r:.80})"
                )
                self.fault((*where, *loc), f"{what}: {'.'.join(map(str, loc))}: {message}{given}")
            return model.model_construct()
