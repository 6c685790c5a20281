"""Speech for tests: said by flite, so that no recording is needed."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from penstock.models import voices
from penstock.models.voice import NoVoice, Spoken


@cache
def said(text: str, voice: str = "flite:rms") -> NDArray[np.int16]:
    """(T,) at 16 kHz. Skips the test where libflite1 is missing."""
    pieces: list[Spoken] = []
    try:
        speaker = voices.load(voice)
    except NoVoice as e:
        pytest.skip(str(e))
    speaker.synthesise(text, pieces.append, lambda: False)
    return np.concatenate([p.pcm for p in pieces])


def room(parts: list[NDArray[np.int16]], pause_s: float = 1.0, noise: float = 20.0) -> NDArray[np.int16]:
    """Parts with pauses around them, in quiet noise of this RMS."""
    pause = np.zeros(round(16_000 * pause_s), np.int16)
    clean = np.concatenate([x for part in parts for x in (pause, part)] + [pause])
    rng = np.random.default_rng(0)
    return np.clip(clean + rng.normal(0, noise, len(clean)), -32768, 32767).astype(np.int16)


def decode(path: Path) -> NDArray[np.int16]:
    """(T,) at 16 kHz, of any file that FFmpeg reads."""
    resampler = av.AudioResampler("s16", "mono", 16_000)
    with av.open(str(path)) as container:
        blocks = [
            np.asarray(block.to_ndarray()[0], np.int16)
            for frame in container.decode(audio=0)
            for block in resampler.resample(frame)
        ]
    return np.concatenate(blocks)


TRANSCRIPTS = {
    "jfk.flac": "and so my fellow americans ask not what your country can do for you ask what you can do for "
    "your country",
    "two_cities_16k.wav": "it was the best of times it was the worst of times it was the age of wisdom it "
    "was the age of foolishness it was the epoch of belief it was the epoch of incredulity it was the season "
    "of light it was the season of darkness it was the spring of hope it was the winter of despair we "
    "had everything before us we had nothing before us we were all going direct to heaven we were all going "
    "direct the other way in short the period was so far like the present period that some of its noisiest "
    "authorities insisted on its being received for good or for evil in the superlative degree of "
    "comparison only",
}
