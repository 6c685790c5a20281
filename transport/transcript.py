"""What a client that comes back has missed: the final words of a session, numbered, bounded in count and bytes.

Kept in memory only, gone with the session.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

LINES = 2000
BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Entry:
    number: int
    kind: str  # of message: "text" or "chat"
    fields: Mapping[str, Any]
    size: int


class Transcript:
    """`add` as it is sent; `since` what a client has not seen."""

    def __init__(self, lines: int = LINES, size: int = BYTES) -> None:
        self.last = 0  # number of the newest entry
        self._entries: deque[Entry] = deque()
        self._lines = lines
        self._most = size
        self._size = 0

    def add(self, kind: str, fields: Mapping[str, Any]) -> int:
        """Returns its number."""
        self.last += 1
        entry = Entry(self.last, kind, fields, len(str(fields.get("text", ""))) * 2 + 200)
        self._entries.append(entry)
        self._size += entry.size
        while len(self._entries) > self._lines or self._size > self._most:
            self._size -= self._entries.popleft().size
        return self.last

    def missed(self, after: int) -> int:
        """How many entries since then are no longer known."""
        oldest = self._entries[0].number if self._entries else self.last + 1
        return max(0, oldest - 1 - max(after, 0))

    def since(self, after: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Messages after that number, each with its own as `n`; the deltas of one utterance that follow each
        other as one."""
        pending: dict[str, Any] | None = None
        for entry in self._entries:
            if entry.number <= after:
                continue
            fields = dict(entry.fields) | {"n": entry.number}
            if pending is not None and _continues(pending, entry.kind, fields):
                pending |= {"text": pending["text"] + fields["text"], "end": fields["end"], "n": entry.number}
                continue
            if pending is not None:
                yield "text", pending
                pending = None
            if entry.kind == "text" and fields.get("kind") == "delta":
                pending = fields
            else:
                yield entry.kind, fields
        if pending is not None:
            yield "text", pending


def _continues(pending: Mapping[str, Any], kind: str, fields: Mapping[str, Any]) -> bool:
    same = all(pending[key] == fields.get(key) for key in ("from", "kind", "utterance"))
    # merged messages keep to the size that a message may have
    return kind == "text" and same and len(pending["text"]) + len(fields["text"]) <= 3000
