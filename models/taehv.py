"""A small video decoder for latents of Wan's autoencoder: a tenth of its cost, frame by frame, without attention.

Names and shapes of the modules are those of the published TAEHV checkpoints (`taew2_1`), which load strictly. Each block
sees its input of the frame before; that is all that a stream has to remember, and it goes in and out as an argument.

Source: Bohan (madebyollin), "TAEHV: Tiny AutoEncoder for Hunyuan Video" (2024), decoder; memory block as there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .checkpoint import misfit

GROWTH = 4  # pictures a latent frame
LEAD = GROWTH - 1  # pictures before a stream's first, which it drops


def _conv(inputs: int, outputs: int, bias: bool = True) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias)


class Clamp(nn.Module):
    """Latents softly limited to ±3."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x / 3) * 3


class MemBlock(nn.Module):
    """A residual block that sees the frame before."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            _conv(2 * width, width), nn.ReLU(), _conv(width, width), nn.ReLU(), _conv(width, width)
        )

    def forward(self, x: Tensor, past: Tensor) -> Tensor:
        """x, past (N, C, H, W): the frames and each one's predecessor."""
        return torch.relu(self.conv(torch.cat([x, past], 1)) + x)


class TGrow(nn.Module):
    """One frame becomes `stride`."""

    def __init__(self, width: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width * stride, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) → (N·stride, C, H, W)."""
        return self.conv(x).reshape(-1, *x.shape[1:])


@dataclass(frozen=True, slots=True)
class DecoderState:
    """The last frame that went into each memory block, (1, C, H, W); empty before a stream's first."""

    past: tuple[Tensor, ...] = ()

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in self.past)


class TinyDecoder(nn.Module):
    """(T, C, h, w) latent frames → (4·T, 3, 8h, 8w) pictures in [-1, 1]; three fewer at a stream's start."""

    def __init__(self, latent: int = 16, widths: tuple[int, int, int, int] = (256, 128, 64, 64)) -> None:
        super().__init__()
        self.latent = latent
        a, b, c, d = widths
        layers: list[nn.Module] = [Clamp(), _conv(latent, a), nn.ReLU()]
        for width, after, grow in ((a, b, 1), (b, c, 2), (c, d, 2)):
            layers += [MemBlock(width) for _ in range(3)]
            layers += [nn.Upsample(scale_factor=2), TGrow(width, grow), _conv(width, after, bias=False)]
        layers += [nn.ReLU(), _conv(d, 3)]
        self.decoder = nn.Sequential(*layers)

    @torch.inference_mode()
    def step(self, latents: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        """The next latent frames of one stream. Any chunking gives the same pictures."""
        x, past, after = latents, iter(state.past), list[Tensor]()
        for layer in self.decoder:
            if isinstance(layer, MemBlock):
                before = next(past, None)
                before = torch.zeros_like(x[:1]) if before is None else before
                after.append(x[-1:].clone())
                x = layer(x, torch.cat([before, x[:-1]]))
            else:
                x = layer(x)
        if not state.past:
            x = x[LEAD:]
        return x.clamp(0, 1) * 2 - 1, DecoderState(tuple(after))


def load_tiny_decoder(path: Path) -> TinyDecoder:
    """The decoder of a TAEHV checkpoint (safetensors); an encoder in it is left out.

    Raises: ValueError for a file that is broken or holds something else.
    """
    try:
        state = {k: v for k, v in load_file(path).items() if k.startswith("decoder.")}
    except (OSError, SafetensorError) as e:
        raise ValueError(f"{path} is no readable safetensors file: {e}") from e
    first = state.get("decoder.1.weight")
    steps = [state.get(f"decoder.{i}.weight") for i in (8, 14, 20)]
    if first is None or any(s is None for s in steps):
        raise ValueError(f"{path} does not hold a TAEHV decoder: no tensor 'decoder.1.weight' and its like")
    widths = (first.shape[0], *(cast("Tensor", s).shape[0] for s in steps))
    net = TinyDecoder(first.shape[1], cast("Any", widths))
    if wrong := misfit(net, state):
        raise ValueError(f"{path} does not hold a TAEHV decoder of Wan 2.1: {wrong}")
    net.load_state_dict({k: v.float() for k, v in state.items()})
    return net.eval().requires_grad_(False)
