"""What may stand behind a bar in an input: `cam.video|every(500ms)`, `caption.text|hold(3s)`,
`cam.audio|delay(80ms)`, `cam.audio|delay(match overlay)`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .units import parse_duration

_CALL = re.compile(r"\s*([a-z]+)\(([^()]*)\)\s*")
_MATCH = re.compile(r"\s*match\s+([a-z][a-z0-9_-]*)\s*")
ACCEPTED = "every(500ms), hold(3s), delay(80ms), delay(match NODE)"


@dataclass(frozen=True, slots=True)
class Filters:
    """Times in ns; 0 and "" mean none."""

    thin: int = 0  # at most one frame in each
    hold: int = 0  # a frame counts for so long after its pts, then dies at the edge
    delay: int = 0  # a frame is held back until so long after its pts
    match: str = ""  # … or for as long as frames of that node are on their way to the same reader


NO_FILTERS = Filters()


def parse_filters(texts: list[str]) -> Filters:
    """Filters as written between the bars. Raises: ValueError naming the filter and what is accepted."""
    given: dict[str, int | str] = {}
    names = {"every": "thin", "hold": "hold", "delay": "delay"}
    for text in texts:
        call = _CALL.fullmatch(text)
        if call is None or call[1] not in names:
            raise ValueError(f"unknown filter {text.strip()!r}; accepted: {ACCEPTED}")
        matched = _MATCH.fullmatch(call[2]) if call[1] == "delay" else None
        field = "match" if matched else names[call[1]]
        if field in given or {field, *given} >= {"delay", "match"}:
            raise ValueError(f"filter {text.strip()!r}: {call[1]} is given twice")
        given[field] = matched[1] if matched else parse_duration(call[2])
        if not given[field]:
            raise ValueError(f"filter {text.strip()!r}: the time must be more than 0")
    return Filters(**given)  # pyright: ignore[reportArgumentType] - each field gets its own kind above
