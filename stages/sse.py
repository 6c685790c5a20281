"""Server-sent events out of bytes that may be split anywhere.

Source: WHATWG HTML, section 9.2 "Server-sent events": parsing an event stream.
"""

from __future__ import annotations

from dataclasses import dataclass

_BOM = b"\xef\xbb\xbf"


class EventTooLong(ValueError):
    """One event, or one line, is over the parser's bound."""


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """`data`: the event's data lines joined by a newline. `name`: its type, "message" when none is given."""

    data: str
    name: str = "message"


class EventStreamParser:
    """Feed it bytes as they come; it gives the events that are complete.

    Lines end with CR LF, LF or CR. What no blank line has ended when the stream does is not an event. Fields
    `id` and `retry` serve reconnection, which a POSTed request has not: they are let pass.
    """

    def __init__(self, max_event: int = 256 * 1024) -> None:
        self._max_event = max_event  # bytes of one line, and of one event's data
        self._line = bytearray()  # the line being read, without its end
        self._data: list[str] = []
        self._size = 0  # bytes in _data
        self._name = ""
        self._after_cr = False  # an LF that comes next belongs to the CR before it
        self._first = True  # no line has been read: a BOM may lead

    def feed(self, data: bytes) -> list[ServerEvent]:
        """The events that `data` completes. Raises: EventTooLong."""
        events: list[ServerEvent] = []
        # bytes.splitlines knows CR, LF and CR LF only, as the specification does; str's knows more
        for part in data.splitlines(keepends=True):
            if self._after_cr:
                self._after_cr = False
                if part == b"\n":
                    continue
            text = part.rstrip(b"\r\n")
            if len(self._line) + len(text) > self._max_event:
                raise EventTooLong(f"a line of an event stream is longer than {self._max_event} bytes")
            self._line += text
            if len(text) == len(part):
                continue  # the line goes on in the next piece
            self._after_cr = part.endswith(b"\r")
            line = bytes(self._line)
            self._line.clear()
            if self._first:
                self._first = False
                line = line.removeprefix(_BOM)
            if event := self._end_line(line):
                events.append(event)
        return events

    def _end_line(self, line: bytes) -> ServerEvent | None:
        if not line:
            return self._dispatch()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._size += len(value) + 1
            if self._size > self._max_event:
                raise EventTooLong(f"an event is longer than {self._max_event} bytes")
            self._data.append(value.decode(errors="replace"))
        elif field == b"event":
            self._name = value.decode(errors="replace")
        return None  # a comment (no field name), or a field that is of no use here

    def _dispatch(self) -> ServerEvent | None:
        data, name = self._data, self._name
        self._data, self._name, self._size = [], "", 0
        return ServerEvent("\n".join(data), name or "message") if data else None
