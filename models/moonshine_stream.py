"""Streams through Moonshine streaming: a block in, words out, committed words never change.

The encoder's frames are final once given (`moonshine_encoder`), so each block adds keys and values to the cross-attention
and takes none away. The text is reviewed over all audio of the window at every block, and words are kept by the
rule of local optimality, as with a causal Whisper. When the window is full it slides to the end of a committed word; frames
need not be encoded again, as they have no positions.

The networks are those of transformers, called by layers: its own forward knows no stream, and is bidirectional
where it is not given a mask.

Source: Moonshine v2, arXiv 2602.12241; local optimality: arXiv 2508.12301.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .attention_kv import KvBuffer
from .framed_pcm import FramedPcm, samples
from .hub_model import read_folder, read_network
from .local_optimality import Hypothesis, settle
from .moonshine_decoder import MoonshineDecoder
from .moonshine_encoder import FRAME, EncoderState, MoonshineEncoder
from .stream_words import StreamWord, give_words
from .text_writer import Audio, TextWriter
from .whisper_dims import BlockPlan
from .window_seam import Said, Seam, find_seam

FRAME_MS = 20
WINDOW = 1500  # frames: 30 s
_KEEP = 0.4  # of the window stays when it slides
_ROOM = 448  # tokens of a window
_GRID = BlockPlan(chunk=1, first=1)  # a window may begin at any frame


class MoonshineTokens:
    """The vocabulary of a tokenizer.json. A word begins with a piece that has a space."""

    def __init__(self, tokenizer: Any, config: Any) -> None:
        self._tokenizer = tokenizer
        start, eos = config.decoder_start_token_id, config.eos_token_id
        self.prefix: Sequence[int] = [config.bos_token_id if start is None else start]
        self.eot: int = eos[0] if isinstance(eos, list) else eos
        self.banned: Sequence[int] = ()

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids)))

    def begins_word(self, token: int) -> bool:
        return str(self._tokenizer.id_to_token(token)).startswith(("\u2581", "\u0120"))


@dataclass(slots=True)
class MoonshineStream:
    """All that one stream is."""

    queue: Tensor  # (S,) samples that wait
    encoder: EncoderState
    audio: Tensor  # (A, D) frames of the window
    cross: list[KvBuffer]  # of each decoder layer, over `audio`
    past: list[KvBuffer]  # the text that is not read again, prefix included
    text: Hypothesis = field(default_factory=Hypothesis)
    ending: bool = False  # the block that waits is the last, however short
    origin: int = 0  # frames of the stream before this window
    worded: int = 0  # tokens of the window that have been given as words
    said: list[Said] = field(default_factory=list[Said])
    last_end: int = 0  # end of the last word given, in frames since the stream began


@dataclass(frozen=True, slots=True)
class Heard:
    """A block's result."""

    used: int  # samples
    frames: int  # that it added
    encoder: EncoderState
    audio: Tensor
    cross: list[KvBuffer]
    past: list[KvBuffer]
    seam: Seam  # what left the window
    text: Hypothesis
    attention: Tensor | None  # (K, n + 1, A)


class MoonshineStreamer:
    """A Moonshine as `AsrSession` takes it. Holds no stream."""

    def __init__(
        self, model: Any, tokens: MoonshineTokens, *, chunk_ms: int = 320, window: int = WINDOW
    ) -> None:
        """model: `MoonshineStreamingForConditionalGeneration`. window: most frames of audio that the text is read over.
        Raises: ValueError."""
        if chunk_ms % FRAME_MS or not 80 <= chunk_ms <= 1000:
            raise ValueError(
                f"chunk_ms {chunk_ms} is not possible; accepted: 80 to 1000, a multiple of {FRAME_MS}"
            )
        config = model.config
        self.model, self.tokens, self.chunk_ms = model, tokens, chunk_ms
        self.front = FramedPcm()
        self.encoder = MoonshineEncoder(model.model.encoder)
        self.window = min(window, config.max_position_embeddings)
        most = chunk_ms // FRAME_MS + self.encoder.ahead  # frames of one block
        if most > self.window * _KEEP:
            raise ValueError(
                f"a chunk of {chunk_ms} ms is too long for a window of {self.window * FRAME_MS} ms"
            )
        self.decoder = MoonshineDecoder(model, self.window)
        self.writer = TextWriter(
            self.decoder, tokens, context=min(_ROOM, config.max_position_embeddings), chunk_s=chunk_ms / 1000
        )

    # ------------------------------------------------------------ streams

    def start(self) -> MoonshineStream:
        empty = self.decoder.like.new_zeros(0, self.encoder.width)
        return MoonshineStream(
            torch.zeros(0), self.encoder.start(), empty, self.decoder.ears(), self.writer.past()
        )

    def push(self, stream: MoonshineStream, mel: Tensor) -> None:
        """Take (161, T) frames of 10 ms."""
        stream.queue = torch.cat([stream.queue, samples(mel)])

    def ready(self, stream: MoonshineStream) -> bool:
        return stream.ending or len(stream.queue) >= self.chunk_ms * 16

    def fill(self, stream: MoonshineStream) -> bool:
        """What waits is the last block, and no look-ahead comes after it. False when the stream heard nothing."""
        if len(stream.queue) == 0 and len(stream.audio) + stream.origin == 0:
            return False
        stream.ending = True
        return True

    def batch_key(self, stream: MoonshineStream) -> Hashable:
        """All streams go together, however much each hears."""
        return "block"

    @torch.no_grad()
    def forward(self, streams: Sequence[MoonshineStream]) -> list[Heard]:
        """The next block of each. Changes nothing of a stream but scratch."""
        pcms = [s.queue if s.ending else s.queue[: self.chunk_ms * 16] for s in streams]
        # fills a frame up; it sees no further
        whole = [torch.cat([pcm, pcm.new_zeros(-len(pcm) % FRAME)]) for pcm in pcms]
        steps = self.encoder.steps([s.encoder for s in streams], whole, [s.ending for s in streams])
        found = [
            self._place(stream, len(pcm), frames, encoder)
            for stream, pcm, (frames, encoder) in zip(streams, pcms, steps, strict=True)
        ]
        heard = [h for h in found if h.frames]
        if not heard:
            return found
        ats = [len(h.audio) - h.frames for h in heard]
        new = [h.audio[at:] for h, at in zip(heard, ats, strict=True)]
        self.decoder.hear(new, [h.cross for h in heard], ats)
        audios = [Audio(h.cross, 0, len(h.audio)) for h in heard]
        texts = self.writer.write([[h.text] for h in heard], [h.past for h in heard], audios)
        told = iter(texts)
        return [replace(h, attention=next(told)[1]) if h.frames else h for h in found]

    def commit(
        self, stream: MoonshineStream, heard: Heard, *, everything: bool = False
    ) -> Sequence[StreamWord]:
        """Take a result over; the words that are now final (with `everything`: all there are)."""
        stream.queue = stream.queue[heard.used :]
        stream.encoder, stream.audio, stream.cross = heard.encoder, heard.audio, heard.cross
        stream.text, stream.past, seam = heard.text, heard.past, heard.seam
        stream.origin += seam.frame
        stream.worded -= seam.tokens
        stream.said = [w.moved(seam.tokens, seam.frame) for w in stream.said if w.after > seam.tokens]
        for kv in stream.cross:
            kv.advance(heard.frames)
        if everything:
            settle(stream.text, everything=True)
        words = give_words(self.tokens, stream, len(stream.audio), heard.attention, everything=everything)
        self.writer.hold(stream.past, stream.worded)
        return words

    def finish(self, stream: MoonshineStream) -> Sequence[StreamWord]:
        """The turn is over: what is there is final."""
        settle(stream.text, everything=True)
        return give_words(self.tokens, stream, len(stream.audio), None, everything=True)

    def pending(self, stream: MoonshineStream) -> str:
        """The words that may still change."""
        return self.tokens.decode(stream.text.tokens[stream.worded :]).strip()

    # ------------------------------------------------------------ inside

    def _place(self, stream: MoonshineStream, used: int, frames: Tensor, encoder: EncoderState) -> Heard:
        """A block's frames in the stream's window, which slides where they have no room. No text yet."""
        n, now = len(frames), len(stream.audio)
        audio, cross, past, seam, text = (
            stream.audio, stream.cross, stream.past, Seam(0, 0), stream.text.fork()
        )  # fmt: skip
        if now + n > self.window or self.writer.crowded(text):
            seam = self._seam(stream, n)
            text, audio = text.after(seam.tokens), audio[seam.frame :]
            past = self.writer.past() if seam.tokens else past
            cross = self.decoder.ears()
            if len(audio):
                self.decoder.hear([audio], [cross], [0])
            for kv in cross:
                kv.advance(len(audio))
        return Heard(used, n, encoder, torch.cat([audio, frames]), cross, past, seam, text, None)

    def _seam(self, stream: MoonshineStream, n: int) -> Seam:
        """Where a full window is cut so that `n` more frames and their tokens have room."""
        now = len(stream.audio)
        open_words = len(stream.text.tokens) > stream.worded
        seam = find_seam(stream.said, now, _GRID, int(self.window * _KEEP), open_words=open_words)
        tokens = min(stream.worded, max(seam.tokens, self.writer.crowd(stream.text)))
        return Seam(max(seam.frame, now + n - self.window), tokens)


def load(source: str, *, chunk_ms: int = 320, device: str = "cpu") -> MoonshineStreamer:
    """From a folder, a hub id or a name of `penstock models`: config.json, model.safetensors, tokenizer.json.

    Raises: ValueError in words.
    """
    example = "UsefulSensors/moonshine-streaming-tiny"
    folder, tokenizer = read_folder(source, "asr.moonshine", example, "moonshine_streaming")
    model = read_network(folder, "MoonshineStreamingForConditionalGeneration", tokenizer, device)
    return MoonshineStreamer(model, MoonshineTokens(tokenizer, model.config), chunk_ms=chunk_ms)
