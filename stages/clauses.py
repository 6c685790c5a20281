"""Cuts running text into clauses, so that speech begins before the sentence is known."""

from __future__ import annotations

import re

# End of a clause: punctuation (with quotes or brackets that close after it) and a blank, or a new line.
# The blank is needed: "3.14" and "10:30" go on.
_SENTENCE = re.compile(r"[.!?…]+[\"'”’)\]]*\s+|\n+")
_COMMA = re.compile(r"[,;:–—][\"'”’)\]]*\s+")
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|vs|e\.g|i\.e|etc|No|[A-Z])\.\s+$")

_FIRST = 12  # characters: a comma may end the first clause after this many, so that speech begins early
_LATER = 40  # and later ones after this many: fewer, longer clauses sound better
_LONGEST = 200  # about 12 s of speech, the most that is made before anybody can stop it


class ClauseCutter:
    """Push deltas, get clauses; joined, the clauses are the text."""

    def __init__(self) -> None:
        self._text = ""
        self._started = False

    def push(self, delta: str) -> list[str]:
        """The clauses that `delta` completes."""
        self._text += delta
        clauses: list[str] = []
        while (end := self._end()) > 0:
            clauses.append(self._text[:end])
            self._text = self._text[end:]
            self._started = True
        return clauses

    def finish(self) -> str:
        """What is left at the end of the utterance; the cutter is as new."""
        rest, self._text, self._started = self._text, "", False
        return rest

    def _end(self) -> int:
        """Where the first clause ends; 0 when it may go on."""
        window = self._text[:_LONGEST]
        for match in _SENTENCE.finditer(window):
            if not _ABBREVIATION.search(window[: match.end()]) and window[: match.start()].strip():
                return match.end()
        if len(self._text) > _LONGEST:
            for pattern in (_COMMA, re.compile(r"\s+")):
                ends = [m.end() for m in pattern.finditer(window)]
                if ends:
                    return ends[-1]
            return _LONGEST
        least = _LATER if self._started else _FIRST
        for match in _COMMA.finditer(window):
            if match.start() >= least:
                return match.end()
        return 0
