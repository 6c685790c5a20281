"""When to speak unasked. A decider reads one number per picture and never stutters.

P(silence) comes from the model's own head at the picture's last token, where it was taught to be silent; else a
standing question is asked at each picture, and P(silence) is that of "no". Rules on measured events: standing.py.

Source: VideoLLM-online (2406.11816), section 3.3: speak when P(silence) < θ.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


class Decider(Protocol):
    """One per session: it remembers."""

    def decide(self, p_silence: float, now: int) -> bool:
        """Speak now? `p_silence` of this picture, `now` in ns."""
        ...


@dataclass(slots=True)
class Threshold:
    """Speaks when P(silence) falls under `theta`; again only after it has been over `theta + hysteresis`, and
    not before `cooldown` ns have passed. θ = .725 is VideoLLM-online's."""

    theta: float = 0.725
    hysteresis: float = 0.1
    cooldown: int = 2_000_000_000
    armed: bool = True
    spoke: int | None = None

    def __post_init__(self) -> None:
        if not (0 < self.theta < 1 and 0 <= self.hysteresis < 1 and self.cooldown >= 0):
            raise ValueError(
                f"theta {self.theta}, hysteresis {self.hysteresis}: both are shares of 1, theta not 0"
            )

    def decide(self, p_silence: float, now: int) -> bool:
        if p_silence >= min(1.0, self.theta + self.hysteresis):
            self.armed = True
        if not self.armed or p_silence >= self.theta:
            return False
        if self.spoke is not None and now - self.spoke < self.cooldown:
            return False
        self.armed, self.spoke = False, now
        return True


@dataclass(frozen=True, slots=True)
class Each:
    """Speaks at every picture under `theta`: for a model that was taught to speak once for each happening."""

    theta: float = 0.5

    def decide(self, p_silence: float, now: int) -> bool:
        return p_silence < self.theta


def p_silence(logits: Tensor, silence: int) -> Tensor:
    """Word logits (..., V) at the last token → P(silence) (...)."""
    return logits.float().softmax(-1)[..., silence]
