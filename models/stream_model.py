"""What all live picture-to-picture models promise: weights without state, one explicit state per stream.

A picture's way through a model takes several denoising steps; each is a row. `rows` says which rows a stream could run
now, `forward` runs rows of any streams, pictures and steps together and changes nothing, and `commit` takes the
results over. A forward that failed or came too late leaves no trace: the stream goes on from where it was.

Source: Kodaira et al., "StreamDiffusion" (2023), §3.1 Stream Batch; here rows are scheduled, not whole frames.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Picture = NDArray[np.uint8]  # (H, W, 3) RGB

MAX_STEPS = 4


@dataclass(frozen=True, slots=True)
class Settings:
    """What a stream asks for. New ones take effect with the next picture that enters."""

    prompt: str = ""
    negative_prompt: str = ""
    blend_prompt: str = ""
    blend: float = 0.0  # share of blend_prompt, 0..1
    strength: float = 1.0  # 0 leaves the camera's picture, 1 takes the model's
    steps: int = 2
    guidance: float = 1.0  # 1 takes the prompt as it is; more goes further away from the negative
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    """A picture that has gone through all steps."""

    tag: Any  # what `rows` was given with the picture
    picture: Picture  # of the size that came in


S = TypeVar("S")
R = TypeVar("R")


class StreamModel(Protocol[S, R]):
    """Live picture-to-picture. Any thread may call it; a state belongs to one caller at a time."""

    name: str
    multiple: int  # sizes are multiples of it

    def init_state(self, size: tuple[int, int], settings: Settings) -> S:
        """A stream's state at (height, width) of the model."""
        ...

    def adjust(self, state: S, settings: Settings) -> None:
        """Other settings from the next picture on; pictures on their way keep theirs."""
        ...

    def reset(self, state: S) -> None:
        """Forget pictures on their way and those before: what comes next may be another scene."""
        ...

    def rows(self, state: S, picture: Picture | None, tag: Any = None, noise: float = 0.5) -> list[R]:
        """The next step of each picture on its way, the oldest first, and the first step of `picture`.

        noise: how far the first step may leave the camera's picture, 0..1; 0.5 is the model's own. Changes nothing.
        """
        ...

    def key(self, row: R) -> Hashable:
        """Rows with equal keys may share a forward."""
        ...

    def forward(self, rows: Sequence[R]) -> list[Any]:
        """One result a row. Changes neither rows nor states."""
        ...

    def commit(self, state: S, rows: Sequence[R], results: Sequence[Any]) -> list[Finished]:
        """Take over the results of the rows that `rows(state)` gave last; what is finished, the oldest first."""
        ...


def fitted(height: int, width: int, side: int, multiple: int) -> tuple[int, int]:
    """The model's (height, width) for a camera's picture: its shape, at most about side² pixels, multiples.

    Never enlarges; at least one `multiple` each way.
    """
    scale = min(1.0, side / max(1.0, (height * width) ** 0.5))

    def near(length: int) -> int:
        return max(multiple, round(length * scale / multiple) * multiple)

    return near(height), near(width)


def upload(picture: Picture, size: tuple[int, int], like: Tensor) -> Tensor:
    """uint8 (h, w, 3) → (3, H, W) in [-1, 1] with dtype and device of `like`; bytes travel, the device scales."""
    height, width = size
    if like.device.type == "cpu":
        if picture.shape[:2] != size:
            picture = np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        planes = torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)
        return planes.to(like.dtype).div_(127.5).sub_(1)
    planes = (
        torch.from_numpy(np.ascontiguousarray(picture)).to(like.device, non_blocking=True).permute(2, 0, 1)
    )
    scaled = planes[None].float()
    if picture.shape[:2] != size:
        scaled = F.interpolate(scaled, size, mode="bilinear", antialias=True, align_corners=False)
    return scaled[0].div_(127.5).sub_(1).to(like.dtype)


def download(image: Tensor, original: Picture, strength: float) -> Picture:
    """(3, H, W) in [-1, 1] → uint8 of the original's size, mixed with the original by 1 - `strength`."""
    height, width = original.shape[:2]
    levels = image.float().mul(127.5).add_(127.5).round_().clamp_(0, 255)
    if image.device.type != "cpu" and image.shape[1:] != (height, width):
        scaled = F.interpolate(levels[None], (height, width), mode="bilinear", align_corners=False)[0]
        levels = scaled.round_().clamp_(0, 255)
    picture = levels.to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
    if picture.shape[:2] != (height, width):
        picture = np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    if strength < 1:
        picture = np.asarray(cv2.addWeighted(picture, strength, original, 1 - strength, 0), np.uint8)
    return picture
