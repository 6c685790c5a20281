"""`tiny-restyle`: a one-million-parameter picture-to-picture diffusion network, small enough for one CPU core.

A norm-free U-Net with FiLM conditioning. It sees the noisy picture, the camera's picture and its own result of the
frame before at the same step, and predicts the finished picture (x0). The stem and the head work at half
resolution: most of the cost of a U-Net sits in its outermost level. Weights only: every stream's state is an
argument, so rows of different sessions, frames and steps share one forward.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MULTIPLE = 16  # sizes are multiples of it: half-resolution stem, then three halvings
CELL = 8  # px: side of the cells whose mean colours the network is shown


class FiLM(nn.Module):
    """Scale and shift channels by a condition. Source: Perez et al., "FiLM" (2018), eq. 2."""

    def __init__(self, channels: int, cond: int) -> None:
        super().__init__()
        self.affine = nn.Linear(cond, 2 * channels)
        nn.init.zeros_(self.affine.weight)
        nn.init.zeros_(self.affine.bias)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        """x (B, C, H, W), cond (B, D) → (B, C, H, W)."""
        scale, shift = self.affine(cond)[:, :, None, None].chunk(2, 1)
        return torch.addcmul(shift, x, 1 + scale)


class Residual(nn.Module):
    """Two convolutions around a FiLM, added to the input. Without norms: rows never see each other's statistics."""

    def __init__(self, channels: int, cond: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = FiLM(channels, cond)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        with torch.no_grad():
            self.conv2.weight.mul_(0.2)  # near identity at the start: a norm-free stack must not blow up

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.film(self.conv1(F.silu(x)), cond)))


def _calmed(x: Tensor) -> Tensor:
    """Blurred before it is halved: what aliases there changes with every pixel that the camera moves.

    Source: Zhang, "Making Convolutional Networks Shift-Invariant Again" (2019), §3.2; a box in place of the binomial.
    """
    return F.avg_pool2d(x, 3, 1, 1)


class RestyleNet(nn.Module):
    """(noisy picture, source, previous result, noise level, condition) → the restyled picture.

    All pictures are (B, 3, H, W) in [-1, 1] with H and W multiples of `MULTIPLE`.
    """

    def __init__(
        self,
        vocabulary: int,
        widths: tuple[int, int, int, int] = (16, 32, 64, 128),
        cond: int = 128,
        head: int = 24,
    ) -> None:
        super().__init__()
        half, a, b, c = widths
        self.words = nn.Embedding(vocabulary, cond, padding_idx=0)
        self.text = nn.Sequential(nn.Linear(cond, cond), nn.SiLU(), nn.Linear(cond, cond))
        self.hard = nn.Linear(cond, 1)  # whether the cells are shown with their edges, by the prompt
        self.time = nn.Sequential(nn.Linear(32, cond), nn.SiLU(), nn.Linear(cond, cond))
        # 3 pictures × 4 sub-pixels, and the cells' mean colours: without those, mosaics would need a receptive
        # field and a precision that the thin outer levels do not have
        self.stem = nn.Conv2d(39, half, 3, padding=1)
        self.stem_film = FiLM(half, cond)
        self.down0 = nn.Conv2d(half, a, 3, stride=2, padding=1)
        self.enc0 = Residual(a, cond)
        self.down1 = nn.Conv2d(a, b, 3, stride=2, padding=1)
        self.enc1 = Residual(b, cond)
        self.down2 = nn.Conv2d(b, c, 3, stride=2, padding=1)
        self.mid = nn.ModuleList([Residual(c, cond), Residual(c, cond)])
        self.up1 = nn.Conv2d(c, b, 1)
        self.dec1 = Residual(b, cond)
        self.up0 = nn.Conv2d(b, a, 1)
        self.dec0 = Residual(a, cond)
        self.up = nn.Conv2d(a, 4 * half, 1)
        self.head1 = nn.Conv2d(2 * half, head, 3, padding=1)
        self.head1_film = FiLM(head, cond)
        self.head2 = nn.Conv2d(head, head, 3, padding=1)
        self.head2_film = FiLM(head, cond)
        self.head3 = nn.Conv2d(head, 36, 1)
        nn.init.zeros_(self.head3.weight)
        nn.init.zeros_(cast("Tensor", self.head3.bias))

    def encode(self, ids: Tensor) -> Tensor:
        """Word numbers (B, L), 0 where there is none → the prompt's vector (B, D). Order does not count."""
        count = (ids > 0).sum(1, keepdim=True).clamp(min=1).to(self.words.weight.dtype)
        return self.text(self.words(ids).sum(1) / count.sqrt())

    def forward(
        self, noisy: Tensor, source: Tensor, previous: Tensor, sigma: Tensor, prompt: Tensor
    ) -> Tensor:
        """noisy, source, previous (B, 3, H, W); sigma (B,) in [0, 1]; prompt (B, D) → x0 (B, 3, H, W).

        noisy = (1 - sigma)·estimate + sigma·noise; previous is zeros where there is no frame before.
        """
        octave = torch.arange(16, device=noisy.device, dtype=torch.float32) / 16
        angle = sigma.float()[:, None] * (20 * torch.exp(-math.log(1000) * octave))
        cond = F.silu(prompt + self.time(torch.cat([angle.sin(), angle.cos()], 1).to(prompt.dtype)))

        # one unshuffle of all nine channels: (B, 36, H/2, W/2), four sub-pixels to each channel
        p = F.pixel_unshuffle(torch.cat([noisy, source, previous], 1), 2)
        s = p[:, 12:24]
        mean = s.unflatten(1, (3, 4)).mean(2)  # (B, 3, H/2, W/2)
        # cells belong to the screen: but for mosaics they are a blur that moves with the picture, or all would flicker
        hard = torch.sigmoid(self.hard(prompt))[:, :, None, None]
        cells = F.interpolate(F.avg_pool2d(mean, CELL // 2), scale_factor=CELL / 2, mode="nearest")
        soft = F.avg_pool2d(mean, CELL // 2 + 1, 1, CELL // 4, count_include_pad=False)
        cells = torch.lerp(soft, cells, hard)  # (B, 3, H/2, W/2)
        h = F.silu(self.stem_film(self.stem(torch.cat([p, cells], 1)), cond))  # (B, 16, H/2, W/2)
        e0 = self.enc0(self.down0(_calmed(h)), cond)  # H/4
        e1 = self.enc1(self.down1(_calmed(e0)), cond)  # H/8
        x = self.down2(_calmed(e1))  # H/16
        for block in self.mid:
            x = block(x, cond)
        x = self.dec1(F.interpolate(self.up1(x), scale_factor=2.0, mode="bilinear") + e1, cond)
        x = self.dec0(F.interpolate(self.up0(x), scale_factor=2.0, mode="bilinear") + e0, cond)
        x = torch.cat([F.pixel_shuffle(self.up(x), 2), h], 1)
        x = F.silu(self.head1_film(self.head1(x), cond))
        x = F.silu(self.head2_film(self.head2(x), cond))
        gain, mix, shift = self.head3(x).chunk(3, 1)  # (B, 12, H/2, W/2) each
        # starting from the camera's picture keeps its sharpness: the head only says what changes
        shift = torch.addcmul(shift, mix, cells.repeat_interleave(4, 1))
        return F.pixel_shuffle(torch.addcmul(shift, s, 1 + gain), 2)
