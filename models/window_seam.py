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


_LOOK = 100  # frames: how much further back a pause is looked for
_TAIL = 5  # frames of a word's end that a model does not hear as a word


def find_seam(
    words: Sequence[Said], now: int, plan: BlockPlan, keep: int, *, open_words: bool = False
) -> Seam:
    """Keep about `keep` of the `now` frames: one first block and whole chunks, so that the grid stays.

    words: those that have been given. open_words: others follow them, of which it is not known where they are.

    Cuts in a pause, as late in it as can be, where one is near; else within a word, which then stays in the text as its
    end does in the audio. All words that are not given yet stay in both, unless they would keep a quarter too much.
    """
    grid = [
        g for g in range(now - plan.first, plan.chunk - 1, -plan.chunk)
    ]  # falling; leaves room for a chunk
    last = now - keep
    if open_words and words and words[-1].end >= now // 4:
        last = min(last, words[-1].end)
    best = next((g for g in grid if g <= last), grid[-1] if grid else 0)
    near = [g for g in grid if best - min(_LOOK, keep // 2) <= g <= best]
    frame = next((g for g in near if not any(w.begin < g < w.end for w in words)), best)
    return Seam(frame, max((w.after for w in words if w.end <= frame + _TAIL), default=0))
