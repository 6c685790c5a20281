"""Causal training on time-aligned speech: hear up to a block's end, write the words that have ended, then stop.

Source: CarelessWhisper, arXiv 2508.12301, section 3.2 (cross-entropy on the tokens up to a random time). Several
cuts of one utterance share one encoder pass, because a block-causal encoder does not depend on the future.

The alignment is known, so the decoder may also be shown where to look (guided attention, after Tachibana et al.,
arXiv 1710.08969, with the true word ends in place of a diagonal): it learns sooner, and word times come out right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..causal_whisper import CausalWhisper
from ..whisper_dims import BlockPlan

SETTLE_S = 0.04  # a word counts as heard this long after its end
_SPOT = (-8, 3)  # frames around a word's end that are to tell the word
_QUIET = 0.2  # weight of frames that tell none: there are many more
_IGNORE = -100


@dataclass(frozen=True, slots=True)
class Aligned:
    """An utterance as the model takes it."""

    mel: Tensor  # (M, 2T)
    tokens: tuple[int, ...]
    ends: tuple[float, ...]  # s, when the word of each token ends
    phones: Tensor | None = None  # (T,) of each frame, where they are known


@dataclass(frozen=True, slots=True)
class Batch:
    """B utterances and C cuts of each."""

    mel: Tensor  # (B, M, 2T), padded
    cuts: Tensor  # (B·C,) frames heard
    inputs: Tensor  # (B·C, L) prefix, tokens, padding
    targets: Tensor  # (B·C, L) tokens, end; _IGNORE elsewhere
    spans: Tensor  # (B·C, L, 2) frames [begin, end) in which the position's token is heard; 0, 0 for none
    phones: Tensor  # (B, T) _IGNORE where they are not known
    spotted: Tensor  # (B, T) the token whose word ends there, −1 for none, _IGNORE in the padding

    def to(self, device: torch.device) -> Batch:
        return Batch(*(getattr(self, f.name).to(device) for f in fields(self)))


def collate(
    items: Sequence[Aligned],
    plan: BlockPlan,
    prefix: Sequence[int],
    eot: int,
    rng: np.random.Generator,
    cuts: int = 3,
) -> Batch:
    """Pad utterances and choose cuts on the block grid; the first cut is the end."""
    longest = max(item.mel.shape[1] for item in items) // 2 * 2
    mel = torch.stack([F.pad(i.mel, (0, longest - i.mel.shape[1]), value=float(i.mel.min())) for i in items])
    ends: list[int] = []
    rows: list[list[int]] = []
    places: list[list[tuple[int, int]]] = []
    for item in items:
        grid = [end for _, end in plan.bounds(item.mel.shape[1] // 2)]
        chosen = [grid[-1], *(int(x) for x in rng.choice(grid, cuts - 1))]
        for cut in chosen:
            heard = sum(end + SETTLE_S <= cut * 0.02 for end in item.ends)
            ends.append(cut)
            rows.append([*item.tokens[:heard], eot])
            edges = [0, *(min(cut, round(end * 50) + 1) for end in item.ends[:heard])]
            spans = [(max(0, a - 1), b) for a, b in pairwise(edges)]
            places.append([*spans, (min(edges[-1], cut - 1), cut)])  # the end is read off what follows
    width = max(map(len, rows)) + len(prefix) - 1
    inputs = torch.full((len(rows), width), eot)
    targets = torch.full((len(rows), width), _IGNORE)
    spots = torch.zeros(len(rows), width, 2, dtype=torch.long)
    for r, row in enumerate(rows):
        whole = torch.tensor([*prefix, *row])
        inputs[r, : len(whole) - 1] = whole[:-1]
        targets[r, len(prefix) - 1 : len(whole) - 1] = torch.tensor(row)
        spots[r, len(prefix) - 1 : len(whole) - 1] = torch.tensor(places[r])
    spotted = torch.full((len(items), longest // 2), _IGNORE)
    phones = torch.full((len(items), longest // 2), _IGNORE)
    for row, heard, item in zip(spotted, phones, items, strict=True):
        if item.phones is not None:
            heard[: len(item.phones)] = item.phones
        row[: item.mel.shape[1] // 2] = -1
        for token, end in zip(item.tokens, item.ends, strict=True):
            at = round(end * 50)
            row[max(0, at + _SPOT[0]) : min(item.mel.shape[1] // 2, at + _SPOT[1])] = token
    return Batch(mel, torch.tensor(ends), inputs, targets, spots, phones, spotted)


class Hints(nn.Module):
    """Heads that exist in training only: what the encoder can be told about each frame, it learns much sooner than
    from the words of whole utterances. Half-way up it tells the phone, at the top the word that ends there."""

    def __init__(self, width: int, phones: int, tokens: int) -> None:
        super().__init__()
        self.phone = nn.Linear(width, phones)
        self.word = nn.Linear(width, tokens + 1)  # the last: none

    def forward(self, layers: Sequence[Tensor], top: Tensor, batch: Batch) -> Tensor:
        """What each layer of the encoder gave, and the whole: (B, T, D) → loss."""
        phones = self.phone(layers[(len(layers) - 1) // 2]).float().flatten(0, 1)
        words = self.word(top).float().flatten(0, 1)
        none = words.shape[1] - 1
        wanted = batch.spotted.flatten()
        wanted = wanted.masked_fill(wanted == -1, none)
        cost = torch.ones(none + 1, device=words.device)
        cost[none] = _QUIET
        total = F.cross_entropy(words, wanted, cost, ignore_index=_IGNORE)
        if (batch.phones != _IGNORE).any():
            total = total + F.cross_entropy(phones, batch.phones.flatten(), ignore_index=_IGNORE)
        return total


def loss(
    model: CausalWhisper, batch: Batch, plan: BlockPlan, hints: Hints | None = None, guide: float = 0.0
) -> Tensor:
    """Cross-entropy of all cuts, and half the loss of `hints`; with `guide`, that much of the attention's loss in
    the upper half of the decoder."""
    layers: list[Tensor] = []
    audio = model.encoder(batch.mel, plan, layers)  # (B, T, D)
    repeat = len(batch.cuts) // len(batch.mel)
    mask = torch.arange(audio.shape[1], device=audio.device)[None] < batch.cuts[:, None]  # (B·C, T)
    mask = mask[:, None, None]
    weights: list[Tensor] | None = [] if guide else None
    logits = model.decoder(batch.inputs, audio.repeat_interleave(repeat, 0), mask, weights)
    total = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=_IGNORE)
    if weights is not None:
        upper = weights[len(weights) // 2 :]
        total = total + guide * sum(attention_loss(w, batch.spans) for w in upper) / len(upper)
    if hints is not None:
        total = total + 0.5 * hints(layers, audio, batch)
    return total


def attention_loss(weights: Tensor, spans: Tensor) -> Tensor:
    """(R, H, L, S) attention, (R, L, 2) frames where each position's token is heard → how little of it is there."""
    at = torch.arange(weights.shape[-1], device=weights.device)
    inside = (at >= spans[..., :1]) & (at < spans[..., 1:])  # (R, L, S)
    mass = (weights.float() * inside[:, None]).sum(-1)  # (R, H, L)
    given = spans[..., 1] > spans[..., 0]
    return -(mass + 1e-4).log().mean(1)[given].mean()
