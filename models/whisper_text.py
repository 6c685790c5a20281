"""The text of a causal Whisper after one more block: greedily, or as a beam, by the rule of local optimality.

Rows of many streams share every forward. A stream's `past` holds the keys and values of text that is not read again:
words given a while ago. What was read when they were given stays, as if no audio had come since; only what may still
change, and a few words before it, is read over the audio so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .attention_kv import KvBuffer
from .causal_whisper import CausalWhisper, TextRow
from .local_optimality import Hypothesis, agree, branch, checked, revise, settle
from .tokens import Tokens
from .whisper_ort import OrtWhisper


@dataclass(frozen=True, slots=True)
class Audio:
    """What a stream's text is read over: positions [begin, end) of its cross-attention, scratch included."""

    cross: list[KvBuffer]
    begin: int
    end: int


Found = tuple[list[Hypothesis], Tensor | None]
"""Beams, the best first, and the attention (K, n + 1, A) of its last n tokens and the end."""


class TextWriter:
    """Holds weights and bounds, no stream."""

    def __init__(
        self,
        model: CausalWhisper | OrtWhisper,
        tokens: Tokens,
        *,
        width: int,
        tail: int,
        new: int,
        stood: int,
    ) -> None:
        """new: most tokens a block adds. stood: reviews that make a token final."""
        self.model, self.tokens, self.width, self.tail, self.new = model, tokens, width, tail, new
        self.stood = stood
        self.room = model.dims.n_text_ctx - len(tokens.prefix)
        bias = torch.zeros(model.dims.n_vocab)
        bias[list(tokens.banned)] = -math.inf
        self._bias = bias.to(model.like.device)

    def write(
        self, beams: Sequence[list[Hypothesis]], pasts: Sequence[list[KvBuffer]], audios: Sequence[Audio]
    ) -> list[Found]:
        """Review the last tokens of each stream's text over its audio, and go on. Takes the hypotheses over."""
        if self.width == 1:
            return self._greedy([b[0] for b in beams], pasts, audios)
        return [self._beam(texts, audio) for texts, audio in zip(beams, audios, strict=True)]

    def _read(
        self, hyps: Sequence[Hypothesis], pasts: Sequence[list[KvBuffer]], audios: Sequence[Audio]
    ) -> tuple[list[TextRow], list[Tensor]]:
        """What `past` does not hold of prefix and text, in one forward → rows, and logits of the places under review."""
        rows: list[TextRow] = []
        for hyp, past, audio in zip(hyps, pasts, audios, strict=True):
            start = past[0].fill
            ids = [*self.tokens.prefix, *hyp.tokens][start:]
            rows.append(TextRow(ids, start, past, audio.cross, audio.end, audio.begin))
        hidden = self.model.decoder.step(rows, align=True)
        picks: list[int] = []
        sizes: list[int] = []
        at = 0
        for row, hyp in zip(rows, hyps, strict=True):
            at += len(row.tokens)
            sizes.append(checked(hyp, self.tail) + 1)
            picks.extend(range(at - sizes[-1], at))
        return rows, list(self._logits(hidden[picks]).split(sizes))

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.model.decoder.logits(hidden).add_(self._bias)

    def _greedy(
        self, hyps: Sequence[Hypothesis], pasts: Sequence[list[KvBuffer]], audios: Sequence[Audio]
    ) -> list[Found]:
        rows, logits = self._read(hyps, pasts, audios)
        following: dict[int, Tensor] = {}
        kept: list[list[Tensor]] = []
        firsts = [row.start for row in rows]
        prefix = len(self.tokens.prefix)
        for i, (hyp, row) in enumerate(zip(hyps, logits, strict=True)):
            following[i] = row[revise(hyp, row, tail=self.tail)]
            last = prefix + len(hyp.tokens) - firsts[i]
            kept.append([torch.cat([w[:, :last] for w in rows[i].attention])])
            rows[i].attention.clear()
        for _ in range(self.new):
            going: list[int] = []
            for i, row in following.items():
                token = int(row.argmax())
                if token != self.tokens.eot and len(hyps[i].tokens) < self.room:
                    hyps[i].add(token, float(row[token]))
                    going.append(i)
            if not going:
                break
            for i in going:
                rows[i].start = prefix + len(hyps[i].tokens) - 1
                rows[i].tokens = hyps[i].tokens[-1:]
            hidden = self.model.decoder.step([rows[i] for i in going], align=True)
            following = dict(zip(going, self._logits(hidden), strict=True))
            for i in going:
                kept[i].append(torch.cat(rows[i].attention))
                rows[i].attention.clear()
        out: list[Found] = []
        for hyp, first, parts in zip(hyps, firsts, kept, strict=True):
            settle(hyp, tail=self.tail, stood=self.stood)
            out.append(([hyp], torch.cat(parts, 1)[:, max(0, prefix - 1 - first) :].cpu()))
        return out

    def _beam(self, texts: list[Hypothesis], audio: Audio) -> Found:
        _, logits = self._whole(texts, audio)
        for hyp, row in zip(texts, logits, strict=True):
            revise(hyp, row, tail=self.tail, top=self.width)
            hyp.logp = 0.0
        live = list({tuple(h.tokens): h for h in texts}.values())
        self._weigh(live, audio)
        ended: list[Hypothesis] = []
        longest = max(len(h.tokens) for h in live)
        for _ in range(min(self.new, self.room - longest)):
            _, logits = self._whole(live, audio)
            ends = torch.stack([row[-1] for row in logits])
            more, done = branch(live, ends, self.width, self.tokens.eot)
            ended.extend(h for _, h in done)
            live = [h for _, h in more]
            if not live or len(ended) >= self.width:
                break
        final = sorted(ended or live, key=lambda h: -h.logp)[: self.width]
        final = agree(final, final[0], self.tail, self.stood)
        rows, _ = self._whole(final[:1], audio)
        skip = len(self.tokens.prefix) - 1
        return final, torch.cat(rows[0].attention)[:, skip:].cpu()

    def _whole(self, hyps: Sequence[Hypothesis], audio: Audio) -> tuple[list[TextRow], list[Tensor]]:
        """As `_read`, all of each: beams differ, and share no past."""
        longest = max(len(h.tokens) for h in hyps) + len(self.tokens.prefix)
        pasts = [self.model.decoder.start(longest) for _ in hyps]
        return self._read(hyps, pasts, [audio] * len(hyps))

    def _weigh(self, hyps: Sequence[Hypothesis], audio: Audio) -> None:
        """Set each hypothesis' log-probability of its tokens after the commit line, over all audio so far."""
        _, logits = self._whole(hyps, audio)
        for hyp, row in zip(hyps, logits, strict=True):
            tail = hyp.tokens[len(hyp.tokens) - (row.shape[0] - 1) :]
            logp = row.log_softmax(-1)
            hyp.logp = sum(float(logp[i, t]) for i, t in enumerate(tail))
