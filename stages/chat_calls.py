"""Function calls of a language model, put together from the pieces of a stream.

Source: OpenAI API reference, "Chat: streaming", `delta.tool_calls`; vLLM, llama.cpp's server and Ollama differ in what
they leave out (index, id), never in what they mean.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, cast

MOST_CALLS = 16  # of one answer
MOST_ARGUMENTS = 64 * 1024  # characters of all of them


class BadCall(ValueError):
    """A piece that is none of the wire format's, or too much of it."""


@dataclass(slots=True)
class FunctionCall:
    """One call, complete when the answer is. `arguments` is JSON as the model wrote it, which may be wrong."""

    id: str
    name: str = ""
    arguments: str = ""

    def parsed(self) -> dict[str, Any]:
        """Raises: ValueError, in words for the model."""
        try:
            value = json.loads(self.arguments or "{}")
        except (ValueError, RecursionError):
            raise ValueError("the arguments are not JSON") from None
        if not isinstance(value, dict):
            raise ValueError("the arguments are not a JSON object")
        return cast("dict[str, Any]", value)

    def as_message(self) -> dict[str, Any]:
        """As the next request repeats it."""
        function = {"name": self.name, "arguments": self.arguments or "{}"}
        return {"id": self.id, "type": "function", "function": function}


class CallAssembler:
    """Feed it each delta's `tool_calls`; `calls` are in the order of their beginnings."""

    def __init__(self) -> None:
        self.calls: list[FunctionCall] = []
        self._by_index: dict[int, FunctionCall] = {}
        self._size = 0

    def feed(self, pieces: object) -> None:
        """Raises: BadCall."""
        if not isinstance(pieces, list):
            raise BadCall("tool_calls is not a list")
        for place, piece in enumerate(cast("list[Any]", pieces)):
            if not isinstance(piece, dict):
                raise BadCall("a tool call is not a JSON object")
            self._piece(place, cast("dict[str, Any]", piece))

    def _piece(self, place: int, piece: dict[str, Any]) -> None:
        index, id_ = piece.get("index", place), piece.get("id")
        function = piece.get("function") or {}
        if not isinstance(index, int) or not isinstance(function, dict) or not isinstance(id_, str | None):
            raise BadCall("a tool call has an odd index, id or function")
        fields = cast("dict[str, Any]", function)
        name, arguments = fields.get("name") or "", fields.get("arguments") or ""
        if isinstance(arguments, dict):  # some servers send the object itself
            arguments = json.dumps(arguments)
        if not isinstance(name, str) or not isinstance(arguments, str):
            raise BadCall("the name or the arguments of a tool call are not text")
        call = self._by_index.get(index)
        # some servers give every call the index 0: another id begins another call
        if call is None or (id_ and id_ != call.id and name):
            if len(self.calls) >= MOST_CALLS:
                raise BadCall(f"more than {MOST_CALLS} calls in one answer")
            call = self._by_index[index] = FunctionCall(id_ or f"call-{len(self.calls)}")
            self.calls.append(call)
        if len(call.name) < 256:
            call.name += name
        self._size += len(arguments)
        if self._size > MOST_ARGUMENTS:
            raise BadCall(f"the arguments of the calls are over {MOST_ARGUMENTS} characters")
        call.arguments += arguments
