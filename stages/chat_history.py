"""What was said between a user and a language model, bounded in turns and bytes."""

from __future__ import annotations

from collections import deque
from typing import Literal, TypeAlias

Role: TypeAlias = Literal["user", "assistant"]


class ChatHistory:
    """Messages that alternate between the two, the user's first: many chat templates refuse anything else.

    So what the user says twice without an answer (it was interrupted, or it failed) is one message of two
    lines. The oldest is forgotten first; the latest message is kept, cut to the bound.
    """

    def __init__(self, max_turns: int, max_bytes: int) -> None:
        self._max_messages = 2 * max_turns
        self._max_bytes = max_bytes
        self._messages: deque[tuple[Role, str]] = deque()

    def add(self, role: Role, text: str) -> None:
        """Nothing happens for a blank text, nor for an answer to nothing."""
        text = text.strip()
        if not text or (role == "assistant" and not self._messages):
            return
        if self._messages and self._messages[-1][0] == role:
            text = f"{self._messages.pop()[1]}\n{text}"
        # the end of a text that is too long is what was said last
        text = text.encode(errors="replace")[-self._max_bytes :].decode(errors="ignore")
        self._messages.append((role, text))
        while len(self._messages) > 1 and (
            len(self._messages) > self._max_messages
            or self.nbytes > self._max_bytes
            or self._messages[0][0] != "user"
        ):
            self._messages.popleft()
        if self._messages[0][0] != "user":
            self._messages.clear()

    @property
    def nbytes(self) -> int:
        """UTF-8 bytes of all texts."""
        return sum(len(text.encode()) for _, text in self._messages)

    def messages(self, system: str = "") -> list[dict[str, str]]:
        """As a request carries them, oldest first, after the system prompt if there is one."""
        first = [{"role": "system", "content": system}] if system else []
        return first + [{"role": role, "content": text} for role, text in self._messages]
