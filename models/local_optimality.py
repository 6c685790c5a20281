"""When a streaming decoder may keep its words: the local-optimality rule, greedy and as a beam.

Text is recomputed over the audio so far at every block. A token among the last k survives while it is still
the best choice at its place, or at least no less likely than it was; the first that is not takes all after it
along. Tokens before the last k are never looked at again: they are committed, and so are those that have stood so many
reviews: else the last words before a pause would stay open until somebody goes on.

Source: CarelessWhisper, arXiv 2508.12301, section 3.3 (k = 2, raw logits). The commit line is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

TAIL = 2  # k: tokens that may still be taken back
STOOD_S = 1.2  # reviews over so much more audio make a token final


def reviews(chunk_s: float) -> int:
    """How many reviews a token must stand, one each `chunk_s` of audio."""
    return math.ceil(STOOD_S / chunk_s)


@dataclass(slots=True)
class Hypothesis:
    """The text of one window: tokens, and the raw logit of each when it was last looked at."""

    tokens: list[int] = field(default_factory=list[int])
    scores: list[float] = field(default_factory=list[float])
    stood: list[int] = field(default_factory=list[int])  # reviews of each token
    committed: int = 0  # tokens that never change again
    logp: float = 0.0  # of the tokens since `committed`; orders beams

    def __post_init__(self) -> None:
        self.stood += [0] * (len(self.tokens) - len(self.stood))

    def fork(self) -> Hypothesis:
        return self.after(0)

    def add(self, token: int, score: float) -> None:
        self.tokens.append(token)
        self.scores.append(score)
        self.stood.append(0)

    def cut(self, index: int) -> None:
        """Take the tokens from `index` on back."""
        del self.tokens[index:], self.scores[index:], self.stood[index:]

    def after(self, count: int) -> Hypothesis:
        """A copy without its first `count` tokens, which have left the window."""
        return replace(
            self,
            tokens=self.tokens[count:],
            scores=self.scores[count:],
            stood=self.stood[count:],
            committed=self.committed - count,
        )


def revise(hyp: Hypothesis, logits: Tensor, *, tail: int = TAIL, top: int = 1) -> int:
    """Check the last tokens against new logits; drop what is no longer stable.

    logits: (m + 1, V) of the positions that predict the last m = min(tail, uncommitted) tokens and the next.
    `top`: a token is also stable among this many best. Returns the row of `logits` that predicts what follows.
    """
    m = logits.shape[0] - 1
    first = len(hyp.tokens) - m
    for row in range(m):
        index = first + row
        token = hyp.tokens[index]
        now = float(logits[row, token])
        rank = int((logits[row] > logits[row, token]).sum())
        if now < hyp.scores[index] and rank >= top:
            hyp.cut(index)
            return row
        hyp.scores[index] = now
        hyp.stood[index] += 1
    return m


def checked(hyp: Hypothesis, tail: int = TAIL) -> int:
    """How many last tokens `revise` looks at."""
    return min(tail, len(hyp.tokens) - hyp.committed)


def settle(hyp: Hypothesis, *, tail: int = TAIL, stood: int | None = None, everything: bool = False) -> int:
    """Move the commit line: all but the last `tail` tokens, and of those the ones that have `stood` so many reviews.
    Returns how many tokens are newly committed."""
    line = len(hyp.tokens) if everything else max(hyp.committed, len(hyp.tokens) - tail)
    while stood is not None and line < len(hyp.tokens) and hyp.stood[line] >= stood:
        line += 1
    new, hyp.committed = line - hyp.committed, line
    return new


def branch(
    beams: Sequence[Hypothesis], logits: Tensor, width: int, eot: int
) -> tuple[list[tuple[int, Hypothesis]], list[tuple[int, Hypothesis]]]:
    """One step of beam search. logits: (len(beams), V), each predicting what follows its beam.

    Returns (open, ended), each as (index of the beam it comes from, hypothesis); together at most `width`.
    """
    logp = logits.log_softmax(-1)
    total = logp + torch.tensor([[b.logp] for b in beams], device=logp.device)
    values, flat = total.flatten().topk(min(width, total.numel()))
    live: list[tuple[int, Hypothesis]] = []
    ended: list[tuple[int, Hypothesis]] = []
    size = logits.shape[1]
    for value, place in zip(values.tolist(), flat.tolist(), strict=True):
        parent, token = divmod(int(place), size)
        hyp = beams[parent].fork()
        hyp.logp = float(value)
        if token == eot:
            ended.append((parent, hyp))
            continue
        hyp.add(token, float(logits[parent, token]))
        live.append((parent, hyp))
    return live, ended


def agree(
    beams: Sequence[Hypothesis], best: Hypothesis, tail: int = TAIL, stood: int | None = None
) -> list[Hypothesis]:
    """Commit `best` but for its last tokens, and keep the beams that say the same up to there."""
    settle(best, tail=tail, stood=stood)
    line = best.committed
    kept = [b for b in beams if b is best or b.tokens[:line] == best.tokens[:line]]
    for b in kept:
        b.committed = line
    return kept
