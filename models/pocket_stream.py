"""pocket-tts, one frame of 80 ms a step: the steps are ours, the networks those of the package `pocket_tts`.

    text, once ──▶ language model (KV cache, the speaker's prompt in it) ──▶ h ──▶ one-step flow ──▶ latent ──▶ Mimi ──▶ 80 ms
                        ▲                                                                    │      (KV cache,
                        └────────────────────── last latent ─────────────────────────────────┘      convolution tails)

The package's own generator runs in two threads which go on after its reader has left. Here nothing happens between two
steps: what a stream is lies in its `PocketState`, weights are only read, and to cancel is to take no further step.

Source: S. Rouard et al., "Continuous audio language models", arXiv:2509.06926; https://github.com/kyutai-labs/pocket-tts (MIT).
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

States: TypeAlias = dict[str, dict[str, Tensor]]  # of each module that has one, by its name

_TOKENS_A_SECOND = 3.0  # slower speech than this is a fault: the end was missed
_SPARE_S = 2.0
_NO_END_BEFORE = 6  # frames: some speakers' first frames look like an end
_FADE_MS = 5  # a fresh codec begins with a click
_DECODERS = {
    "lsd": "lsd_decode",
    "flow_matching": "ot_decode",
    "drifting": "drifting_decode",
    "pointwise": "pointwise_decode",
}


@dataclass(slots=True)
class PocketState:
    """Of one clause being spoken."""

    tokens: Tensor | None  # (1, N), until they are read
    lm: States
    codec: States
    last: Tensor  # (1, 1, L) the latent made last
    noise: torch.Generator
    limit: int  # frames at most
    tail: int  # frames after the one that says that speech ends
    made: int = 0
    ends: int | None = None  # the frame that said so
    over: bool = False


class PocketStream:
    """Weights and how to step; `model` is a `pocket_tts.TTSModel`. Thread-safe: all that changes is the state's."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self._lm, self._codec = model.flow_lm, model.mimi
        self.rate_hz = int(model.sample_rate)
        self.frame = round(self.rate_hz / self._codec.frame_rate)  # samples
        self._codec_steps = round(self._codec.encoder_frame_rate / self._codec.frame_rate)  # a frame
        self._stateful: Any = importlib.import_module("pocket_tts.modules.stateful_module")
        decoders: Any = importlib.import_module("pocket_tts.models.flow_lm")
        self._decode: Any = getattr(decoders, _DECODERS[self._lm.flow_type])

    def init_state(
        self, tokens: Tensor, speaker: States, *, noise: torch.Generator, tail: int
    ) -> PocketState:
        """tokens (1, N) of the text; speaker: a prompt's state, copied."""
        seconds = tokens.shape[1] / _TOKENS_A_SECOND + _SPARE_S
        limit = math.ceil(seconds * self._codec.frame_rate)
        codec: States = self._stateful.init_states(
            self._codec, batch_size=1, sequence_length=limit * self._codec_steps
        )
        room = tokens.shape[1] + limit
        lm = {name: _with_room(state, room) for name, state in speaker.items()}
        return PocketState(tokens, lm, codec, self._lm.bos_emb[None, None], noise, limit, tail)

    @torch.inference_mode()
    def step(self, state: PocketState) -> Tensor | None:
        """The next 80 ms, (frame,) float in ±1; None when all was said."""
        if state.over:
            return None
        if state.tokens is not None:
            words = self._lm.conditioner(state.tokens)
            self._advance(state.lm, words, self._lm.bos_emb.new_zeros(1, 0, self._lm.ldim))
            state.tokens = None
        latent = self.latent(state)
        return None if latent is None else self.decode(latent, state)

    def latent(self, state: PocketState) -> Tensor | None:
        """(1, 1, L), the next one; None when all was said."""
        nothing = state.last.new_zeros(1, 0, self._lm.dim)
        hidden = self._advance(state.lm, nothing, state.last)[:, -1].float()
        noise, spread = torch.empty(1, self._lm.ldim, dtype=hidden.dtype), self.model.temp**0.5
        if (clamp := self.model.noise_clamp) is None:
            noise.normal_(0.0, spread, generator=state.noise)
        else:
            torch.nn.init.trunc_normal_(noise, 0.0, spread, -clamp, clamp, generator=state.noise)
        made: Tensor = self._decode(
            partial(self._lm.flow_net, hidden), noise, self.model.sampler_decode_steps
        )
        ended = bool(self._lm.out_eos(hidden) > self.model.eos_threshold)
        if ended and state.ends is None and state.made >= _NO_END_BEFORE:
            state.ends = state.made
        if state.made >= state.limit or (state.ends is not None and state.made >= state.ends + state.tail):
            state.over = True
            return None
        state.last = made[:, None]
        state.made += 1
        return state.last

    def decode(self, latents: Tensor, state: PocketState) -> Tensor:
        """(1, n, L) → (n · frame,): any number at once gives the same sound."""
        first = state.made == latents.shape[1]
        raw = latents * self._lm.emb_std + self._lm.emb_mean
        sound: Tensor = self._codec.decode_from_latent(raw, state.codec)[0, 0]
        self._stateful.increment_steps(
            self._codec, state.codec, increment=self._codec_steps * latents.shape[1]
        )
        if first:
            count = self.rate_hz * _FADE_MS // 1000
            sound[:count] *= torch.linspace(0, 1, count)
        return sound

    def _advance(self, states: States, words: Tensor, latents: Tensor) -> Tensor:
        """Words (1, N, C) and latents (1, n, L) read → what is known after each, (1, n or N, C)."""
        entered = self._lm.input_linear(latents)
        hidden: Tensor = self._lm.backbone(entered, words, latents, model_state=states)
        self._stateful.increment_steps(self._lm, states, increment=words.shape[1] + latents.shape[1])
        return hidden


def _with_room(state: dict[str, Tensor], room: int) -> dict[str, Tensor]:
    """A copy with space for so many more positions in its cache, (2, B, T, H, D)."""
    out = {name: value.clone() for name, value in state.items()}
    if "cache" in out:
        cache, used = out["cache"], int(out["offset"].view(-1)[0])
        grown = cache.new_zeros(*cache.shape[:2], used + room, *cache.shape[3:])
        grown[:, :, :used] = cache[:, :, :used]
        out["cache"] = grown
    return out
