"""What is asked for? By its words; English only, and it may well not know."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

Need: TypeAlias = Literal["text", "motion", "whole", "unknown"]

_TEXT = re.compile(
    r"\b(read|says?|said|written|writing|text|numbers?|digits?|codes?|qr|barcodes?|labels?|signs?|prices?|screens?|"
    r"displays?|titles?|letters?|words?|serial|spell\w*|plates?|expir\w+|phone|url|e-?mail|pages?|receipts?|invoices?|"
    r"menus?|instructions?|temperature|gauges?|meters?)\b",
    re.IGNORECASE,
)
_MOTION = re.compile(
    r"\b(mov\w+|doing|happen\w*|walk\w*|run(s|ning)?|fall\w*|fell|wav\w+|fast\w*|speed|direction|passed|passing|"
    r"enter\w*|leav\w+|left the|com(es?|ing) in|gestur\w+|point\w*)\b",
    re.IGNORECASE,
)
_WHOLE = re.compile(
    r"\b(scene|room|place|where am|overall|bright\w*|dark\w*|light|weather|how many|count|anybody|anyone|people|"
    r"describe|colou?rs?|look around|background)\b",
    re.IGNORECASE,
)

_TELL_ME = re.compile(
    r"^\W*(?:please )?(?:tell|warn|alert|notify|inform) me (?:when(?:ever)?|if|once|as soon as) (.+?)[.!?]*$",
    re.IGNORECASE,
)
_STOP = re.compile(r"\b(stop|cancel|forget)\b.*\b(tell|telling|watch|watching)\b", re.IGNORECASE)


def need(question: str) -> Need:
    """text: something small is to be read. motion: something that moves. whole: the picture as such."""
    if _TEXT.search(question):
        return "text"
    if _MOTION.search(question):
        return "motion"
    return "whole" if _WHOLE.search(question) else "unknown"


def wish(line: str) -> str:
    """ "Tell me when the door opens." → "the door opens"; "" when it is no such line."""
    found = _TELL_ME.match(line)
    return found[1].strip() if found else ""


def takes_back(line: str) -> bool:
    """Are all wishes taken back?"""
    return _STOP.search(line) is not None
