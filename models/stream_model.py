"""What all live picture-to-picture models promise: weights without state, one explicit state per stream.

A picture's way through a model takes several denoising steps; each is a row. `enter` begins the way and `row` says what
its next step needs, `forward` runs rows of any streams, pictures and steps together and changes nothing, and `advance`
takes a result over: the picture is one step further, or finished. A forward that failed or came too late leaves no
trace: the stream goes on from where it was. Rows of one step of a stream must advance in the order of their pictures.

    entry ─ enter ─► flight ─ row ─► forward ─ advance ─► flight … ─► [Finished]

Source: Kodaira et al., "StreamDiffusion" (2023), §3.1 Stream Batch; here rows are scheduled, not whole frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, Protocol, TypeVar

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .static_rows import SIZES

Picture = NDArray[np.uint8]  # (H, W, 3) RGB; going in also (H·3/2, W) I420, BT.601 limited range
Switch = Literal["keep", "recache", "reset"]

MAX_STEPS = 4
STEADY = (
    0.6  # flickers less than the teachers, standing and panning, at no loss of likeness (benchmarks/LOG.md)
)


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
    steady: float = STEADY  # share of the picture before where nothing but the camera moved, 0..1
    switch: Switch = "keep"  # what a new prompt does to what models with a memory remember


@dataclass(frozen=True, slots=True)
class Finished:
    """A picture that has gone through all steps."""

    tag: Any  # what `rows` was given with the picture
    picture: Picture  # of the size that came in


@dataclass(frozen=True, slots=True)
class Entry:
    """Pictures that begin their way together: one, or a chunk where a model's latents span several."""

    pictures: tuple[Picture, ...]  # all of one size
    tags: tuple[Any, ...]  # of each; fewer than pictures where the last ones only fill the chunk up
    noise: float = 0.5  # how far the first step may leave the camera's picture, 0..1; 0.5 is the model's own


S = TypeVar("S")  # a stream's state
Flying = TypeVar("Flying")  # a picture, or chunk, on its way
R = TypeVar("R")  # one step of it


class StreamModel(Protocol[S, Flying, R]):
    """Live picture-to-picture. Any thread may call it; `advance`, `adjust` and `reset` of a state not two at once."""

    name: str
    multiple: int  # sizes are multiples of it

    @property
    def captures(self) -> bool:
        """Whether the first forwards of a size take seconds or minutes: `warm` runs them beforehand."""
        ...

    def init_state(self, size: tuple[int, int], settings: Settings) -> S:
        """A stream's state at (height, width) of the model."""
        ...

    def adjust(self, state: S, settings: Settings) -> None:
        """Other settings from the next picture on; pictures on their way keep theirs."""
        ...

    def reset(self, state: S) -> None:
        """Forget pictures before: what comes next may be another scene. None may be on its way."""
        ...

    def warm(self, size: tuple[int, int], settings: Settings, most: int) -> S:
        """Run all that streams of a size will, up to `most` rows at a time; a stream that has been through it, and forgot.

        Blocks: for a second, or minutes where something is compiled.
        """
        ...

    def chunk(self, entered: int) -> int:
        """How many pictures the next entry takes, when `entered` entries came before."""
        ...

    def enter(self, state: S, entry: Entry) -> Flying:
        """New pictures before their first step. Changes nothing."""
        ...

    def row(self, state: S, flight: Flying) -> R:
        """What the next step needs, as the stream stands now. Changes nothing."""
        ...

    def forward(self, rows: Sequence[R]) -> list[Any]:
        """One result a row. Changes neither rows nor states."""
        ...

    def advance(self, state: S, row: R, result: Any) -> Flying | list[Finished]:
        """Take a result over; the same pictures one step further, or finished."""
        ...


class Ticks(Generic[S, Flying, R]):
    """Stream Batch without a pool: each tick runs the next step of all pictures on their way in one forward.

    For files, tests, measurements and to warm up; the state must have a list `flights`, the oldest first.
    """

    @property
    def captures(self) -> bool:
        return False

    def fill(self, settings: Settings) -> int:
        """Entries until a stream's memory is full and all its steps are at work."""
        return settings.steps + 1

    def capture(self, state: Any, most: int) -> None:
        """Compile and capture what runs at fixed numbers of rows."""

    def check(self: Any, size: tuple[int, int]) -> None:
        """(H, W). Raises: ValueError."""
        height, width = size
        if height % self.multiple or width % self.multiple or min(size) < self.multiple:
            raise ValueError(f"size {width}x{height}: {self.name} takes multiples of {self.multiple}")

    def warm(self: Any, size: tuple[int, int], settings: Settings, most: int) -> Any:
        """See StreamModel."""
        state = self.init_state(size, settings)
        black = np.zeros((*size, 3), np.uint8)
        for entered in range(self.fill(settings)):
            entry = Entry((black,) * self.chunk(entered), (None,))
            rows = [self.row(state, f) for f in (*state.flights, self.enter(state, entry))]
            for count in [n for n in SIZES if n <= most] if self.captures else []:
                self.forward([rows[i % len(rows)] for i in range(count)])
            self.commit(state, rows, self.forward(rows))
        self.capture(state, most)
        self.reset(state)
        return state

    def rows(self: Any, state: Any, picture: Picture | None, tag: Any = None, noise: float = 0.5) -> list[R]:
        """The next step of each picture on its way, and the first step of `picture`. Changes nothing."""
        flights = list(state.flights)
        if picture is not None:
            flights.append(self.enter(state, Entry((picture,), (tag,), noise)))
        return [self.row(state, f) for f in flights]

    def commit(self: Any, state: Any, rows: Sequence[R], results: Sequence[Any]) -> list[Finished]:
        """Take over the results of the rows that `rows(state)` gave last; what is finished, the oldest first."""
        going: list[Flying] = []
        done: list[Finished] = []
        for row, result in zip(rows, results, strict=True):
            after = self.advance(state, row, result)
            if isinstance(after, list):
                done += after
                going.clear()  # older ones with more steps would come after a newer: out of date
            else:
                going.append(after)
        state.flights = going
        return done


def fitted(height: int, width: int, side: int, multiple: int) -> tuple[int, int]:
    """The model's (height, width) for a camera's picture: its shape, at most about side² pixels, multiples.

    Never enlarges; at least one `multiple` each way.
    """
    scale = min(1.0, side / max(1.0, (height * width) ** 0.5))

    def near(length: int) -> int:
        return max(multiple, round(length * scale / multiple) * multiple)

    return near(height), near(width)


def shape_of(picture: Picture) -> tuple[int, int]:
    """(height, width) of a picture, RGB or I420."""
    return (picture.shape[0] * 2 // 3, picture.shape[1]) if picture.ndim == 2 else picture.shape[:2]


def rgb_of(picture: Picture) -> Picture:
    """The picture as RGB: itself, or converted."""
    if picture.ndim == 3:
        return picture
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_YUV2RGB_I420), np.uint8)


def shrunk(picture: Picture, size: tuple[int, int]) -> Picture:
    """(H, W) or (H, W, C) uint8 → the same at `size`, (height, width), without aliasing.

    By halves first, which is five times as fast as areas of a broken number of pixels.
    """
    height, width = size
    while picture.shape[0] >= 2 * height and picture.shape[1] >= 2 * width:
        half = picture.shape[1] // 2, picture.shape[0] // 2
        picture = np.asarray(cv2.resize(picture, half, interpolation=cv2.INTER_AREA), np.uint8)
    if picture.shape[:2] == size:
        return picture
    little = picture.shape[0] <= 1.2 * height and picture.shape[1] <= 1.2 * width
    how = cv2.INTER_LINEAR if little else cv2.INTER_AREA
    return np.asarray(cv2.resize(picture, (width, height), interpolation=how), np.uint8)


def upload(picture: Picture, size: tuple[int, int], like: Tensor) -> Tensor:
    """uint8 picture → (3, H, W) in [-1, 1] with dtype and device of `like`.

    To a GPU the bytes travel as they are, 1.5 a pixel in I420; colour, size and range are its work.
    """
    if like.device.type == "cpu":
        planes = torch.from_numpy(np.ascontiguousarray(shrunk(rgb_of(picture), size))).permute(2, 0, 1)
        return planes.to(like.dtype).div_(127.5).sub_(1)
    sent = torch.from_numpy(np.ascontiguousarray(picture)).to(like.device, non_blocking=True)
    levels = sent.permute(2, 0, 1).float() if picture.ndim == 3 else rgb_levels(sent)
    if levels.shape[1:] != size:
        levels = F.interpolate(levels[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
    return levels.div(127.5).sub_(1).to(like.dtype)


def rgb_levels(i420: Tensor) -> Tensor:
    """uint8 I420 (H·3/2, W) → RGB levels 0..255, float (3, H, W). Source: ITU-R BT.601-7, limited range."""
    height, width = i420.shape[0] * 2 // 3, i420.shape[1]
    flat = i420.reshape(-1).float()
    y = (flat[: height * width].view(height, width) - 16) * (255 / 219)
    chroma = flat[height * width :].view(2, 1, height // 2, width // 2) - 128
    u, v = F.interpolate(chroma, scale_factor=2.0, mode="nearest")[:, 0]
    rgb = torch.stack([y + 1.596 * v, y - 0.392 * u - 0.813 * v, y + 2.017 * u])
    return rgb.clamp_(0, 255)


def download(image: Tensor, original: Picture, strength: float) -> Picture:
    """(3, H, W) in [-1, 1] → uint8 RGB of the original's size, mixed with the original by 1 - `strength`."""
    height, width = shape_of(original)
    levels = image.float().mul(127.5).add_(127.5).round_().clamp_(0, 255)
    if image.device.type != "cpu" and image.shape[1:] != (height, width):
        scaled = F.interpolate(levels[None], (height, width), mode="bilinear", align_corners=False)[0]
        levels = scaled.round_().clamp_(0, 255)
    picture = levels.to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
    if picture.shape[:2] != (height, width):
        picture = np.asarray(cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    if strength < 1:
        mixed = cv2.addWeighted(picture, strength, rgb_of(original), 1 - strength, 0)
        picture = np.asarray(mixed, np.uint8)
    return picture
