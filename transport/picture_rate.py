"""What picture fits a bit rate: fewer pictures first, then smaller ones. Policy only: `now` is given, ns."""

from __future__ import annotations

from dataclasses import dataclass

from ..pipeline.clock import SECOND

BITS_PER_PIXEL = 0.014  # x264 veryfast and VP8 at its speed on faces: below, blocks
SLOWEST_FPS = 10.0  # fewer are no motion: the picture shrinks from here
SCALES = (1.0, 0.75, 0.5, 0.375)
LOWEST_FPS = 5.0
GROW_AFTER = 4 * SECOND  # of room for the next size, before it is taken: each change is a keyframe
GROW_MARGIN = 1.4


@dataclass(frozen=True, slots=True)
class Shape:
    width: int
    height: int
    fps: float  # at most


class PictureRate:
    """The shape for the target, with hysteresis in size."""

    def __init__(self) -> None:
        self._step = 0  # into SCALES
        self._room: int | None = None  # since when the next size would fit, ns

    def shape(self, target_bps: float, width: int, height: int, now: int, fps: float = 30.0) -> Shape:
        """width, height, fps: of the source."""

        def affordable(step: int) -> float:
            pixels = width * height * SCALES[step] ** 2
            return target_bps / (pixels * BITS_PER_PIXEL)

        slowest = min(SLOWEST_FPS, fps)
        while self._step + 1 < len(SCALES) and affordable(self._step) < slowest:
            self._step += 1
            self._room = None
        if self._step and affordable(self._step - 1) >= slowest * GROW_MARGIN:
            if self._room is None:
                self._room = now
            elif now - self._room >= GROW_AFTER:
                self._step -= 1
                self._room = None
        else:
            self._room = None
        scale = SCALES[self._step]
        return Shape(
            max(2, round(width * scale / 2) * 2),
            max(2, round(height * scale / 2) * 2),
            max(LOWEST_FPS, min(fps, affordable(self._step))),
        )


class FrameGate:
    """Lets through at most `fps` pictures a second, evenly."""

    def __init__(self) -> None:
        self._next = 0

    def __call__(self, now: int, fps: float) -> bool:
        period = round(SECOND / fps)
        if now < self._next - period // 4:
            return False
        self._next = max(self._next + period, now + period // 2)
        return True
