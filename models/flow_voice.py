"""The neural voice: text → words → phones → flow → vocoder, chunk by chunk, all on this machine.

16 kHz, one speaker, English. Its weights are trained by the recipe `models/training/voice_flow.py`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .flow_acoustic import FlowAcoustic, FlowDims
from .flow_phones import INDEX, PAUSE, Phone, clause, letters_of, phones_of
from .flow_vocoder import HOP, RATE_HZ, Vocoder
from .text_front import Token, tokens
from .voice import Mark, Marked, NoVoice, Sink, Spoken, run

WEIGHTS = Path(__file__).parent / "data" / "voice_flow.safetensors"
_FIRST_PAUSE, _COMMA, _STOP = 2, 12, 18  # frames of 10 ms
_LONGEST = 60  # frames of one phone: a guard against a wild prediction
STEPS = 2  # of Euler: as well understood as with 4 (.261 and .262 on 72 sentences), in half the time
_TEMPERATURE = 0.3  # of the noise: less is duller and steadier


def save(weights: Mapping[str, Tensor], dims: FlowDims, path: Path) -> None:
    """In half precision."""
    path.parent.mkdir(parents=True, exist_ok=True)
    halves = {name: value.detach().half().contiguous() for name, value in weights.items()}
    save_file(halves, path, {"dims": json.dumps(asdict(dims))})


def load(path: Path = WEIGHTS) -> FlowAcoustic:
    """Raises: NoVoice when there are no weights, or not of this kind."""
    try:
        with safe_open(path, "pt") as file:
            dims = replace(FlowDims(**json.loads((file.metadata() or {})["dims"])), steps=STEPS)
            model = FlowAcoustic(dims)
            model.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError) as e:
        raise NoVoice(f"the neural voice {path.name} cannot be loaded: {e}") from e
    model.eval().requires_grad_(False).trace()
    return model


class FlowSpeech:
    """One clause; a step makes a chunk of the flow, in pieces of 50 ms."""

    def __init__(self, voice: FlowVoice, text: str, rate: float) -> None:
        self._voice, self._text, self._rate = voice, text, rate
        self._condition: Tensor | None = None  # (T, C), once the text was read
        self._at = self._made = 0

    def step(self) -> list[Spoken]:
        """Nothing after the last."""
        if self._condition is None and not self._read():
            return []
        assert self._condition is not None
        size = self._voice.model.dims.chunk
        chunk, last = self._condition[self._at : self._at + size], self._at + size >= len(self._condition)
        if not len(chunk):
            return []
        self._at += len(chunk)
        frames = self._voice.model.step(
            chunk, self._state, seed=self._voice.seed, temperature=_TEMPERATURE, last=last
        )
        pcm = _int16(self._voice.vocoder.step(frames.numpy(), self._sound))
        arrays = np.array_split(pcm, max(1, len(pcm) // (5 * HOP)))
        out: list[Spoken] = []
        for i, piece in enumerate(arrays):
            self._made += len(piece)
            ends = last and i == len(arrays) - 1
            out.append(Spoken(piece, self._marked.rest() if ends else self._marked.upto(self._made)))
        return out

    def _read(self) -> bool:
        """Is there anything to be said?"""
        voice = self._voice
        phones, words = describe(tokens(self._text))
        if not words:
            return False
        durations, self._condition = voice.read(phones, self._rate)
        self._marked = Marked(self._text, _marks(words, durations))
        self._state, self._sound = voice.model.init_state(), voice.vocoder.init_state()
        return True


class FlowVoice:
    """Speaks by a `FlowAcoustic`. Calls may overlap: the weights are never written, a call's state is its own."""

    rate_hz = RATE_HZ

    def __init__(self, model: FlowAcoustic | None = None, seed: int = 0) -> None:
        """seed: of the flow's noise; the same seed speaks the same. Raises: NoVoice."""
        self.name = "flow"
        self.seed = seed
        self.model = model or load()
        self.vocoder = Vocoder()

    def begin(self, text: str, *, rate: float = 1.0) -> FlowSpeech:
        return FlowSpeech(self, text, rate)

    def synthesise(
        self, text: str, sink: Sink, should_stop: Callable[[], bool], *, rate: float = 1.0
    ) -> None:
        run(self.begin(text, rate=rate), sink, should_stop)

    @torch.inference_mode()
    def read(self, phones: list[Phone], rate: float = 1.0) -> tuple[list[int], Tensor]:
        """→ frames of each phone, and what the flow is conditioned on, (T, C) for the T frames of all."""
        h, log_frames = self.model.encode(*_tensors(phones))
        said = (log_frames[0].exp() / rate).round().long().clamp(1, _LONGEST).tolist()
        pauses = [i for i, p in enumerate(phones) if p.name == PAUSE]
        for i in pauses:
            said[i] = _FIRST_PAUSE if i == 0 else _STOP if i == len(phones) - 1 else _COMMA
        return said, self.model.spread(h[0], said)


def describe(written: list[Token]) -> tuple[list[Phone], list[tuple[int, int]]]:
    """The phones of a text, pauses included, and for each written word (until_char, index after its last phone)."""
    out: list[Phone] = [Phone(PAUSE)]
    ends: list[tuple[int, int]] = []
    words: list[list[str]] = []
    names: list[str] = []
    bounds: list[tuple[int, int]] = []  # (until_char, phones of the clause up to there)

    def close(question: bool, stop: bool) -> None:
        base = len(out)
        out.extend(clause(words, names, question=question, ends=stop))
        out.append(Phone(PAUSE))
        ends.extend((until, base + count) for until, count in bounds)
        for part in (words, names, bounds):
            part.clear()

    for token in written:
        for word in token.words:
            words.append(letters_of(word[1:]) if word.startswith("*") else phones_of(word))
            names.append(word)
        bounds.append((token.until_char, sum(map(len, words))))
        if token.pause and any(words):
            close(token.pause == "?", token.pause in ".?")
    if any(words):
        close(False, True)
    return out, (ends if len(out) > 1 else [])


def _tensors(phones: list[Phone]) -> tuple[Tensor, Tensor]:
    indices = torch.tensor([[INDEX[p.name] for p in phones]])
    return indices, torch.tensor([[p.flags() for p in phones]])


def _marks(words: list[tuple[int, int]], durations: list[int]) -> list[Mark]:
    ends = np.cumsum([0, *durations]) * HOP
    return [Mark(until, int(ends[index])) for until, index in words]


def _int16(
    pcm: np.ndarray[tuple[int, ...], np.dtype[np.float32]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.int16]]:
    return np.clip(pcm * 32768, -32768, 32767).astype(np.int16)
