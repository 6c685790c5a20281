"""Vocabularies: Whisper's byte-level one from `tokenizer.json`, and a plain list of words for fixtures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol


class Tokens(Protocol):
    """What a streamer needs to know of a vocabulary."""

    prefix: Sequence[int]  # forced before the text
    eot: int
    banned: Sequence[int]  # never said

    def decode(self, ids: Sequence[int]) -> str: ...

    def begins_word(self, token: int) -> bool: ...

    def encode(self, word: str) -> list[int]:
        """A word that follows others → its tokens. Raises: ValueError when it cannot be written."""
        ...


class WordTokens:
    """One token a word. Ids: the words, then the end of text, then the start."""

    def __init__(self, words: Sequence[str]) -> None:
        if not words or len(set(words)) != len(words):
            raise ValueError(
                f"{len(words)} words, {len(set(words))} different; needed: all different, at least one"
            )
        self.words = tuple(words)
        self.eot = len(words)
        self.prefix: Sequence[int] = [len(words) + 1]
        self.banned: Sequence[int] = [len(words) + 1]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.words[i] for i in ids if i < len(self.words))

    def begins_word(self, token: int) -> bool:
        return token < len(self.words)

    def encode(self, word: str) -> list[int]:
        if word not in self.words:
            raise ValueError(f"{word!r} is none of the {len(self.words)} words of this vocabulary")
        return [self.words.index(word)]


class WhisperTokens:
    """Whisper's multilingual or English vocabulary.

    The text is forced to begin with `<|startoftranscript|><|LANG|><|transcribe|><|notimestamps|>` (without
    language and task in English-only models). Special tokens other than the end are never said.
    """

    def __init__(self, tokenizer: Any, language: str = "en", size: int | None = None) -> None:
        self._tokenizer = tokenizer
        ids: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        self._size = size or max(ids.values()) + 1
        self.eot = self._id(ids, "<|endoftext|>")
        start = self._id(ids, "<|startoftranscript|>")
        prefix = [start]
        if self._size >= 51865 or (size is None and "<|transcribe|>" in ids and f"<|{language}|>" in ids):
            prefix += [self._id(ids, f"<|{language}|>"), self._id(ids, "<|transcribe|>")]
        prefix.append(self._id(ids, "<|notimestamps|>"))
        self.prefix: Sequence[int] = prefix
        self.banned: Sequence[int] = [i for i in range(self.eot + 1, self._size) if i != self.eot]
        space = "\u0120"  # byte-level BPE writes a leading space so
        self._begins = frozenset(i for token, i in ids.items() if token.startswith(space))

    @staticmethod
    def _id(ids: dict[str, int], token: str) -> int:
        if token not in ids:
            languages = sorted(t[2:-2] for t in ids if t.startswith("<|") and 4 < len(t) <= 7)
            raise ValueError(
                f"the tokenizer has no {token}; languages it has: {', '.join(languages) or 'none'}"
            )
        return ids[token]

    @classmethod
    def load(cls, path: Path, language: str = "en", size: int | None = None) -> WhisperTokens:
        """From a `tokenizer.json`, or the folder that holds one. Raises: FileNotFoundError, ValueError."""
        from tokenizers import Tokenizer  # the hub extra

        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing; a Whisper checkpoint needs its tokenizer.json beside it"
            )
        return cls(Tokenizer.from_file(str(file)), language, size)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def begins_word(self, token: int) -> bool:
        return token in self._begins

    def encode(self, word: str) -> list[int]:
        return list(self._tokenizer.encode(f" {word}", add_special_tokens=False).ids)
