"""The neural voice's modules: streaming is offline, a chunk costs the same everywhere, odd text does no harm."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from penstock.models import flow_voice
from penstock.models.flow_acoustic import FlowAcoustic, FlowDims, mask_of
from penstock.models.flow_phones import INDEX, PAUSE, phones_of
from penstock.models.flow_vocoder import DIMS, HOP, LF0, STRENGTH, VOICED, Vocoder
from penstock.models.flow_voice import FlowVoice, describe
from penstock.models.text_front import tokens
from penstock.models.voice import NoVoice, Spoken
from torch import Tensor

SMALL = FlowDims(width=32, heads=2, layers=2, encoder_layers=1, kernel=3, chunk=6, left=8, steps=3)


def small() -> FlowAcoustic:
    torch.manual_seed(0)
    return FlowAcoustic(SMALL).eval().requires_grad_(False)


def conditions(model: FlowAcoustic, frames: int) -> Tensor:
    return torch.randn(frames, model.dims.width, generator=torch.Generator().manual_seed(frames))


@cache
def small_traced() -> FlowAcoustic:
    model = small()
    model.trace()
    return model


@given(st.integers(1, 60), st.lists(st.integers(0, 17), min_size=1, max_size=6), st.booleans())
@settings(max_examples=40, deadline=None)
def test_steps_over_any_chunking_are_one_pass(frames: int, cuts: list[int], traced: bool) -> None:
    model = small_traced() if traced else small()
    condition = conditions(model, frames)
    whole = model.forward(condition, seed=3)
    state, parts, at = model.init_state(), [], 0
    for i in range(1000):
        n = cuts[i % len(cuts)] if any(cuts) else 5
        parts.append(model.step(condition[at : at + n], state, seed=3, last=at + n >= frames))
        at += n
        if at >= frames:
            break
    assert torch.cat(parts).shape == (frames, DIMS)
    assert (torch.cat(parts) - whole).abs().max() <= 1e-5


def test_a_chunk_sees_itself_and_a_bounded_past() -> None:
    model = small()
    condition = conditions(model, 48)
    other = condition.clone()
    other[24:] += 1  # the future
    assert torch.equal(model.forward(other)[:24], model.forward(condition)[:24])
    state = model.init_state()
    sizes: list[int] = []
    for at in range(0, 48, SMALL.chunk):
        model.step(condition[at : at + SMALL.chunk], state)
        sizes.append(
            sum(c.keys.numel() + c.tail.numel() for step in state.caches for c in step if c is not None)
        )
    assert len(set(sizes[2:])) == 1


@pytest.mark.parametrize(("kind", "sees"), [("causal", (0, 7)), ("chunk", (0, 12)), ("chunks", (0, 12))])
def test_masks(kind: str, sees: tuple[int, int]) -> None:
    mask = mask_of(kind, 24, SMALL)  # type: ignore[arg-type]
    assert mask is not None
    row = torch.nonzero(mask[6])[:, 0]
    assert (int(row[0]), int(row[-1]) + 1) == sees
    assert mask_of("full", 24, SMALL) is None


def parameters(frames: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(0)
    out = np.zeros((frames, DIMS), np.float32)
    out[:, 0] = 3 + rng.random(frames)
    out[:, 1] = 1
    out[:, LF0] = np.log(120 + 20 * np.sin(np.arange(frames) / 5))
    out[:, VOICED] = np.where(np.arange(frames) % 20 < 14, 1, -1)
    out[:, STRENGTH:] = 0.6
    return out


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any))
@settings(max_examples=20, deadline=None)
def test_the_vocoder_makes_the_same_sound_however_it_is_fed(cuts: list[int]) -> None:
    vocoder, frames = Vocoder(), parameters(40)
    whole = vocoder.step(frames, vocoder.init_state())
    state, parts, at, i = vocoder.init_state(), [], 0, 0
    while at < len(frames):
        n = cuts[i % len(cuts)]
        parts.append(vocoder.step(frames[at : at + n], state))
        at, i = at + n, i + 1
    assert len(whole) == 40 * HOP
    assert np.abs(np.concatenate(parts) - whole).max() < 1e-6


def test_the_vocoder_sings_the_pitch_it_is_told() -> None:
    frames = parameters(60)
    frames[:, VOICED], frames[:, LF0], frames[:, STRENGTH:] = 1, np.log(200), 1
    vocoder = Vocoder()
    sound = vocoder.step(frames, vocoder.init_state())[3200:]
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    strongest = np.argsort(spectrum)[-1] * 16_000 / len(sound)
    assert min(abs(strongest - 200 * k) for k in (1, 2, 3)) < 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("It costs $5.20 or 3%.", "it costs five dollars and twenty cents or three percent"),
        ("Call me at 10:30, Dr. Smith", "call me at ten thirty doctor smith"),
        ("the 3rd of May 1984", "the third of may nineteen eighty four"),
        ("on 2026-11-26", "on november twenty sixth twenty twenty six"),
        ("-12.5°C and 1,234 km", "minus twelve point five degrees celsius and one thousand two hundred and thirty four kilometers"),
        ("e.g. the API's naïve café — yes…", "for example the *api's naive cafe yes"),
        ("room 007", "room zero zero seven"),
        ("R2D2 & AT&T", "r two d two and *at and t"),
        ("привет 你好 😀", ""),
    ],
)  # fmt: skip
def test_what_is_written_is_read(text: str, said: str) -> None:
    read = tokens(text)
    assert " ".join(w for t in read for w in t.words) == said
    assert read[-1].until_char == len(text)


@given(st.text(max_size=200))
@settings(max_examples=150, deadline=None)
def test_any_text_can_be_described(text: str) -> None:
    read = tokens(text)
    phones, words = describe(read)
    assert all(p.name in INDEX for p in phones)
    assert [until for until, _ in words] == sorted(until for until, _ in words)
    assert all(index <= len(phones) for _, index in words)


def test_words_that_no_dictionary_knows_get_phones() -> None:
    assert phones_of("hello") == ["hh", "ah", "l", "ow"]
    assert phones_of("penstocks")[-1] == "s"
    assert phones_of("zzgrblfx")
    assert len(phones_of("x" * 10_000)) > 1000


def spoken(voice: FlowVoice, text: str, rate: float = 1.0) -> list[Spoken]:
    pieces: list[Spoken] = []
    voice.synthesise(text, pieces.append, lambda: False, rate=rate)
    return pieces


def test_the_voice_says_all_of_the_text_in_small_pieces(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = FlowAcoustic(FlowDims(width=32, heads=2, layers=1, encoder_layers=1, steps=1))
    flow_voice.save(model.state_dict(), model.dims, tmp_path / "v.safetensors")
    voice = FlowVoice(flow_voice.load(tmp_path / "v.safetensors"))
    text = "Hello there, it's 3:15 PM. Isn't it? 😀 "
    pieces = spoken(voice, text)
    assert "".join(p.text for p in pieces) == text
    assert sum(bool(p.text) for p in pieces) >= 5
    assert all(0 < len(p.pcm) <= 1280 for p in pieces)
    assert sum(len(p.pcm) for p in spoken(voice, text, rate=2.0)) < sum(len(p.pcm) for p in pieces)
    for odd in ("", "   ", "😀😀", "...", "\x00"):
        assert spoken(voice, odd) == []
    assert spoken(voice, "a" * 10_000)
    stopped: list[Spoken] = []
    voice.synthesise(text, stopped.append, lambda: len(stopped) >= 2)
    assert len(stopped) < len(pieces)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(NoVoice, match=r"none\.safetensors cannot be loaded"):
        flow_voice.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"garbage")
    with pytest.raises(NoVoice):
        flow_voice.load(tmp_path / "bad.safetensors")


def test_a_phone_is_said_for_every_mark() -> None:
    phones, words = describe(tokens("Yes, of course."))
    assert phones[0].name == PAUSE
    assert phones[-1].name == PAUSE
    assert len(words) == 3
