"""Is anybody speaking? By loudness over the noise floor, frame by frame of the log-mel that is there anyway.

It keeps a recogniser from running on silence and finds the ends of turns where no voice detector is connected.
It takes any loud sound for speech: a detector that knows voices is better where there is one.
"""

from __future__ import annotations

from dataclasses import dataclass

_OVER = 0.7  # decades (7 dB) above the floor count as active
_RISE = 0.001  # decades a frame: the floor follows rising noise by 1 decade in 10 s
_START = -5.0  # log10 power; a floor that is too high at first would miss the first word
_LEAST = -6.0  # a floor from digital silence would take the noise that follows for speech
_WINDOW, _ACTIVE = 10, 6  # so many of the last frames must be active to begin


@dataclass(slots=True)
class SpeechGate:
    """State of one stream; times are mel frames of 10 ms."""

    hang: int  # quiet frames that end a turn
    speaking: bool = False
    floor: float = _START
    recent: int = 0  # the last _WINDOW frames, one bit each
    quiet: int = 0  # frames since the last active one

    def step(self, level: float) -> bool:
        """Mean log10 power of one frame → whether somebody speaks."""
        self.floor = max(_LEAST, min(self.floor + _RISE, level))
        active = level > self.floor + _OVER
        self.recent = (self.recent << 1 | active) & ((1 << _WINDOW) - 1)
        self.quiet = 0 if active else self.quiet + 1
        if not self.speaking:
            self.speaking = self.recent.bit_count() >= _ACTIVE
        elif self.quiet >= self.hang:
            self.rest()
        return self.speaking

    def rest(self) -> None:
        """The turn is over, for whatever reason."""
        self.speaking, self.recent, self.quiet = False, 0, 0
