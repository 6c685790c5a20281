"""When words were said, from the decoder's cross-attention.

Row i of the matrix is the position that predicts token i; a last row, which predicts the end of text, takes the
silence after the last word. Each row gets a run of frames, in order; the cheapest cut is found exactly.

Source: Whisper's timing.py (normalise over tokens, median filter, align), with a monotonic alignment without
repeats in place of its DTW: one cumulative minimum a row instead of a loop over cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MEDIAN = 7  # frames
_PRESENT = 0.2  # of a row's peak: frames with less attention at a run's ends are silence


def attention_matrix(heads: Tensor, first: int = 0) -> NDArray[np.float64]:
    """(K, n, A) weights of K heads → rows from `first` on, (n − first, A): normalised over all tokens,
    smoothed over time, averaged."""
    w = heads
    if w.shape[1] > 1:
        std, mean = torch.std_mean(w, dim=1, keepdim=True, unbiased=False)
        w = (w[:, first:] - mean) / std.clamp(min=1e-9)
    if w.shape[2] > _MEDIAN:
        padded = torch.nn.functional.pad(w, (_MEDIAN // 2, _MEDIAN // 2), mode="reflect")
        w = padded.unfold(2, _MEDIAN, 1).median(-1).values
    return w.mean(0).double().numpy()


def monotonic(gain: NDArray[np.float64]) -> list[tuple[int, int]]:
    """(n, A), n ≤ A → for each row the frames [begin, end) of the in-order cut of all frames with most gain."""
    rows, frames = gain.shape
    if rows > frames:
        raise ValueError(f"{rows} tokens cannot have {frames} frames: each needs one")
    total = np.concatenate([np.zeros((rows, 1)), gain.cumsum(1)], 1)  # (n, A + 1)
    best = np.where(np.arange(frames + 1) == 0, 0.0, -np.inf)  # of ending the rows so far before frame t
    begins = np.zeros((rows, frames + 1), np.int64)
    for i in range(rows):
        offer = best - total[i]  # row i begins at s
        run = np.maximum.accumulate(offer)
        # where the running maximum was last raised: that is its begin
        raised = np.where(offer >= run, np.arange(frames + 1), 0)
        begin = np.maximum.accumulate(raised)
        best = np.full(frames + 1, -np.inf)
        best[1:] = run[:-1] + total[i, 1:]
        begins[i, 1:] = begin[:-1]
    out: list[tuple[int, int]] = []
    end = frames
    for i in range(rows - 1, -1, -1):
        begin = int(begins[i, end])
        out.append((begin, end))
        end = begin
    return out[::-1]


def token_times(heads: Tensor, first: int = 0) -> list[tuple[int, int]]:
    """(K, n + 1, A) attention of n tokens and the end row → frames [begin, end) of each token from `first` on.

    The frames of the tokens before must have been cut off: only what is new is aligned.
    """
    matrix = attention_matrix(heads, first)
    weight = heads[:, first:].mean(0).numpy()
    times: list[tuple[int, int]] = []
    for row, (begin, end) in enumerate(monotonic(matrix)[:-1]):
        seen = np.flatnonzero(weight[row, begin:end] >= _PRESENT * weight[row, begin:end].max())
        times.append((begin + int(seen[0]), begin + int(seen[-1]) + 1))
    return times


def even_shares(count: int, begin: int, end: int) -> list[tuple[int, int]]:
    """Even shares of [begin, end) for `count` tokens: times where no attention tells them."""
    edges = [begin + (end - begin) * i // max(1, count) for i in range(count + 1)]
    return [(edges[i], max(edges[i] + 1, edges[i + 1])) for i in range(count)]


def group_words(
    begins: Sequence[bool], times: Sequence[tuple[int, int]]
) -> list[tuple[int, int, tuple[int, int]]]:
    """Tokens → words: [(first token, token after the last, frames), …]; a word begins where `begins` says."""
    words: list[tuple[int, int, tuple[int, int]]] = []
    for i, (new, (a, b)) in enumerate(zip(begins, times, strict=True)):
        if new or not words:
            words.append((i, i + 1, (a, b)))
        else:
            first, _, (begin, _) = words[-1]
            words[-1] = (first, i + 1, (begin, b))
    return words
