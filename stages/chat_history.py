"""What was said between a user and a language model, bounded in turns and bytes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Literal, TypeAlias

Role: TypeAlias = Literal["user", "assistant"]


@dataclass(slots=True, eq=False)
class Said:
    """One line. Its text may be revised while it is remembered: an interrupted reply was not all heard."""

    role: Role
    text: str


class ChatHistory:
    """Messages that alternate between the two, the user's first: many chat templates refuse anything else.

    So what the user says twice without an answer (it was interrupted, or it failed) is one message of two
    lines. The oldest is forgotten first; the latest line is kept, cut to the bound.
    """

    def __init__(self, max_turns: int, max_bytes: int) -> None:
        self._max_messages = 2 * max_turns
        self._max_bytes = max_bytes
        self._lines: deque[Said] = deque()

    def add(self, role: Role, text: str) -> Said:
        """A blank text counts for nothing, as an answer to nothing does."""
        line = Said(role, "")
        self._lines.append(line)
        self.revise(line, text)
        return line

    def revise(self, line: Said, text: str) -> None:
        """Say that this was the line's text. Nothing happens when it has been forgotten."""
        # the end of a text that is too long is what was said last
        line.text = text.strip().encode(errors="replace")[-self._max_bytes :].decode(errors="ignore")
        self._forget()

    @property
    def nbytes(self) -> int:
        """UTF-8 bytes of all texts."""
        return sum(len(line.text.encode()) for line in self._lines)

    def messages(self, system: str = "") -> list[dict[str, str]]:
        """As a request carries them, oldest first, after the system prompt if there is one."""
        first = [{"role": "system", "content": system}] if system else []
        return first + [{"role": role, "content": text} for role, text in self._merged()]

    def _merged(self) -> list[tuple[Role, str]]:
        merged: list[tuple[Role, str]] = []
        for line in self._lines:
            if not line.text or (not merged and line.role == "assistant"):
                continue
            if merged and merged[-1][0] == line.role:
                merged[-1] = (line.role, f"{merged[-1][1]}\n{line.text}")
            else:
                merged.append((line.role, line.text))
        return merged

    def _forget(self) -> None:
        lines = self._lines
        while len(lines) > 1 and (
            len(self._merged()) > self._max_messages
            or self.nbytes > self._max_bytes
            or lines[0].role != "user"
            or not lines[0].text
            or len(lines) > 2 * self._max_messages  # lines without a text
        ):
            lines.popleft()
