"""Masks words that an open-vocabulary recogniser should not put on a screen by mistake."""

from __future__ import annotations

import codecs
import re

# rot13: the list is needed, reading it is not
_STEMS = (
    "shpx fuvg ovgpu phag avttre avttn snttbg juber fyhg "
    "onfgneq nffubyr qvpxurnq pbpxfhpx cvff zbguresh ohyyfu chffl"
)
_PATTERN = re.compile(
    r"\b(" + "|".join(codecs.decode(stem, "rot13") for stem in _STEMS.split()) + r")\w*", re.IGNORECASE
)


def mask(text: str) -> str:
    """The first letter of a masked word stays, the rest become asterisks; all else is untouched."""
    return _PATTERN.sub(lambda m: m[0][0] + "*" * (len(m[0]) - 1), text)
