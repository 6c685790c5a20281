"""espeak-ng through ctypes: the voice where libflite is missing. GPL-3, so an optional extra of ours.

22.05 kHz, first audio in under 1 ms, 0.1 % of one core. Clear to a practised ear, robotic to all others.

Source: https://github.com/espeak-ng/espeak-ng, src/include/espeak-ng/speak_lib.h.
"""

from __future__ import annotations

import ctypes as C
import os
import threading
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from .voice import Marked, NoVoice, Sink, Spoken, speakable

_CHUNK_MS = 40
_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: espeak_Synth returns when all is made
_POS_CHARACTER, _CHARS_UTF8 = 1, 1
_RATE_PARAMETER = 1
_WORDS_PER_MINUTE = 165
_EVENT_END, _EVENT_WORD = 0, 1

_LOCK = threading.Lock()  # the library is one global synthesiser


class _EventId(C.Union):
    _fields_ = (("number", C.c_int), ("name", C.c_char_p), ("string", C.c_char * 8))


class _Event(C.Structure):
    _fields_ = (
        ("type", C.c_int),
        ("unique_identifier", C.c_uint),
        ("text_position", C.c_int),
        ("length", C.c_int),
        ("audio_position", C.c_int),
        ("sample", C.c_int),
        ("user_data", C.c_void_p),
        ("id", _EventId),
    )


_CALLBACK = C.CFUNCTYPE(C.c_int, C.POINTER(C.c_short), C.c_int, C.POINTER(_Event))


class EspeakVoice:
    """American English."""

    name = "espeak"

    def __init__(self) -> None:
        """Raises: NoVoice when the library is missing."""
        with _LOCK:
            self._lib, self.rate_hz = _library()
        self._callback = _CALLBACK(self._on_audio)
        self._job: tuple[str, Sink, Callable[[], bool]] | None = None
        self._said = 0
        self._error: BaseException | None = None

    def synthesise(
        self, text: str, sink: Sink, should_stop: Callable[[], bool], *, rate: float = 1.0
    ) -> None:
        plain = speakable(text)
        if not any(c.isalnum() for c in plain):
            return
        held: list[Spoken] = []

        def hold(piece: Spoken) -> None:
            # one piece late, so that the last can carry what had no mark
            if held:
                sink(held.pop())
            held.append(piece)

        with _LOCK:
            if should_stop():
                return
            self._job, self._said, self._error = (text, hold, should_stop), 0, None
            self._lib.espeak_SetSynthCallback(self._callback)
            self._lib.espeak_SetParameter(_RATE_PARAMETER, round(_WORDS_PER_MINUTE * rate), 0)
            data = plain.encode("ascii")
            self._lib.espeak_Synth(data, len(data) + 1, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None)
            error, said, self._job = self._error, self._said, None
        if error is not None:
            raise error
        if held and not should_stop():
            sink(Spoken(held[0].pcm, held[0].text + Marked(text[said:], []).rest()))

    def _on_audio(self, samples: Any, count: int, events: Any) -> int:
        """Called by espeak-ng; an exception must not cross C. Returns 1 to stop."""
        if self._job is None:
            return 1
        text, sink, should_stop = self._job
        if should_stop():
            return 1
        try:
            said, i = self._said, 0
            while events[i].type != _EVENT_END:
                event = events[i]
                if event.type == _EVENT_WORD and event.length > 0:  # length 0: a word already told
                    said = max(said, event.text_position - 1)  # this one begins: those before have ended
                i += 1
            if samples and count > 0:
                piece, self._said = text[self._said : said], said
                sink(Spoken(np.ctypeslib.as_array(samples, (count,)).copy(), piece))
        except BaseException as e:  # noqa: BLE001 - carried over the C frames, raised in synthesise
            self._error = e
            return 1
        return 0


@cache
def _library() -> tuple[C.CDLL, int]:
    """The library and its sample rate."""
    spec = find_spec("espeakng_loader")
    data: bytes | None = None
    name = "libespeak-ng.so.1"
    if spec is not None and spec.submodule_search_locations:
        folder = Path(next(iter(spec.submodule_search_locations)))
        bundled = next(iter(sorted(folder.glob("libespeak-ng*"))), None)
        if bundled is not None:
            name, data = str(bundled), os.fsencode(folder / "espeak-ng-data")
    try:
        lib = C.CDLL(name)
    except OSError as e:
        raise NoVoice("espeak-ng is missing: pip install 'penstock[espeak]'") from e
    lib.espeak_Initialize.argtypes = [C.c_int, C.c_int, C.c_char_p, C.c_int]
    lib.espeak_Synth.argtypes = [
        C.c_char_p,
        C.c_size_t,
        C.c_uint,
        C.c_int,
        C.c_uint,
        C.c_uint,
        C.c_void_p,
        C.c_void_p,
    ]
    rate_hz = lib.espeak_Initialize(_SYNCHRONOUS, _CHUNK_MS, data, 0)
    if rate_hz <= 0:
        raise NoVoice("espeak-ng did not start: its data files are missing; pip install 'penstock[espeak]'")
    lib.espeak_SetVoiceByName(b"en-us")
    return lib, int(rate_hz)
