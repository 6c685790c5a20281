"""Live parameters of a running node: what a change may be."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ValidationError

from .faults import in_words, near
from .stage import StageError


def changed(model: type[BaseModel], old: BaseModel, values: Mapping[str, object], node: str) -> BaseModel:
    """`old` with these values, validated. Raises: StageError naming node, parameter, value and what is accepted."""
    for key in values:
        if key not in model.model_fields:
            raise StageError(f"{node!r} has no parameter {key!r}{near(key, list(model.model_fields))}")
    try:
        return model.model_validate(old.model_dump() | dict(values))
    except ValidationError as e:
        first = e.errors()[0]
        key = ".".join(map(str, first["loc"])) or "?"
        words = in_words(first)
        got = "" if first["type"] != "value_error" else f" (got {first['input']!r:.80})"
        raise StageError(f"parameter {node}.{key}: {words}{got}") from e
