"""Doing less when the device is short, and more again later: a stage's declared ladder of rungs.

    degrade: [steps-1, res*0.75, fps*0.5, passthrough]

Level 0 is full quality; each level adds the next rung. Going down is quick, coming back is slow, and
slower each time it did not last: a device at its limit must not make the picture flicker.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from .clock import NEVER, SECOND

WINDOW = SECOND  # of outcomes that are looked at
MISS_SHARE = 0.05  # of the rows of a window; more is too many
MISSES = 3  # in a window, at least
BUSY = 0.95  # utilisation of the pool that is too much, whatever was missed
GRACE = SECOND // 2  # after a change: rows of the level before still end
SETTLE = SECOND  # after a change, before the next step down
HOLD = 5 * SECOND  # without trouble, before a step up
MAX_HOLD = 80 * SECOND
RELAPSE = 10 * SECOND  # a step down so soon after a step up doubles the hold

_RUNG = re.compile(r"(?:(steps)-(\d+))|(?:(res|fps)\*(0?\.\d+))|(passthrough)")


@dataclass(frozen=True, slots=True)
class Quality:
    """What a stage shall do now. It applies what fits it."""

    level: int = 0
    steps_less: int = 0
    scale: float = 1.0  # of width and height
    fps: float = 1.0  # share of the frames that get worked on
    passthrough: bool = False

    def load(self, forwards: int) -> float:
        """Device time against that of full quality with `forwards` per frame."""
        if self.passthrough:
            return 0.0
        steps = max(1, forwards - self.steps_less) / max(1, forwards)
        return steps * self.scale**2 * self.fps


def parse_ladder(rungs: Sequence[object]) -> tuple[Quality, ...]:
    """Level 0 and one level for each rung. Raises: ValueError naming the rung and what is accepted."""
    levels = [Quality()]
    for rung in rungs:
        match = _RUNG.fullmatch(rung) if isinstance(rung, str) else None
        if match is None:
            raise ValueError(f"unknown rung {rung!r}; accepted: steps-1, res*0.75, fps*0.5, passthrough")
        if levels[-1].passthrough:
            raise ValueError(f"rung {rung!r} comes after passthrough, which does no work at all")
        last = replace(levels[-1], level=len(levels))
        if match[1]:
            last = replace(last, steps_less=last.steps_less + int(match[2]))
        elif match[3] == "res":
            last = replace(last, scale=last.scale * float(match[4]))
        elif match[3] == "fps":
            last = replace(last, fps=last.fps * float(match[4]))
        else:
            last = replace(last, passthrough=True)
        levels.append(last)
    return tuple(levels)


class Ladder:
    """Where one node of one session stands. Policies take `now`; called from one thread."""

    def __init__(self, levels: Sequence[Quality]) -> None:
        self.levels = tuple(levels)
        self.level = 0
        self._ends: deque[tuple[int, bool]] = deque()  # (time, missed) of the window
        self._missed = 0
        self._quiet = 0  # since when there was no trouble
        self._changed = -NEVER
        self._went_up = -NEVER
        self._hold = HOLD

    @property
    def quality(self) -> Quality:
        return self.levels[self.level]

    def start_at(self, level: int, now: int) -> None:
        """Admission's answer: begin there."""
        self.level = min(level, len(self.levels) - 1)
        self._changed = self._quiet = now

    def ended(self, now: int, *, missed: bool) -> None:
        """A row of this node has ended."""
        if now - self._changed < GRACE:
            return
        self._ends.append((now, missed))
        self._missed += missed
        if missed:
            self._quiet = now
        self._prune(now)

    def update(self, now: int, busy: float, fits: Callable[[int], bool]) -> bool:
        """Step when it is time to. busy: the pool's utilisation; fits(level): is there room for it?

        True when the level changed.
        """
        self._prune(now)
        trouble = self._missed >= MISSES and self._missed > MISS_SHARE * len(self._ends)
        if trouble or (busy > BUSY and self._ends):
            self._quiet = now
            if self.level + 1 < len(self.levels) and now - self._changed >= SETTLE:
                relapse = now - self._went_up < RELAPSE
                self._hold = min(self._hold * 2, MAX_HOLD) if relapse else self._hold
                self._step(self.level + 1, now)
                return True
        elif self.level and now - max(self._quiet, self._changed) >= self._hold and fits(self.level - 1):
            self._step(self.level - 1, now)
            self._went_up = now
            return True
        elif not self.level and now - max(self._quiet, self._changed) >= MAX_HOLD:
            self._hold = HOLD
        return False

    def _prune(self, now: int) -> None:
        while self._ends and self._ends[0][0] <= now - WINDOW:
            self._missed -= self._ends.popleft()[1]

    def _step(self, level: int, now: int) -> None:
        self.level = level
        self._changed = now
        self._ends.clear()  # what ended on the old level says nothing about the new one
        self._missed = 0
