"""A text file as what a client types: a line a message, with or without the time it is typed at."""

from __future__ import annotations

import re
from pathlib import Path

from ..pipeline.clock import SECOND
from ..pipeline.frame import TokenFrame
from ..pipeline.stage import StageError
from ..pipeline.units import parse_duration

_TIMED = re.compile(r"\[(\d[^\]]*)\]\s*(.*)")


class ChatFile:
    """Lines such as `[12.5s] what do you see`; one without a time comes a second after the one before, the first at 0.

    Raises: StageError naming file and line, when made.
    """

    def __init__(self, path: str) -> None:
        try:
            lines = Path(path).read_text("utf-8").splitlines()
        except OSError as e:
            raise StageError(f"cannot open {path!r}: {e.strerror}") from e
        except UnicodeDecodeError as e:
            raise StageError(f"{path!r} is no text in UTF-8: {e.reason} at byte {e.start}") from e
        self._lines: list[TokenFrame] = []
        at = -SECOND
        for number, line in enumerate(lines, 1):
            text = line.strip()
            if not text:
                continue
            at += SECOND
            if timed := _TIMED.fullmatch(text):
                before, text = at - SECOND, timed[2]
                try:
                    at = parse_duration(timed[1])
                except ValueError as e:
                    raise StageError(f"{path}:{number}: {e}") from e
                if not text:
                    raise StageError(f"{path}:{number}: nothing is said at {timed[1]}")
                if at < before:
                    raise StageError(f"{path}:{number}: {timed[1]} is before the line above")
            self._lines.append(TokenFrame(pts=at, text=text, utterance=len(self._lines) + 1))
        self._next = 0

    @property
    def duration(self) -> int:
        return self._lines[-1].pts + SECOND if self._lines else 0

    def due(self, until: int | None = None) -> list[TokenFrame]:
        """What is typed up to that time and was not given yet; None: all that is left."""
        first = self._next
        while self._next < len(self._lines) and (until is None or self._lines[self._next].pts <= until):
            self._next += 1
        return self._lines[first : self._next]

    def next(self) -> TokenFrame | None:
        """The next line; None when all were given."""
        if self._next == len(self._lines):
            return None
        self._next += 1
        return self._lines[self._next - 1]
