"""SD-Turbo and LCM class models as StreamModels: a text-conditioned UNet, a tiny autoencoder, one to four steps.

Stream Batch comes from the rows of `stream_model.py`: a picture's step i and the next picture's step i - 1 share a forward.
Guidance is residual (RCFG): the negative direction is taken from the source (`self`, no extra row), from one negative row
a picture (`onetime`), or from one a step (`full`, which is ordinary CFG).

Needs the extra `hub` (diffusers, transformers). Models of the SD 1.x and 2.x shape only: SDXL asks for more conditions.

Source: Kodaira et al., "StreamDiffusion" (2023), §3.1 and §3.2 eq. 4-9; Luo et al., "Latent Consistency Models" (2023), §4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from .static_rows import StaticRows
from .stream_model import MAX_STEPS, Entry, Finished, Picture, Settings, Ticks, download, upload

Guidance = Literal["self", "onetime", "full"]

_GRID = 50  # the timesteps that consistency distillation knows: every 20th of 1000
_SIGMA_DATA = 0.5  # LCM's boundary conditions
_TIME_SCALE = 10.0


@dataclass(frozen=True, slots=True)
class Voice:
    """What one picture is drawn by."""

    settings: Settings
    prompt: Tensor  # (L, D)
    negative: Tensor  # (L, D)
    noise: Tensor  # (MAX_STEPS, C, h, w), fixed to the screen
    times: tuple[int, ...]  # the timesteps, falling


@dataclass(frozen=True, slots=True)
class Flight:
    """One picture on its way through the steps."""

    tag: Any
    original: Picture
    pixels: Tensor  # (3, H, W); encoded with the first step
    voice: Voice
    step: int = 0
    source: Tensor | None = None  # (C, h, w) latent of the picture, or what `onetime` put in its place
    x: Tensor | None = None  # (C, h, w) latent at this step's noise level


@dataclass(frozen=True, slots=True)
class LatentRow:
    """The next step of one picture."""

    flight: Flight

    @property
    def last(self) -> bool:
        return self.flight.step + 1 == len(self.flight.voice.times)


@dataclass(frozen=True, slots=True)
class Denoised:
    """What a row's forward made."""

    source: Tensor  # (C, h, w)
    x0: Tensor  # (C, h, w)
    picture: Picture | None  # after the last step


@dataclass(slots=True)
class BatchState:
    """One stream."""

    size: tuple[int, int]
    voice: Voice
    flights: list[Flight] = field(default_factory=list[Flight])


class StreamBatch(Ticks[BatchState, Flight, LatentRow]):
    """A UNet and a tiny autoencoder of diffusers behind the StreamModel interface."""

    multiple = 64  # eight latent pixels: what the UNet halves three times

    def __init__(
        self,
        name: str,
        unet: Any,
        autoencoder: Any,
        encode: Callable[[str], Tensor],
        alphas: Tensor,
        *,
        guidance: Guidance = "self",
        prediction: Literal["epsilon", "v_prediction"] = "epsilon",
        compiled: bool = False,
    ) -> None:
        """encode: prompt → (L, D). alphas: (1000,) cumulative products of the noise schedule.

        compiled: through torch.compile; CUDA graphs are used on a GPU in any case.
        """
        self.name = name
        self._unet, self._vae, self._encode = unet, autoencoder, encode
        self._guidance, self._prediction = guidance, prediction
        self._draw: Callable[..., Tensor] = self._predict
        if compiled or unet.device.type == "cuda":
            self._draw = StaticRows(self._predict, compiled=compiled)
        self._like = torch.empty(0, device=unet.device, dtype=unet.dtype)
        self._alphas = alphas.to(device=unet.device, dtype=torch.float32)
        self._levels: list[float] = alphas.tolist()  # read without waiting for the device

    @torch.inference_mode()
    def init_state(self, size: tuple[int, int], settings: Settings) -> BatchState:
        self.check(size)
        return BatchState(size, self._voice(size, settings, None))

    @torch.inference_mode()
    def adjust(self, state: BatchState, settings: Settings) -> None:
        if settings != state.voice.settings:
            state.voice = self._voice(state.size, settings, state.voice)

    def reset(self, state: BatchState) -> None:
        state.flights = []

    @property
    def captures(self) -> bool:
        return isinstance(self._draw, StaticRows)

    def capture(self, state: BatchState, most: int) -> None:
        if isinstance(self._draw, StaticRows):
            time = torch.zeros(1, dtype=torch.long, device=self._like.device)
            latent, prompt = state.voice.noise[:1], state.voice.prompt[None]
            self._draw.warm(latent, time, prompt, most=2 * most)  # guidance adds a row to each

    def _voice(self, size: tuple[int, int], settings: Settings, old: Voice | None) -> Voice:
        if not 1 <= settings.steps <= MAX_STEPS:
            raise ValueError(f"steps {settings.steps}: {self.name} takes 1 to {MAX_STEPS}")
        if old is not None and old.settings.seed == settings.seed:
            noise = old.noise
        else:
            channels, shrink = (
                self._unet.config.in_channels,
                2 ** (len(self._vae.config.block_out_channels) - 1),
            )
            generator = torch.Generator().manual_seed(settings.seed)
            shape = (MAX_STEPS, channels, size[0] // shrink, size[1] // shrink)
            noise = torch.randn(shape, generator=generator).to(self._like)
        prompt = self._encode(settings.prompt).to(self._like)
        if settings.blend > 0:
            prompt = torch.lerp(prompt, self._encode(settings.blend_prompt).to(self._like), settings.blend)
        negative = self._encode(settings.negative_prompt).to(self._like)
        return Voice(settings, prompt, negative, noise, timesteps(settings.strength, settings.steps))

    def chunk(self, entered: int) -> int:
        return 1

    @torch.inference_mode()
    def enter(self, state: BatchState, entry: Entry) -> Flight:
        voice, (picture,) = state.voice, entry.pictures
        if entry.noise != 0.5:
            moved = min(1.0, voice.settings.strength * (0.8 + 0.4 * entry.noise))
            voice = replace(voice, times=timesteps(moved, voice.settings.steps))
        return Flight(entry.tags[0], picture, upload(picture, state.size, self._like), voice)

    def row(self, state: BatchState, flight: Flight) -> LatentRow:
        return LatentRow(flight)

    @torch.inference_mode()
    def forward(self, rows: Sequence[LatentRow]) -> list[Denoised]:
        if not rows:
            return []
        flights = [r.flight for r in rows]
        steps = [f.step for f in flights]
        time = torch.tensor([f.voice.times[f.step] for f in flights], device=self._like.device)
        alpha = self._alphas[time].sqrt()[:, None, None, None].to(self._like.dtype)
        beta = (1 - self._alphas[time]).sqrt()[:, None, None, None].to(self._like.dtype)
        source = self._sources(flights)  # (B, C, h, w)
        fresh = torch.stack([f.voice.noise[s] for f, s in zip(flights, steps, strict=True)])
        x = torch.stack(
            [alpha[i] * source[i] + beta[i] * fresh[i] if f.x is None else f.x for i, f in enumerate(flights)]
        )
        extra = [i for i, f in enumerate(flights) if self._asks_negative(f)]
        prompts = [f.voice.prompt for f in flights] + [flights[i].voice.negative for i in extra]
        index = torch.tensor([*range(len(rows)), *extra], device=self._like.device)
        out = self._draw(x[index], time[index], torch.stack(prompts))
        epsilon = self._epsilon(out, x[index], alpha[index], beta[index])
        negatives = {i: epsilon[len(rows) + n] for n, i in enumerate(extra)}
        chosen: list[Tensor] = []
        residual_of: list[Tensor] = []
        for i, f in enumerate(flights):
            gamma = f.voice.settings.guidance
            residual = source[i]
            if i in negatives and self._guidance == "onetime":
                # from here on the negative's own picture stands for the source (eq. 8)
                residual = (x[i] - beta[i] * negatives[i]) / alpha[i]
            residual_of.append(residual)
            if gamma == 1:
                chosen.append(epsilon[i])
                continue
            full = i in negatives and self._guidance == "full"
            against = negatives[i] if full else (x[i] - alpha[i] * residual) / beta[i]
            chosen.append(against + gamma * (epsilon[i] - against))
        x0 = (x - beta * torch.stack(chosen)) / alpha
        scaled = (time.float() * _TIME_SCALE)[:, None, None, None]
        skip = _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)
        keep = scaled / (scaled**2 + _SIGMA_DATA**2).sqrt()
        x0 = (keep * x0 + skip * x).to(self._like.dtype)
        pictures = self._pictures(rows, x0)
        return [Denoised(residual_of[i].clone(), x0[i].clone(), pictures.get(i)) for i in range(len(rows))]

    def _predict(self, x: Tensor, time: Tensor, prompts: Tensor) -> Tensor:
        """The UNet's output for rows (B, C, h, w), (B,), (B, L, D)."""
        return self._unet(x, time, prompts, return_dict=False)[0]

    def _asks_negative(self, flight: Flight) -> bool:
        if flight.voice.settings.guidance == 1 or self._guidance == "self":
            return False
        return self._guidance == "full" or flight.step == 0

    def _sources(self, flights: Sequence[Flight]) -> Tensor:
        """Latents of all pictures; those that enter are encoded together."""
        new = [f for f in flights if f.source is None]
        encoded = iter(self._vae.encode(torch.stack([f.pixels for f in new])).latents) if new else iter(())
        return torch.stack([next(encoded) if f.source is None else f.source for f in flights])

    def _epsilon(self, out: Tensor, x: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        return alpha * out + beta * x if self._prediction == "v_prediction" else out

    def _pictures(self, rows: Sequence[LatentRow], x0: Tensor) -> dict[int, Picture]:
        """What is finished, decoded together."""
        last = [i for i, r in enumerate(rows) if r.last]
        if not last:
            return {}
        decoded = self._vae.decode(x0[last]).sample
        return {i: download(decoded[n], rows[i].flight.original, 1.0) for n, i in enumerate(last)}

    @torch.inference_mode()
    def advance(self, state: BatchState, row: LatentRow, result: Denoised) -> Flight | list[Finished]:
        f = row.flight
        if result.picture is not None:
            return [Finished(f.tag, result.picture)]
        a = self._levels[f.voice.times[f.step + 1]]
        x = a**0.5 * result.x0 + (1 - a) ** 0.5 * f.voice.noise[f.step + 1]
        return replace(f, step=f.step + 1, source=result.source, x=x)


def timesteps(strength: float, steps: int) -> tuple[int, ...]:
    """Falling timesteps on LCM's grid, from `strength` of the whole way: (0.6, 2) → (599, 299)."""
    start = max(steps, round(min(1.0, max(0.0, strength)) * _GRID))
    return tuple(round(start * (steps - k) / steps) * (1000 // _GRID) - 1 for k in range(steps))


def load_stream_batch(
    folder: Path,
    autoencoder: Path | None = None,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    guidance: Guidance = "self",
    compiled: bool = False,
) -> StreamBatch:
    """A model in diffusers' folder layout (unet, text_encoder, tokenizer, scheduler) with a TAESD in `taesd/`.

    autoencoder: where the TAESD is instead. On a GPU the UNet runs in CUDA graphs. Safetensors only.
    Raises: ValueError for a folder that holds something else; ModuleNotFoundError without `hub`.
    """
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.schedulers.scheduling_lcm import LCMScheduler
    from safetensors import SafetensorError
    from transformers import CLIPTextModel, CLIPTokenizer

    autoencoder = autoencoder or folder / "taesd"
    # low memory needs accelerate; without it diffusers warns at length
    plain: dict[str, Any] = {"use_safetensors": True, "low_cpu_mem_usage": False}
    try:
        unet: Any = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", **plain)
        text: Any = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", use_safetensors=True)
        words: Any = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
        schedule: Any = LCMScheduler.from_pretrained(folder, subfolder="scheduler")
        vae: Any = AutoencoderTiny.from_pretrained(autoencoder, **plain)
    except (OSError, SafetensorError) as e:
        raise ValueError(f"{folder} or {autoencoder} is no model in diffusers' layout: {e}") from e
    if unet.config.addition_embed_type is not None:
        raise ValueError(
            f"{folder} is of the SDXL kind, which needs more conditions; SD 1.x and 2.x are taken"
        )
    unet = unet.to(device=device, dtype=dtype, memory_format=torch.channels_last).eval().requires_grad_(False)
    vae = vae.to(device=device, dtype=dtype).eval().requires_grad_(False)
    text = text.to(device=device, dtype=dtype).eval().requires_grad_(False)

    @torch.inference_mode()
    def encode(prompt: str) -> Tensor:
        length = words.model_max_length
        ids = words(
            prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).input_ids
        return text(ids.to(device))[0][0]

    prediction = schedule.config.prediction_type
    if prediction not in ("epsilon", "v_prediction"):
        raise ValueError(f"{folder} predicts {prediction!r}; epsilon and v_prediction are taken")
    return StreamBatch(
        folder.name,
        unet,
        vae,
        encode,
        schedule.alphas_cumprod,
        guidance=guidance,
        prediction=prediction,
        compiled=compiled,
    )
