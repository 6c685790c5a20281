"""flite through ctypes: small, fast voices of the Debian package libflite1.

16 kHz, first audio after 10–30 ms a clause, 1–3 % of one core. Plain synthetic speech: clear, never
natural.

Source: https://github.com/festvox/flite 2.2 (BSD-style), include/cst_audio.h, cst_synth.h, cst_item.h.
"""

from __future__ import annotations

import ctypes as C
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

from . import flite_lib
from .flite_lib import LOCK, RATE_HZ, AudioCallback, FliteMissing, VoiceHead
from .voice import Mark, Marked, NoVoice, Sink, Spoken, speakable

VOICES = ("rms", "slt", "awb", "kal16")  # best understood first

_CHUNK_MS = 40
_STOP, _CONTINUE = -1, 0  # CST_AUDIO_STREAM_STOP, CST_AUDIO_STREAM_CONT
_TOKEN_ENDS = b"R:Token.daughtern.R:SylStructure.daughtern.daughtern.R:Segment.end"


_SILENT = 60  # of 32,768: flite's pauses are softer
_PAUSES = ".,;:!?…)\"'"  # a clause that ends otherwise goes on in the next one


class _Job:
    """One call of synthesise. Keeps one piece back, so that the last can carry what had no mark.

    flite begins and ends every clause with 130 ms of silence: at the beginning nobody needs it, and where a
    sentence was only cut it would be a stutter.
    """

    def __init__(self, text: str, plain: str, sink: Sink, should_stop: Callable[[], bool]) -> None:
        self.text, self.plain, self.sink, self.should_stop = text, plain, sink, should_stop
        self.marked: Marked | None = None
        self.error: BaseException | None = None
        self._held: Spoken | None = None
        self._silence: list[Spoken] = []  # after it

    def put(self, pcm: Any, until: int) -> None:
        assert self.marked is not None
        piece = Spoken(pcm, self.marked.upto(until))
        if np.abs(pcm).max() < _SILENT:
            if self._held is not None:
                self._silence.append(piece)
            return
        for spoken in (self._held, *self._silence):
            if spoken is not None:
                if self.should_stop():  # with the piece before
                    return
                self.sink(spoken)
        self._held, self._silence = piece, []

    def end(self) -> None:
        if self._held is None or self.marked is None or self.should_stop():
            return
        pieces = [self._held, *self._silence]
        if not self.text.rstrip().endswith(tuple(_PAUSES)):
            pieces = [Spoken(self._held.pcm, "".join(p.text for p in pieces))]
        for spoken in pieces[:-1]:
            self.sink(spoken)
            if self.should_stop():
                return
        self.sink(Spoken(pieces[-1].pcm, pieces[-1].text + self.marked.rest()))


class FliteVoice:
    """One of flite's voices."""

    rate_hz = RATE_HZ

    def __init__(self, voice: str = "rms") -> None:
        """Raises: NoVoice when there is no such voice, or its library is missing."""
        if voice not in VOICES:
            raise NoVoice(f"flite has no voice {voice!r} here; known: {', '.join(VOICES)}")
        self.name = f"flite:{voice}"
        try:
            with LOCK:
                self._lib = flite_lib.library()
                self._voice = _registered(voice)
        except FliteMissing as e:
            raise NoVoice(str(e)) from e

    def synthesise(
        self, text: str, sink: Sink, should_stop: Callable[[], bool], *, rate: float = 1.0
    ) -> None:
        plain = speakable(text)
        if not any(c.isalnum() for c in plain):
            return  # flite would say nothing, but say it for a while
        job = _Job(text, plain, sink, should_stop)
        with LOCK:
            if should_stop():
                return
            _running.append(job)
            try:
                features = C.cast(self._voice, C.POINTER(VoiceHead)).contents.features
                self._lib.feat_set_float(features, b"duration_stretch", 1 / rate)
                utterance = self._lib.flite_synth_text(plain.encode("ascii"), self._voice)
                if utterance:
                    self._lib.delete_utterance(utterance)
                self._lib.feat_set_float(features, b"duration_stretch", 1.0)
            finally:
                _running.clear()
        if job.error is not None:
            raise job.error
        job.end()


_running: list[_Job] = []  # the one call that holds the lock


def _on_audio(wave: Any, start: int, size: int, last: int, info: Any) -> int:
    """Called by flite as samples get ready; an exception must not cross C."""
    if not _running:
        return _CONTINUE  # somebody else synthesises with this voice: flite has one for the whole process
    job = _running[0]
    try:
        if job.should_stop():
            return _STOP
        if job.marked is None:
            job.marked = Marked(job.text, _marks(info.contents.utt, job.plain))
        if size > 0:
            samples = np.ctypeslib.as_array(wave.contents.samples, (start + size,))
            job.put(samples[start:].copy(), start + size)
    except BaseException as e:  # noqa: BLE001 - carried over the C frames, raised in synthesise
        job.error = e
        return _STOP
    return _CONTINUE


_CALLBACK = AudioCallback(_on_audio)  # referenced here: C keeps only the address


def _marks(utterance: int | None, plain: str) -> list[Mark]:
    """When each written word ends; flite knows before it makes the first sample."""
    lib = flite_lib.library()
    marks: list[Mark] = []
    if not utterance:
        return marks
    token = lib.relation_head(lib.utt_relation(utterance, b"Token"))
    at = 0
    while token:
        name = (lib.ffeature_string(token, b"name") or b"").decode("ascii", "replace")
        found = plain.find(name, at)
        ends = lib.ffeature_float(token, _TOKEN_ENDS)
        token = lib.item_next(token)
        if not name or found < 0:
            continue
        at = found + len(name)
        blank = plain.find(" ", at)
        until = len(plain) if blank < 0 else blank + 1
        marks.append(Mark(until, round(ends * RATE_HZ)))
    return marks


@cache
def _registered(voice: str) -> int:
    """The C voice, set up to stream. Once a process: flite gives the same one to all who ask."""
    lib = flite_lib.library()
    pointer = flite_lib.voice(voice)
    info = lib.new_audio_streaming_info()
    info.contents.min_buffsize = RATE_HZ * _CHUNK_MS // 1000
    info.contents.asc = C.cast(_CALLBACK, C.c_void_p).value
    features = C.cast(pointer, C.POINTER(VoiceHead)).contents.features
    lib.feat_set(features, b"streaming_info", lib.audio_streaming_info_val(info))
    return pointer
