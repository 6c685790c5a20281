"""`tiny-restyle` as a StreamModel: the model that comes with Penstock and runs on one CPU core.

It redraws in the styles of `restyle_prompt.py` and knows no others: it renders no new content and has no open
vocabulary. A prompt without a known word leaves the picture as it is. Weights: `data/tiny-restyle.safetensors`, trained
by `training/restyle.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .checkpoint import misfit
from .motion_field import Look, Motion, followed, look, motion, steadied
from .restyle_net import MULTIPLE, RestyleNet
from .restyle_prompt import SIZE, padded, read
from .static_rows import StaticRows
from .stream_model import (
    MAX_STEPS,
    Entry,
    Finished,
    Picture,
    Settings,
    Ticks,
    download,
    rgb_of,
    shrunk,
    upload,
)
from .traced import traced

WEIGHTS = Path(__file__).parent / "data" / "tiny-restyle.safetensors"

_SIGMAS = {1: (0.8,), 2: (0.8, 0.4), 3: (0.8, 0.5, 0.25), 4: (0.8, 0.6, 0.4, 0.2)}  # inside what training saw

Forward = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""RestyleNet.forward, by whatever runs it."""


class BadCheckpoint(ValueError):
    """A file that does not hold the weights of this model."""


def load_net(path: Path = WEIGHTS) -> RestyleNet:
    """The network with the weights of a safetensors file, float32 on the CPU.

    Raises: BadCheckpoint when the file is missing, broken, or holds another model.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as e:
        raise BadCheckpoint(f"{path} is no readable safetensors file: {e}") from e
    net = RestyleNet(SIZE)
    if wrong := misfit(net, state):
        raise BadCheckpoint(f"{path} does not hold tiny-restyle: {wrong}")
    net.load_state_dict({k: v.float() for k, v in state.items()})
    return net.eval().requires_grad_(False)


@dataclass(frozen=True, slots=True)
class Voice:
    """What one picture is drawn by; the settings of the moment when it entered."""

    settings: Settings
    prompt: Tensor  # (D,)
    negative: Tensor | None  # (D,); None stands for the source picture, at no cost
    noise: Tensor  # (MAX_STEPS, 3, H, W), fixed to the screen: a still scene stays still
    sigmas: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Flight:
    """One picture on its way through the steps."""

    tag: Any
    original: Picture  # as it came
    look: Look
    source: Tensor  # (3, H, W)
    estimate: Tensor  # (3, H, W): what the last step made of it, the source before the first
    step: int
    voice: Voice
    moved: tuple[Look, Motion] | None = None  # since the picture of this look


@dataclass(frozen=True, slots=True)
class Past:
    """What a step made of the picture before."""

    voice: Voice
    look: Look
    estimate: Tensor  # (3, H, W)


@dataclass(frozen=True, slots=True)
class StepRow:
    """The next step of one picture."""

    flight: Flight
    previous: Tensor | None  # (3, H, W) this step's result of the picture before, where its things are now

    @property
    def last(self) -> bool:
        return self.flight.step + 1 == len(self.flight.voice.sigmas)


@dataclass(frozen=True, slots=True)
class Drawn:
    """What a row's forward made."""

    estimate: Tensor  # (3, H, W)
    picture: Picture | None  # after the last step


@dataclass(slots=True)
class RestyleState:
    """One stream. Its size in memory does not change."""

    size: tuple[int, int]  # the model's (H, W)
    voice: Voice
    flights: list[Flight] = field(default_factory=list[Flight])  # the oldest first
    previous: dict[int, Past] = field(default_factory=dict[int, Past])  # by step


class TinyRestyle(Ticks[RestyleState, Flight, StepRow]):
    """The shipped model. `forward` replaces the network's own, e.g. by onnxruntime's."""

    name = "tiny-restyle"
    multiple = MULTIPLE

    def __init__(
        self,
        net: RestyleNet,
        *,
        device: str | torch.device = "cpu",
        dtype: torch.dtype = torch.float32,
        forward: Forward | None = None,
    ) -> None:
        self._net = net.to(device=device, dtype=dtype).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue, reportUnknownMemberType]
        self._like = torch.empty(0, device=device, dtype=dtype)
        self._forward = forward or self._runner()

    @property
    def captures(self) -> bool:
        return isinstance(self._forward, StaticRows)

    def capture(self, state: RestyleState, most: int) -> None:
        if isinstance(self._forward, StaticRows):
            picture = self._like.new_zeros((1, 3, *state.size))
            sigma = torch.zeros(1, device=self._like.device)
            # a negative prompt adds a row to each
            self._forward.warm(picture, picture, picture, sigma, state.voice.prompt[None], most=2 * most)

    def _runner(self) -> Forward:
        if self._like.device.type != "cpu":
            return StaticRows(self._net)
        picture = self._like.new_zeros((1, 3, 2 * MULTIPLE, 2 * MULTIPLE))
        prompt = self._like.new_zeros((1, self._net.words.embedding_dim))
        return traced(self._net, (picture, picture, picture, torch.zeros(1), prompt))

    def init_state(self, size: tuple[int, int], settings: Settings) -> RestyleState:
        self.check(size)
        return RestyleState(size, self._voice(size, settings, None))

    def adjust(self, state: RestyleState, settings: Settings) -> None:
        if settings != state.voice.settings:
            state.voice = self._voice(state.size, settings, state.voice)

    def reset(self, state: RestyleState) -> None:
        state.flights = []
        state.previous = {}

    @torch.inference_mode()
    def _voice(self, size: tuple[int, int], settings: Settings, old: Voice | None) -> Voice:
        if settings.steps not in _SIGMAS:
            raise ValueError(f"steps {settings.steps}: tiny-restyle takes 1 to {MAX_STEPS}")
        if old is not None and old.settings.seed == settings.seed:
            noise = old.noise
        else:
            # drawn on the CPU: the same seed gives the same picture on every device
            generator = torch.Generator().manual_seed(settings.seed)
            noise = torch.randn((MAX_STEPS, 3, *size), generator=generator).to(self._like)
        negative = None
        if settings.guidance != 1 and read(settings.negative_prompt):
            negative = self._encode(settings.negative_prompt)
        prompt = self._encode(settings.prompt)
        if settings.blend > 0:
            prompt = torch.lerp(prompt, self._encode(settings.blend_prompt), settings.blend)
        return Voice(settings, prompt, negative, noise, _SIGMAS[settings.steps])

    def _encode(self, prompt: str) -> Tensor:
        ids = torch.tensor([padded(read(prompt))], device=self._like.device)
        return self._net.encode(ids)[0]

    def chunk(self, entered: int) -> int:
        return 1

    @torch.inference_mode()
    def enter(self, state: RestyleState, entry: Entry) -> Flight:
        voice, (picture,) = state.voice, entry.pictures
        first = 0.65 + 0.3 * min(1.0, max(0.0, entry.noise))  # what training saw
        voice = voice if abs(first - voice.sigmas[0]) < 1e-6 else _from(voice, first)
        small = shrunk(rgb_of(picture), state.size) if self._like.device.type == "cpu" else picture
        source = upload(small, state.size, self._like)
        return Flight(entry.tags[0], picture, look(small, state.size), source, source, 0, voice)

    @torch.inference_mode()
    def row(self, state: RestyleState, flight: Flight) -> StepRow:
        past = state.previous.get(flight.step)
        if past is None or not _same_style(past.voice, flight.voice):
            return StepRow(flight, None)  # a result in another style would shine through
        if flight.moved is None or flight.moved[0] is not past.look:
            flight = replace(flight, moved=(past.look, motion(flight.look, past.look)))
        assert flight.moved is not None
        return StepRow(flight, followed(past.estimate, flight.moved[1]))

    @torch.inference_mode()
    def forward(self, rows: Sequence[StepRow]) -> list[Drawn]:
        if not rows:
            return []
        # a negative prompt costs one more row, and only at the last step: it moves the finished picture
        extra = [r for r in rows if r.last and r.flight.voice.negative is not None]
        every = [*rows, *extra]
        prompts = [r.flight.voice.prompt for r in rows]
        prompts += [r.flight.voice.negative for r in extra if r.flight.voice.negative is not None]
        flights = [r.flight for r in every]
        levels = [f.voice.sigmas[f.step] for f in flights]
        sigma = torch.tensor(levels, device=self._like.device)  # (B,) float32
        s = sigma.to(self._like.dtype)[:, None, None, None]
        noise = torch.stack([f.voice.noise[f.step] for f in flights])
        noisy = torch.lerp(torch.stack([f.estimate for f in flights]), noise, s)
        source = torch.stack([f.source for f in flights])
        nothing = torch.zeros_like(flights[0].source)
        previous = torch.stack([nothing if r.previous is None else r.previous for r in every])
        x0 = self._forward(noisy, source, previous, sigma, torch.stack(prompts)).clamp_(-1, 1)
        against = {id(r): x0[len(rows) + i] for i, r in enumerate(extra)}
        # clones: a view would keep the whole batch's memory alive in a stranger's state
        return [self._drawn(r, x0[i].clone(), against.get(id(r))) for i, r in enumerate(rows)]

    def _drawn(self, row: StepRow, estimate: Tensor, negative: Tensor | None) -> Drawn:
        if not row.last:
            return Drawn(estimate, None)
        flight, settings = row.flight, row.flight.voice.settings
        if settings.steady and row.previous is not None and flight.moved is not None:
            estimate = steadied(estimate, row.previous, flight.moved[1], settings.steady)
        result = estimate
        if settings.guidance != 1:
            # RCFG with the source as its own negative when there is no other: the null prompt is identity here
            base = flight.source if negative is None else negative
            result = torch.lerp(base, estimate, settings.guidance)
        return Drawn(estimate, download(result, flight.original, settings.strength))

    def advance(self, state: RestyleState, row: StepRow, result: Drawn) -> Flight | list[Finished]:
        flight = row.flight
        state.previous[flight.step] = Past(flight.voice, flight.look, result.estimate)
        if result.picture is not None:
            return [Finished(flight.tag, result.picture)]
        return replace(flight, estimate=result.estimate, step=flight.step + 1)


def _from(voice: Voice, first: float) -> Voice:
    """The voice with its noise levels scaled to begin at `first`."""
    ratio = first / voice.sigmas[0]
    return replace(voice, sigmas=(first, *(s * ratio for s in voice.sigmas[1:])))


def _same_style(a: Voice, b: Voice) -> bool:
    return a.prompt is b.prompt or torch.equal(a.prompt, b.prompt)
