"""Logging: one readable line to a terminal, one JSON object a line elsewhere. No media, no transcripts."""

from __future__ import annotations

import json
import logging
import sys

_STANDARD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "asctime", "taskName"}


class JsonFormatter(logging.Formatter):
    """`{"ts":…,"level":…,"logger":…,"msg":…}` and the record's extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, object] = {
            "ts": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "logger": record.name.removeprefix("penstock."),
            "msg": record.getMessage(),
        }
        entry |= {k: v for k, v in record.__dict__.items() if k not in _STANDARD}
        if record.exc_info:
            entry["exc"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str, ensure_ascii=False)


class LineFormatter(logging.Formatter):
    """`12:00:01 info  transport.server: …`; tracebacks only below a level that asks for them."""

    def __init__(self, tracebacks: bool) -> None:
        super().__init__(datefmt="%H:%M:%S")
        self._tracebacks = tracebacks

    def format(self, record: logging.LogRecord) -> str:
        name = record.name.removeprefix("penstock.")
        line = f"{self.formatTime(record, self.datefmt)} {record.levelname.lower():7} {name}: {record.getMessage()}"
        if record.exc_info and self._tracebacks:
            line += "\n" + self.formatException(record.exc_info)
        return line


def setup(level: str = "info", as_json: bool | None = None) -> None:
    """Log to stderr. as_json None: JSON where stderr is no terminal. Raises: ValueError for a bad level."""
    number = logging.getLevelNamesMapping().get(level.upper())
    if number is None:
        raise ValueError(f"unknown log level {level!r}; accepted: debug, info, warning, error")
    handler = logging.StreamHandler(sys.stderr)
    if as_json is None:
        as_json = not sys.stderr.isatty()
    handler.setFormatter(JsonFormatter() if as_json else LineFormatter(number <= logging.DEBUG))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))
    logging.getLogger("penstock").setLevel(number)
