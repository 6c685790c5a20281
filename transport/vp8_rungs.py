"""VP8 through FFmpeg, for regions of interest and for where libvpx cannot be reached by itself (`vpx.library`): its rate
moves in steps.

libvpx takes no live rate from FFmpeg: another rung is another encoder, which begins with a keyframe, so rungs are kept.
"""
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from typing import Any

import av

from ..pipeline.clock import SECOND
from .ffmpeg_encoder import FIRST_FPS, encode_with, open_context

RUNGS = tuple(round(50_000 * 1.4**k) for k in range(13))  # bits/s, to 2.8 M
REBUILD = 2 * SECOND  # at most this often, as a rebuild is a keyframe ...
HURRY = SECOND // 2  # ... unless the rung is more than twice too high
MARGIN = 1.15  # above a rung, before it is taken: a rate that swings around one would rebuild for ever


class RungVp8Encoder:
    """Its rate is the rung below `bitrate_bps`."""

    def __init__(self, bitrate_bps: int, cpu_used: int = -8, qmax: int | None = None) -> None:
        """qmax: the coarsest quantiser, where the rate does not choose it."""
        self.bitrate_bps = bitrate_bps
        self.hurried = False  # its rate control bounds each keyframe
        self.cpu_used = cpu_used
        self.qmax = qmax
        self.opened = 0  # times
        self._context: Any = None
        self._rung = 0
        self._built = 0

    def encode(self, picture: av.VideoFrame, keyframe: bool, now: int) -> tuple[bytes, bool]:
        context = self._context
        if (
            context is None
            or (context.width, context.height) != (picture.width, picture.height)
            or self._moves(now)
        ):
            context = self._open(picture, now)
        return encode_with(context, picture, keyframe)

    def _fitting(self, margin: float = 1.0) -> int:
        return max((r for r in RUNGS if r * margin <= self.bitrate_bps), default=RUNGS[0])

    def _moves(self, now: int) -> bool:
        age = now - self._built
        if self._fitting(MARGIN) > self._rung:
            return age >= REBUILD
        return self._fitting() < self._rung and (
            age >= REBUILD or (age >= HURRY and 2 * self.bitrate_bps < self._rung)
        )

    def _open(self, picture: av.VideoFrame, now: int) -> Any:
        self.opened += 1
        self._built = now
        risen = self._fitting(MARGIN)
        rate = self._rung = risen if 0 < self._rung < risen else self._fitting()
        context = open_context(
            "libvpx",
            picture,
            rate,
            FIRST_FPS,  # libvpx goes by the timestamps
            deadline="realtime",
            minrate=rate,  # all three alike: constant rate
            maxrate=rate,
            bufsize=rate,  # a second: less, and the first pictures of a flat scene are badly coloured
            **{
                "cpu-used": self.cpu_used,
                "lag-in-frames": 0,
                "undershoot-pct": 100,
                "overshoot-pct": 15,
                "static-thresh": 1,
            },
        )
        # a coarser one makes the first picture of a flat scene 15 levels off in colour; the least rates need it
        context.qmin, context.qmax = 4, self.qmax or (44 if rate >= 300_000 else 56)
        self._context = context
        return context
