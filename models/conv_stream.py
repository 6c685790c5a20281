"""Whisper's two convolutions, streamed: 100 mel frames a second in, 50 encoder frames a second out.

Output j needs conv1 at 2j−1 … 2j+1, which needs mel 2j−2 … 2j+2. So the carried state is two mel frames, and
one value of conv1 is computed twice:

    mel     … −2 −1 | 0 1 2 3 … 2n−1 | (2n)      carried | new | look-ahead, or zero
    conv1       −1  | 0 1 2 3 … 2n−1
    conv2             0   1  …  n−1

Without look-ahead the last conv1 value of a block sees a zero to its right (as CarelessWhisper is trained);
the next block computes it again with its true neighbour. With look-ahead 1 it equals the offline convolution.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_KEEP = 2  # mel frames carried


@dataclass(slots=True)
class MelQueue:
    """Mel frames of one stream that the convolutions have not used up."""

    frames: Tensor  # (M, 2 + T): two carried frames, then new ones
    first: bool = True  # nothing has been given yet

    @classmethod
    def empty(cls, n_mels: int, like: Tensor) -> MelQueue:
        """Of a stream that begins; dtype and device of `like`."""
        return cls(torch.zeros(n_mels, _KEEP, dtype=like.dtype, device=like.device))

    def push(self, mel: Tensor) -> None:
        """Append (M, T)."""
        self.frames = torch.cat([self.frames, mel.to(self.frames)], 1)

    def available(self, lookahead: int) -> int:
        """Encoder frames that can be given now."""
        return max(0, (self.frames.shape[1] - _KEEP - lookahead) // 2)

    def window(self, n: int, lookahead: int) -> Tensor:
        """What `ConvFront` needs to give `n` frames: (M, 2 + 2n + 1)."""
        end = _KEEP + 2 * n + lookahead
        if self.frames.shape[1] < end:
            raise ValueError(f"{n} encoder frames need {end} mel frames; there are {self.frames.shape[1]}")
        return F.pad(self.frames[:, :end], (0, 1 - lookahead))

    def drop(self, n: int) -> None:
        """The `n` frames have been given."""
        self.frames = self.frames[:, 2 * n :].clone()
        self.first = False


class ConvFront(nn.Module):
    """conv1 (3 wide) and conv2 (3 wide, stride 2), each with GELU. State: `MelQueue`, one a stream."""

    def __init__(self, n_mels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(n_mels, width, 3, padding=1)
        self.conv2 = nn.Conv1d(width, width, 3, stride=2, padding=1)

    def init_state(self) -> MelQueue:
        return MelQueue.empty(self.conv1.in_channels, self.conv1.weight)

    def forward(self, windows: Tensor, first: Tensor) -> Tensor:
        """(B, M, 2 + 2n + 1) windows of B streams, (B,) whether each is its stream's first → (B, n, D)."""
        hidden = F.gelu(F.conv1d(windows, self.conv1.weight, self.conv1.bias))  # (B, D, 1 + 2n)
        # before the stream conv2 is padded with zeros, and not with conv1 of nothing, which has a bias
        edge = hidden[..., :1].masked_fill(first[:, None, None], 0.0)
        hidden = torch.cat([edge, hidden[..., 1:]], -1)
        out = F.gelu(F.conv1d(hidden, self.conv2.weight, self.conv2.bias, stride=2))  # (B, D, n)
        return out.transpose(1, 2)
