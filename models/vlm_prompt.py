"""A chat template cut into the pieces of a stream: what comes first, a question, and the way back to watching."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_ASKED, _SAID = "\u2402question\u2402", "\u2402answer\u2402"  # never part of a template
SYSTEM = (
    "You watch a live video. Answer in one or two short spoken sentences, only from what the pictures show."
)
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


class Prompt:
    """head … pictures … question(text) answer closing … pictures …, all as token ids.

    Raises: ValueError when the checkpoint has no tokenizer, or a template that shows no picture.
    """

    def __init__(self, folder: Path, picture: str, system: str = "") -> None:
        from transformers import AutoTokenizer

        if not any((folder / name).is_file() for name in _TOKENIZERS):
            raise ValueError(f"{folder}: no tokenizer there: it has none of {', '.join(_TOKENIZERS)}")
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as e:  # the tokenizers package raises no narrower one
            raise ValueError(f"{folder}: its tokenizer cannot be read: {_words(e)}") from e
        template = self._tokenizer.chat_template or _template(folder)
        if not template:
            raise ValueError(
                f"{folder}: no chat template; an instruction-tuned model has chat_template.jinja"
            )
        turn = [{"type": "image"}, {"type": "text", "text": _ASKED}]
        chat = [
            {"role": "system", "content": [{"type": "text", "text": system or SYSTEM}]},
            {"role": "user", "content": turn},
            {"role": "assistant", "content": [{"type": "text", "text": _SAID}]},
            {"role": "user", "content": turn},
        ]
        try:
            text: str = self._tokenizer.apply_chat_template(
                chat, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except Exception as e:  # a template is a program
            raise ValueError(f"{folder}: its chat template cannot be used: {_words(e)}") from e
        head, *rest = text.split(picture)
        if len(rest) != 2 or _ASKED not in rest[0] or _SAID not in rest[0]:
            raise ValueError(f"{folder}: its chat template does not show a picture as {picture!r}")
        lead, after = rest[0].split(_ASKED, 1)
        bridge, back = after.split(_SAID, 1)
        self.head, self.closing = self.encode(head), self.encode(back)
        self._lead, self._bridge = lead, bridge
        ends = self.encode(back.strip().split("\n")[0])
        eos = self._tokenizer.eos_token_id
        self.stop: frozenset[int] = frozenset([*ends[:1], *([] if eos is None else [eos])])

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False)) if text else []

    def question(self, text: str) -> list[int]:
        # what people type must not open a turn of its own
        clean = self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
        return [*self.encode(self._lead), *clean, *self.encode(self._bridge)]

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def first_ids(self, *words: str) -> list[int]:
        """The first ids of these words, each once."""
        return sorted({ids[0] for w in words if (ids := self.encode(w))})


def _template(folder: Path) -> str:
    """Older checkpoints keep the processor's template in a file of its own."""
    for name in ("chat_template.jinja", "chat_template.json"):
        path = folder / name
        if path.exists():
            text = path.read_text(encoding="utf-8")
            return text if name.endswith("jinja") else str(json.loads(text).get("chat_template", ""))
    return ""


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
