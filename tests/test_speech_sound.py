"""What speech endpoints send, decoded however its bytes are cut."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from penstock.stages.speech_sound import BadSound, Format, Sound

from .speech_files import MP3, OPUS, RATE, tone, wav


def decoded(data: bytes, format: Format, sizes: list[int]) -> tuple[NDArray[np.int16], int]:
    """Fed in pieces of these sizes, again and again."""
    sound, at, parts, turn = Sound(format, RATE), 0, list[NDArray[np.int16]](), 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        parts.append(sound.feed(data[at : at + size]))
        at, turn = at + size, turn + 1
    parts.append(sound.finish())
    return np.concatenate(parts), sound.rate_hz


@pytest.mark.parametrize(
    ("data", "format"),
    [
        (tone(0.3).tobytes(), "pcm"),
        (wav(tone(0.3), RATE, extra=b"LIST" + struct.pack("<I", 3) + b"abc\0"), "wav"),
        (wav(tone(0.3), RATE), "pcm"),  # another than was asked for
        (MP3, "mp3"),
        (OPUS, "opus"),
    ],
    ids=["pcm", "wav", "wav for pcm", "mp3", "opus"],
)
@given(sizes=st.lists(st.integers(1, 700), min_size=1, max_size=5))
@settings(max_examples=15, deadline=None)
def test_sound_is_the_same_however_its_bytes_are_cut(data: bytes, format: Format, sizes: list[int]) -> None:
    whole, _ = decoded(data, format, [len(data)])
    cut, _ = decoded(data, format, sizes)
    assert np.array_equal(whole, cut)
    assert len(whole) > 0


@pytest.mark.parametrize(("data", "format"), [(MP3, "mp3"), (OPUS, "opus")])
def test_compressed_sound_has_its_length_pitch_and_level(data: bytes, format: Format) -> None:
    pcm, rate_hz = decoded(data, format, [4096])
    assert 1.0 <= len(pcm) / rate_hz < 1.12  # an mp3 begins and ends with some silence of its coder
    middle = pcm[rate_hz // 4 : rate_hz * 3 // 4].astype(float)
    peak = np.argmax(np.abs(np.fft.rfft(middle * np.hanning(len(middle)))))
    assert peak * rate_hz / len(middle) == pytest.approx(440, abs=4)
    assert np.sqrt((middle**2).mean()) == pytest.approx(8000 / np.sqrt(2), rel=0.1)


def test_a_wav_says_its_rate_and_is_mixed_down() -> None:
    pcm, rate_hz = decoded(wav(np.repeat(tone(0.1, 16_000), 2), 16_000, channels=2), "wav", [5])
    assert rate_hz == 16_000
    assert np.array_equal(pcm, tone(0.1, 16_000))


@pytest.mark.parametrize(
    ("data", "format", "words"),
    [
        (b"\x00\x01\x02\x03", "wav", "no wav"),
        (b"\x00\x01\x02\x03", "mp3", "no mp3"),
        (b"RIFF0000AVI LIST", "wav", "no wav"),
        (wav(tone(0.1), 400), "wav", "400 Hz"),
        (b"RIFF0000WAVEdata0000", "wav", "does not say its format"),
        (b"RIFF0000WAVE", "wav", "ended in its header"),
        (b"RIFF0000WAVE" + b"junk\x00\x00\x10\x00" + bytes(2**20), "wav", "no sound in its first"),
        (b"OggS\0" + bytes(21) + b"\x01\x03abc" + bytes(100), "opus", "no Opus"),
        (OPUS + bytes(200), "opus", "begins otherwise"),
        (b"ID3\x04\x00\x00\x7f\x7f\x7f\x7f" + bytes(100), "mp3", "a tag of"),
    ],
)
def test_garbage_is_named(data: bytes, format: Format, words: str) -> None:
    with pytest.raises(BadSound, match=words):
        decoded(data, format, [64])


@given(
    st.binary(max_size=3000),
    st.sampled_from([b"RIFF", b"OggS\0", b"ID3", b"\xff\xfb", b"", wav(tone(0), RATE)]),
)
@settings(max_examples=150, deadline=None)
def test_no_bytes_bring_more_than_a_clear_error(data: bytes, head: bytes) -> None:
    for format in ("pcm", "mp3"):
        try:
            decoded(head + data, format, [500])
        except BadSound as e:
            assert str(e)
