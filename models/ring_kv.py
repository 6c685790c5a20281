"""Keys and values of one layer in one preallocated buffer: a pinned prefix, then a window that slides.

    [ free | PREFIX: sinks, system, text tier | WINDOW: pictures and words, newest last | free ]
           ^ lo                               ^ w0                                       ^ w1

Evicting the oldest of the window only moves w0; the prefix is stamped again right before it. What attention
sees, lo..w1, stays contiguous and in order, so the causal mask of any model fits as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

Kind: TypeAlias = Literal["pinned", "text", "frame"]
Part: TypeAlias = int | tuple[int, int, int]
"""Of a segment: that many text tokens, or the (time, height, width) grid of a picture's tokens."""


@dataclass(slots=True)
class Segment:
    """What comes and goes as one: a picture with its markers, or a piece of text."""

    kind: Kind
    tokens: int
    advance: int  # positions it takes: less than tokens where a grid has three axes
    position: int  # of its first token; within the prefix 0
    tag: str | int | None = None


def lay_out(parts: tuple[Part, ...], axes: int, base: int) -> tuple[Tensor, int]:
    """Positions of a segment's tokens and how far they advance.

    → (1, T) for one axis, (3, 1, T) for three, as transformers' models take them.
    Source: M-RoPE, Qwen2-VL (2409.12191), section 2.1: a grid advances by its longest side.
    """
    pieces: list[Tensor] = []
    at = base
    for part in parts:
        if isinstance(part, int):
            pieces.append((torch.arange(part) + at).expand(axes, part))
            at += part
        elif axes == 1:
            n = part[0] * part[1] * part[2]
            pieces.append((torch.arange(n) + at)[None])
            at += n
        else:
            grid = torch.meshgrid(*(torch.arange(n) for n in part), indexing="ij")
            pieces.append(torch.stack(grid).reshape(3, -1) + at)
            at += max(part)
    positions = torch.cat(pieces, 1)
    return (positions if axes == 1 else positions[:, None]), at - base


def count(parts: tuple[Part, ...]) -> int:
    """Tokens of a segment's parts."""
    return sum(p if isinstance(p, int) else p[0] * p[1] * p[2] for p in parts)


class RingLayer:
    """One layer's buffer. B rows share the layout; the first update sets heads, dtype and device."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.lo = self.w0 = self.w1 = 0
        self.key_buffer = self.value_buffer = torch.empty(0)  # (B, H, capacity, D)
        self.ready = False

    def allocate(self, like_keys: Tensor, like_values: Tensor) -> None:
        """Take shape, dtype and device from (B, H, T, D) examples."""
        b, h = like_keys.shape[:2]
        self.key_buffer = like_keys.new_zeros(b, h, self.capacity, like_keys.shape[-1])
        self.value_buffer = like_values.new_zeros(b, h, self.capacity, like_values.shape[-1])
        self.ready = True

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys (already rotated) and values (B, H, T, D) of new tokens → all that is visible.

        Raises: RuntimeError when no room was reserved.
        """
        if not self.ready:
            self.allocate(keys, values)
        end = self.w1 + keys.shape[2]
        if end > self.capacity:
            raise RuntimeError(
                f"{keys.shape[2]} tokens after {self.w1} of {self.capacity}: call reserve() before the forward pass"
            )
        self.key_buffer[:, :, self.w1 : end] = keys
        self.value_buffer[:, :, self.w1 : end] = values
        self.w1 = end
        return self.visible()

    def visible(self) -> tuple[Tensor, Tensor]:
        """Views (B, H, lo..w1, D)."""
        return self.key_buffer[:, :, self.lo : self.w1], self.value_buffer[:, :, self.lo : self.w1]

    def window(self, start: int = 0, stop: int | None = None) -> tuple[Tensor, Tensor]:
        """Views on tokens start..stop of the window."""
        a, b = self.w0 + start, self.w1 if stop is None else self.w0 + stop
        return self.key_buffer[:, :, a:b], self.value_buffer[:, :, a:b]

    def stamp(self, keys: Tensor, values: Tensor) -> None:
        """Put the prefix (B, H, S, D) right before the window, over slots that were freed."""
        self.lo = self.w0 - keys.shape[2]
        assert self.lo >= 0, "a prefix only grows by what has left the window"
        self.key_buffer[:, :, self.lo : self.w0] = keys
        self.value_buffer[:, :, self.lo : self.w0] = values

    def to_front(self) -> None:
        """Move all that is visible to slot 0."""
        shift, length = self.lo, self.w1 - self.lo
        for buffer in (self.key_buffer, self.value_buffer):
            # a block at a time: source and target overlap, and a whole clone would double the memory
            step = max(1, shift)
            for at in range(0, length, step):
                n = min(step, length - at)
                buffer[:, :, at : at + n] = buffer[:, :, shift + at : shift + at + n]
        self.lo, self.w0, self.w1 = 0, self.w0 - shift, self.w1 - shift

    @property
    def nbytes(self) -> int:
        return self.key_buffer.nbytes + self.value_buffer.nbytes if self.ready else 0
