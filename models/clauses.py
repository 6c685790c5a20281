"""Cuts running text into clauses, so that speech begins before the sentence is known."""

from __future__ import annotations

import re

# End of a clause: punctuation (with quotes or brackets that close after it) and a blank, or a new line.
# The blank is needed: "3.14" and "10:30" go on.
_SENTENCE = re.compile(r"[.!?…]+[\"'”’)\]]*\s+|\n+")
_COMMA = re.compile(r"[,;:–—][\"'”’)\]]*\s+")
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|vs|e\.g|i\.e|etc|No|[A-Z])\.\s+$")

# A first clause without punctuation is cut before one of these, so that nobody waits for a long sentence.
_JOINT = re.compile(
    r"\s+(?=(?:and|or|but|because|that|which|who|when|where|if|so|then|with|for|from|in|on|at|to|by|as|of|is|are|was)\b)",
    re.IGNORECASE,
)

_BLANK = re.compile(r"\s+")

_JOINT_LETTERS = 8  # of the longest of them, and the blank after it

# Characters: (a comma ends the clause after so many, at most so many). The first is short, so that speech begins early: 44 are
# about 2.5 s of speech, made in some 25 ms. While it sounds the second is made, for all who began at the same time one after the
# other, so it is no long one yet. Later ones sound better for being long; 200 are 12 s, the most that is made
# before anybody can stop it.
_LADDER = ((12, 44), (24, 80), (40, 200))
_LONGEST = _LADDER[-1][1]


class ClauseCutter:
    """Push deltas, get clauses; joined, the clauses are the text."""

    def __init__(self) -> None:
        self._text = ""
        self._given = 0  # clauses of this utterance

    def push(self, delta: str) -> list[str]:
        """The clauses that `delta` completes."""
        self._text += delta
        clauses: list[str] = []
        while (end := self._end()) > 0:
            clauses.append(self._text[:end])
            self._text = self._text[end:]
            self._given += 1
        return clauses

    def finish(self) -> str:
        """What is left at the end of the utterance; the cutter is as new."""
        rest, self._text, self._given = self._text, "", 0
        return rest

    def whole_words(self) -> str:
        """What there is up to the last blank, for when no more text comes; "" when no word is sure to be whole."""
        ends = [m.end() for m in _BLANK.finditer(self._text)]
        at = ends[-1] if ends else 0
        if not any(c.isalnum() for c in self._text[:at]):
            return ""
        words, self._text = self._text[:at], self._text[at:]
        self._given += 1
        return words

    def _end(self) -> int:
        """Where the first clause ends; 0 when it may go on."""
        least, longest = _LADDER[min(self._given, len(_LADDER) - 1)]
        window = self._text[:longest]
        ends = [
            match.end()
            for match in _SENTENCE.finditer(window)
            if not _ABBREVIATION.search(window[: match.end()]) and window[: match.start()].strip()
        ][:1]
        if self._given < 2 or not ends:  # later a sentence is not cut where all of it is there
            ends += [match.end() for match in _COMMA.finditer(window) if match.start() >= least][:1]
        if ends:
            return min(ends)
        if len(self._text) <= longest:
            return 0
        patterns = (_COMMA, _BLANK) if self._given > 1 else (_JOINT, _BLANK)
        for pattern in patterns:
            found = pattern.finditer(self._text[: longest + _JOINT_LETTERS])
            ends = [m.end() for m in found if m.end() <= longest and m.start() >= min(least, 12)]
            if ends:
                return ends[-1]
        return longest if len(self._text) > _LONGEST else 0  # a word without end
