"""Streams through a causal Whisper: one block of audio in, words out, committed words never change.

`WhisperStreamer` works on rows, as pools do: rows with equal `batch_key` may share a `forward`, which changes
nothing of a stream's state but scratch; `commit` takes a result over. A dropped row leaves no trace.

When the window is full it slides: words said before a seam leave, audio after the seam is encoded again as a
new window, and the words after the seam stay as they are. The seam is the end of a committed word, so no word
is cut and none is lost.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .attention_kv import KvBuffer
from .causal_whisper import CausalWhisper, EncoderState, TextRow
from .local_optimality import TAIL, Hypothesis, agree, branch, checked, revise, settle
from .log_mel import LogMel
from .stream_words import StreamWord, give_words
from .tokens import Tokens
from .whisper_dims import BlockPlan
from .whisper_ort import OrtWhisper
from .window_seam import Said, Seam, find_seam

FRAME_S = 0.02
_KEEP = 0.4  # of the window stays when it slides


@dataclass(slots=True)
class WhisperStream:
    """All that one stream is: restore it anywhere the weights are."""

    encoder: EncoderState
    cross: list[KvBuffer]
    beams: list[Hypothesis]
    history: Tensor | None  # (M, 2·n_audio_ctx) mel of this window, for the slide; None with a left window
    origin: int = 0  # frames of the stream before this window
    worded: int = 0  # tokens of the window that have been given as words
    said: list[Said] = field(default_factory=list[Said])  # words of the window that have been given
    last_end: int = 0  # end of the last word given, in frames since the stream began

    @property
    def text(self) -> Hypothesis:
        return self.beams[0]


@dataclass(frozen=True, slots=True)
class Slid:
    """A window that begins at `seam` of the one before."""

    encoder: EncoderState
    cross: list[KvBuffer]
    seam: Seam


@dataclass(frozen=True, slots=True)
class Heard:
    """What a forward found for one stream; `slid` replaces the window where it had to slide."""

    frames: int
    beams: list[Hypothesis]
    attention: Tensor | None = None  # (K, n + 1, A) of the best beam
    dropped: int = 0  # tokens that left the window before this block
    slid: Slid | None = None


class WhisperStreamer:
    """The row-shaped face of a `CausalWhisper`. Holds no stream."""

    def __init__(
        self,
        model: CausalWhisper | OrtWhisper,
        tokens: Tokens,
        plan: BlockPlan,
        *,
        beams: int = 1,
        tail: int = TAIL,
        tokens_per_s: float = 12.0,
    ) -> None:
        if plan.left is None and plan.first + plan.chunk > model.dims.n_audio_ctx * _KEEP:
            raise ValueError(
                f"a chunk of {plan.chunk_ms} ms is too long for a window of {model.dims.n_audio_ctx * 20} ms"
            )
        if not 1 <= beams <= 16:
            raise ValueError(f"{beams} beams are not possible; there are 1 to 16")
        self.model, self.tokens, self.plan = model, tokens, plan
        self.front = LogMel(model.dims.n_mels)
        self.width, self.tail = beams, tail
        # people say at most 7 syllables a second; a decoder that runs away stops here
        self._new = 4 + math.ceil(tokens_per_s * plan.chunk * FRAME_S)
        self._room = model.dims.n_text_ctx - len(tokens.prefix)
        if self._new * 2 > self._room:
            raise ValueError(
                f"{self._new} tokens a block do not fit the text context of {model.dims.n_text_ctx}"
            )
        bias = torch.zeros(model.dims.n_vocab)
        bias[list(tokens.banned)] = -math.inf
        self._bias = bias.to(model.like.device)

    # ------------------------------------------------------------ streams

    def start(self, origin: int = 0) -> WhisperStream:
        """A stream whose next mel frame is the first of a window."""
        dims = self.model.dims
        encoder = self.model.encoder.start(self.plan)
        capacity = encoder.layers[0].capacity
        history = None if self.plan.left else self.model.like.new_zeros(dims.n_mels, 2 * dims.n_audio_ctx)
        cross = self.model.decoder.start(capacity)
        return WhisperStream(encoder, cross, [Hypothesis()], history, origin, last_end=origin)

    @property
    def chunk_ms(self) -> int:
        """Audio a block."""
        return self.plan.chunk_ms

    def push(self, stream: WhisperStream, mel: Tensor) -> None:
        """Take (M, T) frames of 10 ms."""
        stream.encoder.queue.push(mel)

    def fill(self, stream: WhisperStream) -> bool:
        """Fill what waits up to a block with its quietest value. False when nothing waits."""
        queue = stream.encoder.queue
        missing = 2 + 2 * self.plan.block(stream.encoder.at) + self.plan.lookahead - queue.frames.shape[1]
        if queue.frames.shape[1] <= 2:
            return False
        queue.push(torch.full((queue.frames.shape[0], missing), float(queue.frames[:, 2:].min())))
        return True

    def ready(self, stream: WhisperStream) -> bool:
        """Whether a whole block waits."""
        n = self.plan.block(stream.encoder.at)
        return stream.encoder.queue.available(self.plan.lookahead) >= n

    def full(self, stream: WhisperStream) -> bool:
        """Whether the window must slide before the next block."""
        crowded = len(stream.text.tokens) + self._new > self._room
        if self.plan.left is not None:
            return crowded and self._outside(stream) > 0
        return crowded or stream.encoder.at + self.plan.chunk > self.model.dims.n_audio_ctx

    def batch_key(self, stream: WhisperStream) -> Hashable:
        """Streams with equal keys can share a forward: they hear equally many frames."""
        return (self.plan.block(stream.encoder.at), self.full(stream) and self.plan.left is None)

    # ------------------------------------------------------------ one step of many streams

    @torch.no_grad()
    def forward(self, streams: Sequence[WhisperStream]) -> list[Heard]:
        """The next block of each stream. Streams must have equal batch keys."""
        n = self.plan.block(streams[0].encoder.at)
        slid: list[Slid | None] = [None] * len(streams)
        dropped = [0] * len(streams)
        for i, stream in enumerate(streams):
            if not self.full(stream):
                continue
            if self.plan.left is None:
                slid[i] = new = self._slide(stream)
                dropped[i] = new.seam.tokens
            else:
                dropped[i] = self._outside(stream)
        encoders = [s.encoder if new is None else new.encoder for s, new in zip(streams, slid, strict=True)]
        crosses = [s.cross if new is None else new.cross for s, new in zip(streams, slid, strict=True)]
        beams = [[b.after(gone) for b in s.beams] for s, gone in zip(streams, dropped, strict=True)]
        audio = self.model.encoder.step(encoders, n, self.plan)
        self.model.decoder.hear(audio, crosses)
        search = self._greedy if self.width == 1 else self._beam
        found = search(beams, crosses, n)
        return [
            Heard(n, texts, attention, gone, new)
            for (texts, attention), gone, new in zip(found, dropped, slid, strict=True)
        ]

    def commit(self, stream: WhisperStream, heard: Heard, *, everything: bool = False) -> list[StreamWord]:
        """Take a result over; returns the words that are now final (with `everything`: all there are)."""
        seam = 0
        if heard.slid is not None:
            seam, queue = heard.slid.seam.frame, stream.encoder.queue
            stream.encoder, stream.cross = heard.slid.encoder, heard.slid.cross
            stream.encoder.queue.frames = queue.frames  # what came since the forward is in the old queue only
            stream.origin += seam
            if stream.history is not None:
                kept = stream.encoder.at * 2
                stream.history[:, :kept] = stream.history[:, 2 * seam : 2 * seam + kept].clone()
        stream.worded -= heard.dropped
        stream.said = [w.moved(heard.dropped, seam) for w in stream.said if w.after > heard.dropped]
        if stream.history is not None:
            at, used = 2 * stream.encoder.at, 2 * heard.frames
            stream.history[:, at : at + used] = stream.encoder.queue.frames[:, 2 : 2 + used]
        self.model.encoder.commit(stream.encoder, heard.frames, self.plan)
        for kv in stream.cross:
            kv.advance(heard.frames)
            if self.plan.left is not None and kv.fill + self.plan.first > kv.capacity:
                kv.shift(self.plan.left)
        stream.beams = heard.beams
        if everything:
            settle(stream.text, everything=True)
            stream.beams = [stream.text]
        return give_words(self.tokens, stream, stream.encoder.at, heard.attention, everything=everything)

    def finish(self, stream: WhisperStream) -> list[StreamWord]:
        """The turn is over: what is there is final. Word times are even shares of what is left."""
        settle(stream.text, everything=True)
        stream.beams = [stream.text]
        return give_words(self.tokens, stream, stream.encoder.at, None, everything=True)

    def pending(self, stream: WhisperStream) -> str:
        """The words that may still change."""
        return self.tokens.decode(stream.text.tokens[stream.worded :]).strip()

    # ------------------------------------------------------------ text

    def _heard(self, cross: list[KvBuffer], n: int) -> tuple[int, int]:
        """Positions of `cross` that text may look at, the new block's `n` included."""
        end = cross[0].fill + n
        return (0 if self.plan.left is None else max(0, end - n - self.plan.left)), end

    def _read(
        self, hyps: Sequence[Hypothesis], crosses: Sequence[list[KvBuffer]], n: int
    ) -> tuple[list[TextRow], list[Tensor]]:
        """Prefix and text of each hypothesis in one forward → rows, and logits of the places under review."""
        rows: list[TextRow] = []
        for hyp, cross in zip(hyps, crosses, strict=True):
            ids = [*self.tokens.prefix, *hyp.tokens]
            past = self.model.decoder.start(len(ids) + self._new + 1)
            begin, end = self._heard(cross, n)
            rows.append(TextRow(ids, 0, past, cross, end, begin))
        hidden = self.model.decoder.step(rows, align=True)
        picks: list[int] = []
        sizes: list[int] = []
        at = 0
        for row, hyp in zip(rows, hyps, strict=True):
            at += len(row.tokens)
            sizes.append(checked(hyp, self.tail) + 1)
            picks.extend(range(at - sizes[-1], at))
        logits = self.model.decoder.logits(hidden[picks], sizes) + self._bias
        return rows, list(logits.split(sizes))

    def _greedy(
        self, beams: Sequence[list[Hypothesis]], crosses: Sequence[list[KvBuffer]], n: int
    ) -> list[tuple[list[Hypothesis], Tensor | None]]:
        hyps = [b[0] for b in beams]
        rows, logits = self._read(hyps, crosses, n)
        following: dict[int, Tensor] = {}
        kept: list[list[Tensor]] = []
        for i, (hyp, row) in enumerate(zip(hyps, logits, strict=True)):
            following[i] = row[revise(hyp, row, tail=self.tail)]
            last = len(self.tokens.prefix) + len(hyp.tokens)
            kept.append([torch.cat([w[:, :last] for w in rows[i].attention])])
            rows[i].attention.clear()
        for _ in range(self._new):
            going: list[int] = []
            for i, row in following.items():
                token = int(row.argmax())
                if token != self.tokens.eot and len(hyps[i].tokens) < self._room:
                    hyps[i].tokens.append(token)
                    hyps[i].scores.append(float(row[token]))
                    going.append(i)
            if not going:
                break
            for i in going:
                rows[i].start = len(self.tokens.prefix) + len(hyps[i].tokens) - 1
                rows[i].tokens = hyps[i].tokens[-1:]
            hidden = self.model.decoder.step([rows[i] for i in going], align=True)
            new = self.model.decoder.logits(hidden, [1] * len(going)) + self._bias
            following = dict(zip(going, new, strict=True))
            for i in going:
                kept[i].append(torch.cat(rows[i].attention))
                rows[i].attention.clear()
        skip = len(self.tokens.prefix) - 1
        out: list[tuple[list[Hypothesis], Tensor | None]] = []
        for hyp, parts in zip(hyps, kept, strict=True):
            settle(hyp, tail=self.tail)
            out.append(([hyp], torch.cat(parts, 1)[:, skip:].cpu()))
        return out

    def _beam(
        self, beams: Sequence[list[Hypothesis]], crosses: Sequence[list[KvBuffer]], n: int
    ) -> list[tuple[list[Hypothesis], Tensor | None]]:
        out: list[tuple[list[Hypothesis], Tensor | None]] = []
        for texts, cross in zip(beams, crosses, strict=True):
            _, logits = self._read(texts, [cross] * len(texts), n)
            for hyp, row in zip(texts, logits, strict=True):
                revise(hyp, row, tail=self.tail, top=self.width)
                hyp.logp = 0.0
            live = list({tuple(h.tokens): h for h in texts}.values())
            self._weigh(live, cross, n)
            ended: list[Hypothesis] = []
            longest = max(len(h.tokens) for h in live)
            for _ in range(min(self._new, self._room - longest)):
                _, logits = self._read(live, [cross] * len(live), n)
                ends = torch.stack([row[-1] for row in logits])
                more, done = branch(live, ends, self.width, self.tokens.eot)
                ended.extend(h for _, h in done)
                live = [h for _, h in more]
                if not live or len(ended) >= self.width:
                    break
            final = sorted(ended or live, key=lambda h: -h.logp)[: self.width]
            final = agree(final, final[0], self.tail)
            rows, _ = self._read(final[:1], [cross], n)
            skip = len(self.tokens.prefix) - 1
            out.append((final, torch.cat(rows[0].attention)[:, skip:].cpu()))
        return out

    def _weigh(self, hyps: Sequence[Hypothesis], cross: list[KvBuffer], n: int) -> None:
        """Set each hypothesis' log-probability of its tokens after the commit line, over all audio so far."""
        _, logits = self._read(hyps, [cross] * len(hyps), n)
        for hyp, row in zip(hyps, logits, strict=True):
            tail = hyp.tokens[len(hyp.tokens) - (row.shape[0] - 1) :]
            logp = row.log_softmax(-1)
            hyp.logp = sum(float(logp[i, t]) for i, t in enumerate(tail))

    # ------------------------------------------------------------ sliding

    def _slide(self, stream: WhisperStream) -> Slid:
        """Encode what stays as a new window of its own, on the grid of blocks."""
        assert stream.history is not None
        now, size = stream.encoder.at, self.model.dims.n_audio_ctx
        seam = find_seam(stream.said, now, self.plan, int(size * _KEEP))
        crowd = len(stream.text.tokens) - seam.tokens + self._new - self._room
        seam = Seam(seam.frame, min(stream.worded, seam.tokens + max(0, crowd)))
        encoder, cross = self.model.encoder.start(self.plan), self.model.decoder.start(size)
        encoder.queue.push(stream.history[:, 2 * seam.frame : 2 * now])
        encoder.queue.push(stream.encoder.queue.frames[:, 2:])
        while encoder.at < now - seam.frame:
            n = self.plan.block(encoder.at)
            audio = self.model.encoder.step([encoder], n, self.plan)
            self.model.decoder.hear(audio, [cross])
            self.model.encoder.commit(encoder, n, self.plan)
            for kv in cross:
                kv.advance(n)
        return Slid(encoder, cross, seam)

    def _outside(self, stream: WhisperStream) -> int:
        """Tokens whose words have left a bounded window, or must for want of room."""
        assert self.plan.left is not None
        line = stream.encoder.at - self.plan.left
        gone = max((w.after for w in stream.said if w.end <= line), default=0)
        crowd = len(stream.text.tokens) + self._new - self._room
        return min(stream.worded, max(gone, crowd))
