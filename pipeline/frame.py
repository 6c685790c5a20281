"""What flows along the edges: immutable frames that carry capture time, deadline and epoch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .clock import NEVER, SECOND

PixelFormat: TypeAlias = Literal["rgb24", "i420"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One unit of media or meaning.

    Times are ns on the session's clock; a derived frame keeps the pts and deadline of its cause.
    """

    pts: int  # capture time
    deadline: int = NEVER  # a late frame dies at the edge, before any model runs
    epoch: int = 0  # of its scope; an older one dies at every edge

    @property
    def duration(self) -> int:
        """Length in ns of media; 0 for a moment."""
        return 0

    @property
    def nbytes(self) -> int:
        """Bytes of payload, for byte-bounded edges."""
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class AudioFrame(Frame):
    """Interleaved-by-row PCM. `pcm`: int16 (T, C); the same array may be seen by many: never write."""

    pcm: NDArray[np.int16]  # (T, C)
    rate_hz: int
    text: str = ""  # the words of generated speech that end in here, for "what was played"
    utterance: int = 0  # the reply that it speaks

    @property
    def duration(self) -> int:
        return len(self.pcm) * SECOND // self.rate_hz

    @property
    def nbytes(self) -> int:
        return self.pcm.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoFrame(Frame):
    """One picture. `image`: uint8, (H, W, 3) for rgb24 or (H·3/2, W) for i420 (even sizes only).

    sharp: the box (x, y, width, height in shares of the picture) that its sender sent in full, when around it there is only
    a coarse context; None: all of it is as it was sent.
    """

    image: NDArray[np.uint8]
    format: PixelFormat = "rgb24"
    sharp: tuple[float, float, float, float] | None = None

    @property
    def width(self) -> int:
        return int(self.image.shape[1])

    @property
    def height(self) -> int:
        rows = int(self.image.shape[0])
        return rows if self.format == "rgb24" else rows * 2 // 3

    @property
    def nbytes(self) -> int:
        return self.image.nbytes


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFrame(Frame):
    """Text: a caption, a chat line, or one delta of a reply.

    Captions: a partial replaces the one before; a commit is final. Replies: deltas of one
    `utterance`, the last with `end`.
    """

    text: str
    until: int = 0  # end of the speech that the text stands for, ns; 0 when not speech
    utterance: int = 0  # which reply or which spoken turn
    end: bool = True

    @property
    def duration(self) -> int:
        return max(0, self.until - self.pts)

    @property
    def nbytes(self) -> int:
        return len(self.text)


_EMPTY: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFrame(Frame):
    """Something happened: `name` in snake_case, `fields` JSON-able."""

    name: str
    fields: Mapping[str, Any] = field(default_factory=lambda: _EMPTY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap(Frame):
    """Frames lost in [pts, until]: joins do not wait for them, stream state may reset.

    It reaches `Stage.gap`, never `Stage.process`.
    """

    until: int
    count: int = 1
    reason: str = "dropped"

    @property
    def duration(self) -> int:
        return max(0, self.until - self.pts)


KINDS: Mapping[type[Frame], str] = {
    Frame: "anything",
    AudioFrame: "audio",
    VideoFrame: "video",
    TokenFrame: "text",
    EventFrame: "events",
}


def kind_of(cls: type[Frame]) -> str:
    """What such frames carry, in a word for people; special ones by their own name: `WorldPicture` is "world picture"."""
    return KINDS.get(cls) or re.sub(r"(?<=[a-z])(?=[A-Z])", " ", cls.__name__).lower()
