"""Which voice there is."""

from __future__ import annotations

from functools import cache

from .espeak_voice import EspeakVoice
from .flite_voice import VOICES, FliteVoice
from .voice import NoVoice, Voice

NAMES = ("auto", *(f"flite:{v}" for v in VOICES), "espeak", "flow")


def load_pocket(model: str, speaker: str, language: str) -> Voice:
    """Weights of this machine's user. Raises: NoVoice."""
    from . import pocket_voice

    return pocket_voice.load(model, speaker, language)


@cache
def load(name: str = "auto") -> Voice:
    """A voice by name, shared by all sessions; "auto" takes flite's, else our own neural one (docs/adr/0023), else espeak-ng's.

    Raises: NoVoice, saying what to install.
    """
    if name not in NAMES:
        raise NoVoice(f"unknown voice {name!r}; known: {', '.join(NAMES)}")
    if name == "espeak":
        return EspeakVoice()
    if name == "flow":
        return _flow()
    if name != "auto":
        return FliteVoice(name.partition(":")[2])
    for make in (FliteVoice, _flow, EspeakVoice):
        try:
            return make()
        except NoVoice:
            continue
    raise NoVoice("there is no voice: install libflite1 (apt), or pip install 'penstock[espeak]'")


def _flow() -> Voice:
    from .flow_voice import FlowVoice  # torch takes a second to import

    return FlowVoice()
