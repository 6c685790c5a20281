"""Streams through a causal Whisper: one block of audio in, words out, committed words never change.

`WhisperStreamer` works on rows, as pools do: rows with equal `batch_key` may share a `forward`, which changes
nothing of a stream's state but scratch; `commit` takes a result over. A dropped row leaves no trace.

When the window is nearly full it slides: words said before a seam leave, audio after the seam is encoded again as a
new window (`whisper_window`, beside the blocks that come), and the words after the seam stay as they are. The seam is the
end of a committed word, so no word is cut and none is lost.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .attention_kv import KvBuffer
from .causal_whisper import CausalWhisper, EncoderState
from .local_optimality import TAIL, Hypothesis, settle
from .log_mel import LogMel
from .stream_words import StreamWord, give_words
from .text_writer import AGAIN, Audio, TextWriter
from .tokens import Tokens
from .whisper_dims import BlockPlan
from .whisper_ort import OrtWhisper
from .whisper_window import PACE, NextWindow, begun, catch_up, due
from .window_seam import Said

FRAME_S = 0.02
_LARGEST = 0.4  # of a window may be a first block and a chunk


@dataclass(slots=True)
class WhisperStream:
    """All that one stream is: restore it anywhere the weights are."""

    encoder: EncoderState
    cross: list[KvBuffer]
    beams: list[Hypothesis]
    past: list[KvBuffer]  # the text that is not read again, prefix included
    history: Tensor | None  # (M, 2·n_audio_ctx) mel of this window, for the slide; None with a left window
    next: NextWindow | None = None  # in the making
    origin: int = 0  # frames of the stream before this window
    worded: int = 0  # tokens of the window that have been given as words
    said: list[Said] = field(default_factory=list[Said])  # words of the window that have been given
    last_end: int = 0  # end of the last word given, in frames since the stream began

    @property
    def text(self) -> Hypothesis:
        return self.beams[0]


@dataclass(frozen=True, slots=True)
class Heard:
    """What a forward found for one stream; `slid` replaces the window where it had to slide."""

    frames: int
    beams: list[Hypothesis]
    attention: Tensor | None = None  # (K, n + 1, A) of the best beam's last n tokens and the end
    dropped: int = 0  # tokens that left the window before this block
    slid: NextWindow | None = None
    next: NextWindow | None = None  # as far as it is made now
    past: list[KvBuffer] | None = None  # of text that was read anew because tokens have left


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
        again: int | None = AGAIN,
    ) -> None:
        """beams, tail, tokens_per_s, again: see `TextWriter`. Raises: ValueError."""
        if plan.left is None and plan.first + plan.chunk > model.dims.n_audio_ctx * _LARGEST:
            raise ValueError(
                f"a chunk of {plan.chunk_ms} ms is too long for a window of {model.dims.n_audio_ctx * 20} ms"
            )
        self.model, self.tokens, self.plan = model, tokens, plan
        self.front = LogMel(model.dims.n_mels)
        self.writer = TextWriter(
            model.decoder, tokens, context=model.dims.n_text_ctx, chunk_s=plan.chunk * FRAME_S,
            tokens_per_s=tokens_per_s, width=beams, tail=tail, again=again,
        )  # fmt: skip

    # ------------------------------------------------------------ streams

    def start(self, origin: int = 0) -> WhisperStream:
        """A stream whose next mel frame is the first of a window."""
        dims = self.model.dims
        encoder = self.model.encoder.start(self.plan)
        history = None if self.plan.left else self.model.like.new_zeros(dims.n_mels, 2 * dims.n_audio_ctx)
        cross = self.model.decoder.start(encoder.layers[0].capacity)
        return WhisperStream(
            encoder, cross, [Hypothesis()], self.writer.past(), history, origin=origin, last_end=origin
        )

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
        """Whether the window must slide before the next block, ready or not."""
        crowded = self.writer.crowded(stream.text)
        if self.plan.left is not None:
            return crowded and self._outside(stream) > 0
        return crowded or stream.encoder.at + self.plan.chunk > self.model.dims.n_audio_ctx

    def batch_key(self, stream: WhisperStream) -> Hashable:
        """Streams with equal keys can share a forward: they hear equally many frames."""
        return self.plan.block(stream.encoder.at)

    # ------------------------------------------------------------ one step of many streams

    @torch.no_grad()
    def forward(self, streams: Sequence[WhisperStream]) -> list[Heard]:
        """The next block of each stream. Streams must have equal batch keys."""
        n = self.plan.block(streams[0].encoder.at)
        nexts = self._ahead(streams)
        slid: list[NextWindow | None] = [None] * len(streams)
        dropped = [0] * len(streams)
        for i, (stream, window) in enumerate(zip(streams, nexts, strict=True)):
            if window is not None and not window.lacks(stream.encoder.at):
                slid[i], nexts[i] = window, None
                window.encoder.queue.frames = stream.encoder.queue.frames  # its last two are the same
                dropped[i] = min(stream.worded, max(window.seam.tokens, self.writer.crowd(stream.text)))
            elif self.plan.left is not None and self.full(stream):
                dropped[i] = self._outside(stream)
        encoders = [s.encoder if new is None else new.encoder for s, new in zip(streams, slid, strict=True)]
        crosses = [s.cross if new is None else new.cross for s, new in zip(streams, slid, strict=True)]
        beams = [[b.after(gone) for b in s.beams] for s, gone in zip(streams, dropped, strict=True)]
        pasts = [self.writer.past() if gone else s.past for s, gone in zip(streams, dropped, strict=True)]
        audio = self.model.encoder.step(encoders, n, self.plan)
        self.model.decoder.hear(audio, crosses)
        found = self.writer.write(beams, pasts, [self._heard(cross, n) for cross in crosses])
        return [
            Heard(n, texts, attention, dropped[i], slid[i], nexts[i], pasts[i] if dropped[i] else None)
            for i, (texts, attention) in enumerate(found)
        ]

    def commit(self, stream: WhisperStream, heard: Heard, *, everything: bool = False) -> list[StreamWord]:
        """Take a result over; returns the words that are now final (with `everything`: all there are)."""
        seam, queue = 0, stream.encoder.queue
        stream.next = heard.next
        if heard.slid is not None:
            seam = heard.slid.seam.frame
            stream.encoder, stream.cross = heard.slid.encoder, heard.slid.cross
            stream.encoder.queue.frames = queue.frames  # what came since the forward is in the old queue only
            stream.origin += seam
            if stream.history is not None:
                kept = stream.encoder.at * 2
                stream.history[:, :kept] = stream.history[:, 2 * seam : 2 * seam + kept].clone()
        stream.worded -= heard.dropped
        stream.said = [w.moved(heard.dropped, seam) for w in stream.said if w.after > heard.dropped]
        new = stream.encoder.queue.frames[:, 2 : 2 + 2 * heard.frames]
        if stream.history is not None:
            at = 2 * stream.encoder.at
            stream.history[:, at : at + new.shape[1]] = new
        if stream.next is not None:
            stream.next.encoder.queue.push(new)
        self.model.encoder.commit(stream.encoder, heard.frames, self.plan)
        for kv in stream.cross:
            kv.advance(heard.frames)
            if self.plan.left is not None and kv.fill + self.plan.first > kv.capacity:
                kv.shift(self.plan.left)
        stream.beams, stream.past = heard.beams, heard.past or stream.past
        if everything:
            settle(stream.text, everything=True)
            stream.beams = [stream.text]
        words = give_words(self.tokens, stream, stream.encoder.at, heard.attention, everything=everything)
        self.writer.hold(stream.past, stream.worded)
        return words

    def finish(self, stream: WhisperStream) -> list[StreamWord]:
        """The turn is over: what is there is final. Word times are even shares of what is left."""
        settle(stream.text, everything=True)
        stream.beams = [stream.text]
        return give_words(self.tokens, stream, stream.encoder.at, None, everything=True)

    def pending(self, stream: WhisperStream) -> str:
        """The words that may still change."""
        return self.tokens.decode(stream.text.tokens[stream.worded :]).strip()

    # ------------------------------------------------------------ inside

    def _heard(self, cross: list[KvBuffer], n: int) -> Audio:
        """What text may look at, the new block's `n` frames included."""
        end = cross[0].fill + n
        return Audio(cross, 0 if self.plan.left is None else max(0, end - n - self.plan.left), end)

    def _ahead(self, streams: Sequence[WhisperStream]) -> list[NextWindow | None]:
        """The next windows, a little further than they were: all the way where there is no more time."""
        out: list[NextWindow | None] = []
        work: list[tuple[NextWindow, int, int]] = []
        beyond: list[Tensor] = []
        for stream in streams:
            window, now, full = None, stream.encoder.at, self.full(stream)
            if stream.next is not None:
                window = stream.next.fork()
            elif stream.history is not None and (full or due(now, self.model.dims.n_audio_ctx)):
                window = begun(self.model, self.plan, stream, now)
            out.append(window)
            if window is not None:
                work.append((window, now, -1 if full else PACE))
                beyond.append(stream.encoder.queue.frames[:, 2:])
        catch_up(self.model, self.plan, work, beyond)
        return out

    def _outside(self, stream: WhisperStream) -> int:
        """Tokens whose words have left a bounded window, or must for want of room."""
        assert self.plan.left is not None
        line = stream.encoder.at - self.plan.left
        gone = max((w.after for w in stream.said if w.end <= line), default=0)
        return min(stream.worded, max(gone, self.writer.crowd(stream.text)))
