"""Written English → spoken words: numbers, dates, times, money, abbreviations, letters.

Source: numbers by the library num2words; what is read how follows R. Sproat et al., "Normalization of non-standard
words", 2001.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

from num2words import num2words

Break: TypeAlias = Literal["", ",", ".", "?"]

LONGEST_WORD = 60  # letters; a longer one is cut: nobody could follow it
MOST_DIGITS = 15  # a longer number is read digit by digit


@dataclass(frozen=True, slots=True)
class Token:
    """One written word: the words it is spoken as, what follows, and where in the text it ends (blanks included)."""

    words: tuple[str, ...]  # lower case letters and apostrophes; "*abc" is said by its letters
    pause: Break
    until_char: int


ABBREVIATIONS: Mapping[str, str] = MappingProxyType(
    {
        "mr": "mister", "mrs": "missus", "ms": "miz", "dr": "doctor", "prof": "professor", "st": "saint", "vs": "versus",
        "etc": "et cetera", "e.g": "for example", "i.e": "that is", "approx": "approximately",
        "jan": "january", "feb": "february", "aug": "august", "sept": "september", "oct": "october", "nov": "november",
        "dec": "december", "a.m": "*am", "p.m": "*pm",
    }
)  # fmt: skip
"""Written with a full stop after them."""

UNITS: Mapping[str, str] = MappingProxyType(
    {
        "km": "kilometers", "kg": "kilograms", "cm": "centimeters", "mm": "millimeters", "ms": "milliseconds",
        "mb": "megabytes", "gb": "gigabytes", "kb": "kilobytes", "hz": "hertz", "khz": "kilohertz", "mph": "miles per hour",
        "am": "*am", "pm": "*pm", "%": "percent", "°c": "degrees celsius", "°f": "degrees fahrenheit", "°": "degrees",
        "s": "seconds", "h": "hours", "m": "meters", "g": "grams", "x": "times",
    }
)  # fmt: skip
"""Written after a number."""

_MONTHS = (
    ["january", "february", "march", "april", "may", "june", "july", "august", "september", "october", "november", "december"]
)  # fmt: skip
_SYMBOLS: Mapping[str, str] = MappingProxyType(
    {
        "&": "and",
        "@": "at",
        "+": "plus",
        "=": "equals",
        "%": "percent",
        "/": "slash",
        "#": "number",
        "€": "euros",
    }
)
_MONEY: Mapping[str, tuple[str, str, str]] = MappingProxyType(
    {"$": ("dollar", "dollars", "cents"), "€": ("euro", "euros", "cents"), "£": ("pound", "pounds", "pence")}
)
_PLAIN = {"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": ".", "−": "-"}

_MARKS = "\"'()[]{}<>*_~`|\\^,;!?"  # around a word
_WRITTEN = re.compile(r"\S+\s*")
_TIME = re.compile(r"(\d{1,2}):(\d\d)(?::\d\d)?")
_ISO_DATE = re.compile(r"(\d{4})-(\d\d)-(\d\d)")
_NUMBER = re.compile(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?|-?\d*\.?\d+")
_ORDINAL = re.compile(r"(\d+)(?:st|nd|rd|th)", re.IGNORECASE)


def tokens(text: str) -> list[Token]:
    """All written words of `text`; the last `until_char` is its length."""
    out: list[Token] = []
    number = False  # was the word before one?
    for match in _WRITTEN.finditer(text):
        written = plain(match[0])
        unit = written.strip(_MARKS).rstrip(".").lower() if number else ""
        words = UNITS[unit].split() if len(unit) > 1 and unit in UNITS else _read(written)
        out.append(Token(tuple(words), _pause(written), match.end()))
        number = bool(_NUMBER.fullmatch(written.lstrip("$€£")))
    return out


def plain(text: str) -> str:
    """Without accents, with typewriter quotes and dashes; other scripts and emoji become blanks."""
    out: list[str] = []
    for char in text:
        char = _PLAIN.get(char, char)
        if char in "€£°":
            out.append(char)
            continue
        base = unicodedata.normalize("NFKD", char)[0]
        out.append(base if " " < base <= "~" else " ")
    return "".join(out).strip()


def _pause(written: str) -> Break:
    tail = written.rstrip("\"')]}*_")
    if _is_abbreviation(written) or not tail:
        return ""
    return "?" if tail[-1] == "?" else "." if tail[-1] in ".!" else "," if tail[-1] in ",;:-" else ""


def _is_abbreviation(written: str) -> bool:
    return written.endswith(".") and written[:-1].lower().lstrip("(\"'") in ABBREVIATIONS


def _read(written: str) -> list[str]:
    core = written.strip(_MARKS)
    low = core.lower()
    if low.endswith(".") and low[:-1] in ABBREVIATIONS:
        return ABBREVIATIONS[low[:-1]].split()
    core = core.rstrip(".:-")
    if not core:
        return []
    if match := _ISO_DATE.fullmatch(core):
        return _date(match)
    if match := _TIME.fullmatch(core):
        return _time(int(match[1]), int(match[2]))
    if core[0] in _MONEY and _NUMBER.fullmatch(core[1:]):
        return _money(core[0], core[1:])
    if match := _ORDINAL.fullmatch(core):
        return _words(num2words(int(match[1][:MOST_DIGITS]), to="ordinal"))
    if match := _NUMBER.match(core):
        unit = core[match.end() :].lower()
        if not unit:
            return _number(match[0])
        if unit in UNITS:
            return [*_number(match[0]), *UNITS[unit].split()]
    out: list[str] = []
    for part in re.findall(r"[A-Za-z]+(?:'[A-Za-z]+)*|\d[\d,]*(?:\.\d+)?|[&@+=%/#€°]", core):
        if part[0].isdigit():
            out += _number(part)
        elif part in _SYMBOLS:
            out.append(_SYMBOLS[part])
        elif part[0].isalpha():
            stem = part.removesuffix("'s")
            letters = stem.isupper() and 2 <= len(stem) <= 5
            out.append(f"*{part.lower()}" if letters else part.lower()[:LONGEST_WORD])
    return out


def _words(said: str) -> list[str]:
    return re.findall(r"[a-z']+", said.lower())


def _number(written: str) -> list[str]:
    digits = written.replace(",", "")
    if sum(c.isdigit() for c in digits) > MOST_DIGITS:
        return [w for c in digits[:LONGEST_WORD] if c.isdigit() for w in _words(num2words(int(c)))]
    whole = re.fullmatch(r"(1[1-9]|20)\d\d", digits)
    if whole and not written.count(",") and not 2000 <= int(digits) < 2010:
        return _words(num2words(int(digits), to="year"))
    if digits.startswith("0") and digits.isdigit() and len(digits) > 1:
        return [w for c in digits for w in _words(num2words(int(c)))]
    value = float(digits) if "." in digits else int(digits)
    said = _words(num2words(abs(value)))
    return ["minus", *said] if digits.startswith("-") else said


def _money(sign: str, written: str) -> list[str]:
    one, many, small = _MONEY[sign]
    whole, _, rest = written.replace(",", "").partition(".")
    units = int(whole[:MOST_DIGITS] or 0)
    out = [*_words(num2words(units)), one if units == 1 else many]
    if len(rest) == 2 and int(rest):
        out += ["and", *_words(num2words(int(rest))), small]
    return out


def _time(hour: int, minute: int) -> list[str]:
    said = _words(num2words(hour))
    if not minute:
        return [*said, "o'clock"]
    return [*said, *(["oh"] if minute < 10 else []), *_words(num2words(minute))]


def _date(match: re.Match[str]) -> list[str]:
    year, month, day = (int(g) for g in match.groups())
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return [w for g in match.groups() for w in _number(g)]
    return [_MONTHS[month - 1], *_words(num2words(day, to="ordinal")), *_words(num2words(year, to="year"))]
