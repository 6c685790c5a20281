"""Causal training on time-aligned speech: hear up to a block's end, write the words that have ended, then stop.

Source: CarelessWhisper, arXiv 2508.12301, section 3.2 (cross-entropy on the tokens up to a random time). Several
cuts of one utterance share one encoder pass, because a block-causal encoder does not depend on the future.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..causal_whisper import CausalWhisper
from ..whisper_dims import BlockPlan

SETTLE_S = 0.04  # a word counts as heard this long after its end
_IGNORE = -100


@dataclass(frozen=True, slots=True)
class Aligned:
    """An utterance as the model takes it."""

    mel: Tensor  # (M, 2T)
    tokens: tuple[int, ...]
    ends: tuple[float, ...]  # s, when the word of each token ends


@dataclass(frozen=True, slots=True)
class Batch:
    """B utterances and C cuts of each."""

    mel: Tensor  # (B, M, 2T), padded
    frames: Tensor  # (B,) true lengths
    cuts: Tensor  # (B·C,) frames heard
    inputs: Tensor  # (B·C, L) prefix, tokens, padding
    targets: Tensor  # (B·C, L) tokens, end; _IGNORE elsewhere
    labels: list[tuple[int, ...]]  # all tokens, for the auxiliary CTC


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
    for item in items:
        grid = [end for _, end in plan.bounds(item.mel.shape[1] // 2)]
        chosen = [grid[-1], *(int(x) for x in rng.choice(grid, cuts - 1))]
        for cut in chosen:
            heard = sum(end + SETTLE_S <= cut * 0.02 for end in item.ends)
            ends.append(cut)
            rows.append([*item.tokens[:heard], eot])
    width = max(map(len, rows)) + len(prefix) - 1
    inputs = torch.full((len(rows), width), eot)
    targets = torch.full((len(rows), width), _IGNORE)
    for r, row in enumerate(rows):
        whole = torch.tensor([*prefix, *row])
        inputs[r, : len(whole) - 1] = whole[:-1]
        targets[r, len(prefix) - 1 : len(whole) - 1] = torch.tensor(row)
    frames = torch.tensor([i.mel.shape[1] // 2 for i in items])
    return Batch(mel, frames, torch.tensor(ends), inputs, targets, [i.tokens for i in items])


def loss(model: CausalWhisper, batch: Batch, plan: BlockPlan, ctc: nn.Linear | None = None) -> Tensor:
    """Cross-entropy of all cuts; with `ctc`, half a CTC loss on the encoder, which finds the alignment sooner."""
    audio = model.encoder(batch.mel, plan)  # (B, T, D)
    repeat = len(batch.cuts) // len(batch.mel)
    mask = torch.arange(audio.shape[1])[None] < batch.cuts[:, None]  # (B·C, T)
    mask = mask.to(audio.device)[:, None, None]
    logits = model.decoder(batch.inputs, audio.repeat_interleave(repeat, 0), mask)
    total = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=_IGNORE)
    if ctc is not None:
        logp = ctc(audio).log_softmax(-1).transpose(0, 1)  # (T, B, V)
        flat = torch.tensor([t for label in batch.labels for t in label])
        sizes = torch.tensor([len(label) for label in batch.labels])
        blank = logp.shape[-1] - 1
        total = total + 0.5 * F.ctc_loss(logp, flat, batch.frames, sizes, blank=blank, zero_infinity=True)
    return total
