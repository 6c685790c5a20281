"""The text of a stream after one more block: greedily, or as a beam, by the rule of local optimality.

Rows of many streams share every forward. A stream's `past` holds the keys and values of text that is not read again:
words given a while ago. What was read when they were given stays, as if no audio had come since; only what may still
change, and a few words before it, is read over the audio so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from .attention_kv import KvBuffer
from .causal_whisper import TextRow
from .local_optimality import TAIL, Hypothesis, agree, branch, checked, reviews, revise, settle

AGAIN = 8  # tokens before the words not yet given: word times need them beside


@dataclass(frozen=True, slots=True)
class Audio:
    """What a stream's text is read over: positions [begin, end) of its cross-attention, scratch included."""

    cross: list[KvBuffer]
    begin: int
    end: int


Found = tuple[list[Hypothesis], Tensor | None]
"""Beams, the best first, and the attention (K, n + 1, A) of its last n tokens and the end."""


class TextDecoder(Protocol):
    """Weights that write, over rows of many streams."""

    def start(self, capacity: int) -> list[KvBuffer]: ...

    def step(self, rows: Sequence[TextRow], *, align: bool = False) -> Tensor: ...

    def logits(self, hidden: Tensor) -> Tensor: ...


class Marks(Protocol):
    """The special tokens of a vocabulary."""

    prefix: Sequence[int]  # forced before the text
    eot: int
    banned: Sequence[int]  # never said


class TextWriter:
    """Holds weights and bounds, no stream."""

    def __init__(
        self, decoder: TextDecoder, marks: Marks, *, context: int, chunk_s: float, tokens_per_s: float = 12.0,
        width: int = 1, tail: int = TAIL, again: int | None = AGAIN,
    ) -> None:  # fmt: skip
        """context: most tokens, prefix included. chunk_s: audio a block. tokens_per_s: people say at most 7 syllables; a
        decoder that runs away stops here. width: beams. tail: tokens that may change. again: how many final tokens are
        read over new audio; None: all, each block. Raises: ValueError."""
        if not 1 <= width <= 16:
            raise ValueError(f"{width} beams are not possible; there are 1 to 16")
        self.decoder, self.marks, self.width, self.tail = decoder, marks, width, tail
        self.new = 4 + math.ceil(tokens_per_s * chunk_s)  # most tokens a block adds
        self.room = context - len(marks.prefix)
        if self.new * 2 > self.room:
            raise ValueError(f"{self.new} tokens a block do not fit the text context of {context}")
        self._context, self._stood = context, reviews(chunk_s)
        self._again = again if width == 1 else None
        self._banned = torch.tensor(list(marks.banned), dtype=torch.long)

    def past(self) -> list[KvBuffer]:
        """Of a text that has not been read."""
        return self.decoder.start(self._context)

    def hold(self, past: list[KvBuffer], worded: int) -> None:
        """`worded` tokens have been given as words: all but the last of those are not read again."""
        if self._again is not None and worded > self._again:
            for kv in past:
                kv.fill = max(kv.fill, len(self.marks.prefix) + worded - self._again)

    def crowded(self, text: Hypothesis) -> bool:
        """Whether the next block may have no room."""
        return self.crowd(text) > 0

    def crowd(self, text: Hypothesis) -> int:
        """How many tokens must leave before the next block."""
        return len(text.tokens) + self.new - self.room

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
            ids = [*self.marks.prefix, *hyp.tokens][start:]
            rows.append(TextRow(ids, start, past, audio.cross, audio.end, audio.begin))
        hidden = self.decoder.step(rows, align=True)
        picks: list[int] = []
        sizes: list[int] = []
        at = 0
        for row, hyp in zip(rows, hyps, strict=True):
            at += len(row.tokens)
            sizes.append(checked(hyp, self.tail) + 1)
            picks.extend(range(at - sizes[-1], at))
        return rows, list(self._logits(hidden[picks]).split(sizes))

    def _logits(self, hidden: Tensor) -> Tensor:
        logits = self.decoder.logits(hidden)
        return (
            logits.index_fill_(1, self._banned.to(logits.device), -math.inf) if len(self._banned) else logits
        )

    def _greedy(
        self, hyps: Sequence[Hypothesis], pasts: Sequence[list[KvBuffer]], audios: Sequence[Audio]
    ) -> list[Found]:
        rows, logits = self._read(hyps, pasts, audios)
        following: dict[int, Tensor] = {}
        kept: list[list[Tensor]] = []
        firsts = [row.start for row in rows]
        prefix = len(self.marks.prefix)
        for i, (hyp, row) in enumerate(zip(hyps, logits, strict=True)):
            following[i] = row[revise(hyp, row, tail=self.tail)]
            last = prefix + len(hyp.tokens) - firsts[i]
            kept.append([torch.cat([w[:, :last] for w in rows[i].attention])])
            rows[i].attention.clear()
        for _ in range(self.new):
            going: list[int] = []
            for i, row in following.items():
                token = int(row.argmax())
                if token != self.marks.eot and len(hyps[i].tokens) < self.room:
                    hyps[i].add(token, float(row[token]))
                    going.append(i)
            if not going:
                break
            for i in going:
                rows[i].start = prefix + len(hyps[i].tokens) - 1
                rows[i].tokens = hyps[i].tokens[-1:]
            hidden = self.decoder.step([rows[i] for i in going], align=True)
            following = dict(zip(going, self._logits(hidden), strict=True))
            for i in going:
                kept[i].append(torch.cat(rows[i].attention))
                rows[i].attention.clear()
        out: list[Found] = []
        for hyp, first, parts in zip(hyps, firsts, kept, strict=True):
            settle(hyp, tail=self.tail, stood=self._stood)
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
            more, done = branch(live, ends, self.width, self.marks.eot)
            ended.extend(h for _, h in done)
            live = [h for _, h in more]
            if not live or len(ended) >= self.width:
                break
        final = sorted(ended or live, key=lambda h: -h.logp)[: self.width]
        final = agree(final, final[0], self.tail, self._stood)
        rows, _ = self._whole(final[:1], audio)
        skip = len(self.marks.prefix) - 1
        return final, torch.cat(rows[0].attention)[:, skip:].cpu()

    def _whole(self, hyps: Sequence[Hypothesis], audio: Audio) -> tuple[list[TextRow], list[Tensor]]:
        """As `_read`, all of each: beams differ, and share no past."""
        longest = max(len(h.tokens) for h in hyps) + len(self.marks.prefix)
        pasts = [self.decoder.start(longest) for _ in hyps]
        return self._read(hyps, pasts, [audio] * len(hyps))

    def _weigh(self, hyps: Sequence[Hypothesis], audio: Audio) -> None:
        """Set each hypothesis' log-probability of its tokens after the commit line, over all audio so far."""
        _, logits = self._whole(hyps, audio)
        for hyp, row in zip(hyps, logits, strict=True):
            tail = hyp.tokens[len(hyp.tokens) - (row.shape[0] - 1) :]
            logp = row.log_softmax(-1)
            hyp.logp = sum(float(logp[i, t]) for i, t in enumerate(tail))
