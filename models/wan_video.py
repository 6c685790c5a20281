"""Causal Wan as a StreamModel: pictures in by ones and fours, through the streaming autoencoder, and out again.

A chunk of pictures becomes one latent frame, goes through its denoising steps (each with a rolling cache of its own) and
comes out as as many pictures. Encoding belongs to the first step's forward and decoding to the last one's.

A new prompt: `keep` leaves the caches, so that the scene changes smoothly; `recache` writes them anew as if the frames in
the window had had the new prompt; `reset` forgets them.

Source: Feng et al., "StreamDiffusionV2" (2025), §4; Yang et al., "LongLive" (2025), §3.1 (recache).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from . import wan_vae
from .causal_wan import CausalWan, StepCache, TextKV, WanResult, WanRow, kept, warped
from .stream_model import MAX_STEPS, Entry, Finished, Picture, Settings, Ticks, download, upload
from .taehv import DecoderState, TinyDecoder


@dataclass(frozen=True, slots=True)
class Voice:
    """What a chunk is drawn by."""

    settings: Settings
    text: TextKV
    sigmas: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Flight:
    """One chunk on its way."""

    tags: tuple[Any, ...]
    originals: tuple[Picture, ...]  # as they came, one for each tag
    pixels: Tensor  # (3, T, H, W); T is 1 or 4
    voice: Voice
    start: int = -1  # its latent frame, known once it has been encoded
    step: int = 0
    latent: Tensor | None = None  # (C, 1, h, w) at this step's noise level


@dataclass(frozen=True, slots=True)
class ChunkRow:
    """The next step of one chunk, as its stream stands."""

    flight: Flight
    state: WanVideoState

    @property
    def last(self) -> bool:
        return self.flight.step + 1 == len(self.flight.voice.sigmas)


@dataclass(frozen=True, slots=True)
class Made:
    """What a row's forward made."""

    row: WanRow
    result: WanResult
    encoder: tuple[Any, ...] | None  # what the encoder remembers, after the first step
    decoder: Any  # the decoder's state, after the last
    pictures: tuple[Picture, ...]


@dataclass(slots=True)
class WanVideoState:
    """One stream. Once the window is full its size does not change."""

    size: tuple[int, int]
    voice: Voice
    caches: list[StepCache]
    vae: wan_vae.VaeState = field(default_factory=wan_vae.VaeState)
    tiny: DecoderState = field(default_factory=DecoderState)
    frames: int = 0  # latent frames that have entered
    past: list[deque[WanRow]] = field(
        default_factory=list[deque[WanRow]]
    )  # a step's rows in the window, to recache
    flights: list[Flight] = field(default_factory=list[Flight])


class WanVideo(Ticks[WanVideoState, Flight, ChunkRow]):
    """The transformer, the autoencoder, and perhaps a small decoder in place of the autoencoder's own."""

    multiple = 16  # the autoencoder's 8 times the transformer's patches of 2

    def __init__(
        self,
        name: str,
        transformer: CausalWan,
        vae: Any,
        encode: Callable[[str], Tensor],
        decoder: TinyDecoder | None = None,
    ) -> None:
        """encode: prompt → (1, L, D) embeddings."""
        self.name = name
        self._model, self._vae, self._encode, self._tiny = transformer, vae, encode, decoder
        weight = transformer.patch_embedding.weight
        self._like = torch.empty(0, device=weight.device, dtype=weight.dtype)
        config: Any = vae.config
        shape = (1, -1, 1, 1, 1)
        self._mean = torch.tensor(config.latents_mean).view(shape).to(self._like)
        self._std = torch.tensor(config.latents_std).view(shape).to(self._like)

    @torch.inference_mode()
    def init_state(self, size: tuple[int, int], settings: Settings) -> WanVideoState:
        self.check(size)
        state = WanVideoState(size, self._voice(settings, None), [])
        self._fit(state)
        return state

    @property
    def captures(self) -> bool:
        return self._like.device.type != "cpu"

    def fill(self, settings: Settings) -> int:
        return self._model.window.capacity + settings.steps

    def _fit(self, state: WanVideoState) -> None:
        """A cache for each step."""
        height, width = (length // 8 for length in state.size)
        blocks = self._model.window.capacity
        while len(state.caches) < len(state.voice.sigmas):
            state.past.append(deque(maxlen=blocks))
            state.caches.append(self._model.init_cache(height, width))

    @torch.inference_mode()
    def adjust(self, state: WanVideoState, settings: Settings) -> None:
        old = state.voice
        if settings == old.settings:
            return
        voice = self._voice(settings, old)
        if voice.text is not old.text and settings.switch == "recache":
            state.caches = self._recached(state, voice.text)
        elif voice.text is not old.text and settings.switch == "reset":
            for cache in state.caches:
                cache.frames = ()
        state.voice = voice
        self._fit(state)

    def _voice(self, settings: Settings, old: Voice | None) -> Voice:
        if not 1 <= settings.steps <= MAX_STEPS:
            raise ValueError(f"steps {settings.steps}: {self.name} takes 1 to {MAX_STEPS}")
        words = (settings.prompt, settings.blend_prompt, settings.blend)
        if old is not None and words == (old.settings.prompt, old.settings.blend_prompt, old.settings.blend):
            text = old.text
        else:
            embedded = self._encode(settings.prompt).to(self._like)
            if settings.blend > 0:
                other = self._encode(settings.blend_prompt).to(self._like)
                embedded = torch.lerp(embedded, other, settings.blend)
            text = self._model.text_kv(embedded)
        return Voice(settings, text, levels(settings.strength, settings.steps))

    def _recached(self, state: WanVideoState, text: TextKV) -> list[StepCache]:
        """New caches: the frames of the window again, with another prompt."""
        height, width = (length // 8 for length in state.size)
        caches: list[StepCache] = []
        for rows in state.past:
            cache = self._model.init_cache(height, width)
            for row in list(rows):
                again = replace(row, cache=cache, text=text)
                self._model.commit(again, self._model.denoise([again])[0])
            caches.append(cache)
        return caches

    def reset(self, state: WanVideoState) -> None:
        state.vae, state.tiny, state.frames, state.flights = wan_vae.VaeState(), DecoderState(), 0, []
        for cache, rows in zip(state.caches, state.past, strict=True):
            cache.frames = ()
            rows.clear()

    def chunk(self, entered: int) -> int:
        return wan_vae.CHUNK if entered else 1

    @torch.inference_mode()
    def enter(self, state: WanVideoState, entry: Entry) -> Flight:
        # the first chunk may have been lost on its way: whatever comes first is a stream's first picture
        count = self.chunk(state.frames)
        pictures = [*entry.pictures[-count:], *[entry.pictures[-1]] * (count - len(entry.pictures))]
        tags = entry.tags[-count:]
        voice = state.voice
        if entry.noise != 0.5:
            moved = min(1.0, voice.settings.strength * (0.8 + 0.4 * entry.noise))
            voice = replace(voice, sigmas=levels(moved, voice.settings.steps))
        pixels = torch.stack([upload(p, state.size, self._like) for p in pictures], 1)
        return Flight(tags, tuple(pictures[: len(tags)]), pixels, voice)

    def row(self, state: WanVideoState, flight: Flight) -> ChunkRow:
        return ChunkRow(flight, state)

    @torch.inference_mode()
    def forward(self, rows: Sequence[ChunkRow]) -> list[Made]:
        encoded: dict[int, tuple[Any, ...]] = {}
        steps: list[WanRow] = []
        for i, row in enumerate(rows):
            flight, state = row.flight, row.state
            latent, start = flight.latent, flight.start
            sigma = flight.voice.sigmas[flight.step]
            if latent is None:
                clean, after = wan_vae.encode(self._vae, state.vae, flight.pixels[None])
                encoded[i] = after.encoder
                start = state.frames
                latent = self._noised(((clean - self._mean) / self._std)[0], flight, start, 0)
            steps.append(WanRow(latent, sigma, state.caches[flight.step], flight.voice.text, start))
        made: list[Made] = []
        for i, (row, step, result) in enumerate(zip(rows, steps, self._denoised(steps), strict=True)):
            decoder, pictures = self._decoded(row, result.x0) if row.last else (None, ())
            made.append(Made(step, result, encoded.get(i), decoder, pictures))
        return made

    def _denoised(self, rows: Sequence[WanRow]) -> list[WanResult]:
        """Those whose caches are equally full run together."""
        groups: dict[tuple[Any, ...], list[int]] = {}
        for i, row in enumerate(rows):
            full = len(kept(row.cache.frames, self._model.window)[0])
            groups.setdefault((tuple(row.latent.shape), full), []).append(i)
        results: dict[int, WanResult] = {}
        for members in groups.values():
            results.update(zip(members, self._model.denoise([rows[i] for i in members]), strict=True))
        return [results[i] for i in range(len(rows))]

    def _noised(self, clean: Tensor, flight: Flight, start: int, step: int) -> Tensor:
        """(C, 1, h, w) at the step's level; the same seed, frame and step give the same noise on every device."""
        seed = (flight.voice.settings.seed * 1_000_003 + start) * MAX_STEPS + step
        generator = torch.Generator().manual_seed(seed % 2**63)
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        sigma = flight.voice.sigmas[step]
        return (1 - sigma) * clean + sigma * noise

    def _decoded(self, row: ChunkRow, x0: Tensor) -> tuple[Any, tuple[Picture, ...]]:
        """The decoder's state after, and the pictures that were asked for."""
        state, flight = row.state, row.flight
        if self._tiny is not None:
            frames, after = self._tiny.step(x0.transpose(0, 1), state.tiny)  # (T, 3, H, W)
        else:
            video, held = wan_vae.decode(self._vae, state.vae, x0[None] * self._std + self._mean)
            frames, after = video[0].transpose(0, 1), held.decoder
        # a stream whose first chunk was lost later than here decodes as many as the decoder gives
        count = min(len(flight.tags), len(frames))
        strength = 1.0
        return after, tuple(download(frames[i], flight.originals[i], strength) for i in range(count))

    @torch.inference_mode()
    def advance(self, state: WanVideoState, row: ChunkRow, result: Made) -> Flight | list[Finished]:
        flight, step = row.flight, row.flight.step
        self._model.commit(result.row, result.result)
        state.past[step].append(replace(result.row, cache=state.caches[step]))
        if result.encoder is not None:
            state.vae = replace(state.vae, encoder=result.encoder)
            state.frames += 1
        if row.last:
            if self._tiny is not None:
                state.tiny = result.decoder
            else:
                state.vae = replace(state.vae, decoder=result.decoder)
            return [Finished(tag, p) for tag, p in zip(flight.tags, result.pictures, strict=False)]
        latent = self._noised(result.result.x0, flight, result.row.start, step + 1)
        return replace(flight, start=result.row.start, step=step + 1, latent=latent)


def levels(strength: float, steps: int) -> tuple[float, ...]:
    """Falling noise levels in the middles of equal parts of the way, warped as Wan was distilled; never pure noise."""
    strength = min(1.0, max(0.05, strength))
    return warped([1000 * strength * (steps - k - 0.5) / steps for k in range(steps)])
