"""Where a full window may be cut: between words that are final, on the grid of blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from .whisper_dims import BlockPlan


@dataclass(frozen=True, slots=True)
class Said:
    """A word that has been given: its last token + 1, and its frames in the window."""

    after: int
    begin: int
    end: int

    def moved(self, tokens: int, frames: int) -> Said:
        return replace(self, after=self.after - tokens, begin=self.begin - frames, end=self.end - frames)


@dataclass(frozen=True, slots=True)
class Seam:
    """Audio before `frame` and the first `tokens` leave the window."""

    frame: int
    tokens: int


def find_seam(words: Sequence[Said], now: int, plan: BlockPlan, keep: int) -> Seam:
    """Keep about `keep` of the `now` frames: one first block and whole chunks, so that the grid stays.

    Looks for the last word that ends before what is to be kept, and cuts in the pause after it where that
    reaches a grid point, else on the grid point before its end: then the audio holds the end of a word that
    has left, and the words after it, which are still in the text, follow. Without any word it is silence.
    """
    grid = list(range(now - plan.first, 0, -plan.chunk))  # falling
    target = now - keep
    index = max((i for i, w in enumerate(words) if w.end <= target), default=-1)
    if index < 0:
        index = 0 if words and words[0].end <= now - plan.first else -1
    if index < 0:
        return Seam(next((g for g in grid if g <= target), grid[-1] if grid else 0), 0)
    end = words[index].end
    following = words[index + 1].begin if index + 1 < len(words) else now
    pause = [g for g in grid if end <= g <= max(following, end)]
    if pause:  # silence need not stay: take the grid point nearest to what is to be kept
        frame = min(pause, key=lambda g: abs(g - target))
    else:
        frame = next((g for g in grid if g <= end), grid[-1] if grid else 0)
    return Seam(frame, words[index].after)
