"""Text as files: WebVTT, SubRip, plain lines, and JSON lines.

Each cue is appended by one write, so that a file is valid after every cue, also when the process dies.

Source: W3C WebVTT (2019) §4 "Syntax"; SubRip as players read it (no specification).
"""

from __future__ import annotations

import html
import json
import os
import re
from pathlib import Path
from typing import Literal

from ..pipeline.clock import MS, SECOND
from ..pipeline.frame import TokenFrame

Kind = Literal["partial", "commit", "delta"]
TEXT_SUFFIXES = frozenset({".vtt", ".srt", ".txt", ".jsonl"})

_READING = 65 * MS  # per character: the usual 15 characters a second of subtitles
_SHORTEST = SECOND
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\ufffe\uffff\ud800-\udfff]")


def stamp(pts: int, mark: str = ".") -> str:
    """ns → `HH:MM:SS.mmm`; SubRip's mark is a comma."""
    ms = max(0, pts) // MS
    return f"{ms // 3_600_000:02}:{ms // 60_000 % 60:02}:{ms // 1000 % 60:02}{mark}{ms % 1000:03}"


def one_line(text: str) -> str:
    """Without line breaks, which end a cue, and without characters that no text file may hold."""
    return " ".join(_CONTROL.sub(" ", text).split())


def vtt_cue(start: int, end: int, text: str) -> str:
    """One WebVTT cue with its blank line; & < > become references, so no text can close a cue."""
    return f"{stamp(start)} --> {stamp(end)}\n{html.escape(one_line(text), quote=False)}\n\n"


def srt_cue(number: int, start: int, end: int, text: str) -> str:
    """One SubRip cue, counted from 1. SubRip has no escapes: an arrow in the text becomes one character."""
    return f"{number}\n{stamp(start, ',')} --> {stamp(end, ',')}\n{one_line(text).replace('-->', '→')}\n\n"


class CaptionFile:
    """Writes what a graph says to `path`; the suffix tells the form. Blocking.

    vtt, srt and txt hold what is committed; jsonl holds every frame, those in doubt too, as the wire protocol
    names them. Raises: OSError.
    """

    def __init__(self, path: Path) -> None:
        self.form = path.suffix.lower()
        if self.form not in TEXT_SUFFIXES:
            raise ValueError(f"{path.name!r}: text goes to {', '.join(sorted(TEXT_SUFFIXES))}")
        self.cues = 0
        self._last = 0  # start of the last cue: WebVTT wants them in order
        self._deltas: dict[str, tuple[int, str]] = {}  # by source: (pts of the first, text so far)
        self.path = path
        self._begun = False  # an older file of this name is kept until there is something to write
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)

    def write(self, frame: TokenFrame, source: str, origin: int = 0) -> None:
        """Take one text frame from "node.port"; `origin` ns is where the file's time begins."""
        kind: Kind = "partial" if source.endswith(".partial") else "commit" if frame.end else "delta"
        start, until = frame.pts - origin, frame.until - origin if frame.until else 0
        if self.form == ".jsonl":
            self._json(frame, source, kind, start, until)
            return
        if kind == "partial":
            return
        began, text = self._deltas.pop(source, (start, ""))
        text += frame.text
        if kind == "delta":
            self._deltas[source] = (began, text)
        else:
            self.cue(began, until, text)

    def cue(self, start: int, end: int, text: str) -> None:
        """Append a cue; without an end it stays as long as it takes to read."""
        text = one_line(text)
        if not text:
            return
        start = max(start, self._last, 0)
        if end < start + 10 * MS:
            end = start + max(_SHORTEST, len(text) * _READING)
        self._last = start
        self.cues += 1
        if self.form == ".vtt":
            self._append(vtt_cue(start, end, text))
        elif self.form == ".srt":
            self._append(srt_cue(self.cues, start, end, text))
        else:
            self._append(text + "\n")

    def close(self, ended: bool = True) -> None:
        """Write what never got its end, and close. Idempotent. A run that failed early leaves no empty file."""
        if self._fd < 0:
            return
        try:
            for start, text in self._deltas.values():
                self.cue(start, 0, text)
            if ended and not self._begun:
                self._append("")  # nothing was said: an empty file says so
            elif not self._begun and os.fstat(self._fd).st_size == 0:
                self.path.unlink(missing_ok=True)
        finally:
            self._deltas.clear()
            os.close(self._fd)
            self._fd = -1

    def _json(self, frame: TokenFrame, source: str, kind: Kind, start: int, until: int) -> None:
        line = {
            "from": source,
            "kind": kind,
            "text": frame.text,
            "pts_ms": start // MS,
            "until_ms": until // MS,
            "utterance": frame.utterance,
            "end": frame.end,
        }
        self.cues += 1
        self._append(json.dumps(line) + "\n")  # ASCII: any string survives

    def _append(self, text: str) -> None:
        if not self._begun:
            self._begun = True
            os.ftruncate(self._fd, 0)
            if self.form == ".vtt":
                text = f"WEBVTT\n\n{text}"
        data = text.encode("utf-8", "replace")
        while data:
            data = data[os.write(self._fd, data) :]
