"""Streams through Moonshine streaming: a block in, words out, committed words never change.

The encoder's frames are final once given (`moonshine_encoder`), so each block adds keys and values to the cross-attention
and takes none away. The text is read again over all audio of the window at every block, and words are kept by the
rule of local optimality, as with a causal Whisper. When the window is full it slides to the end of a committed word; frames
need not be encoded again, as they have no positions.

The networks are those of transformers, called by layers: its own forward knows no stream, and is bidirectional
where it is not given a mask.

Source: Moonshine v2, arXiv 2602.12241; local optimality: arXiv 2508.12301.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .attention_kv import KvBuffer
from .framed_pcm import FramedPcm, samples
from .hub_folder import hub_folder
from .local_optimality import TAIL, Hypothesis, checked, reviews, revise, settle
from .moonshine_encoder import FRAME, EncoderState, MoonshineEncoder
from .stream_words import StreamWord, give_words
from .whisper_dims import BlockPlan
from .window_seam import Said, Seam, find_seam

FRAME_MS = 20
WINDOW = 1500  # frames: 30 s
_KEEP = 0.4  # of the window stays when it slides
_ROOM = 448  # tokens of a window
_TOKENS_PER_S = 12.0  # people say at most 7 syllables a second; a decoder that runs away stops here
_GRID = BlockPlan(chunk=1, first=1)  # a window may begin at any frame


class MoonshineTokens:
    """The vocabulary of a tokenizer.json. A word begins with a piece that has a space."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

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
    seam: Seam  # what left the window
    text: Hypothesis
    attention: Tensor | None  # (K, n + 1, A)


class MoonshineStreamer:
    """A Moonshine as `AsrSession` takes it. Holds no stream."""

    def __init__(
        self, model: Any, tokens: MoonshineTokens, *, chunk_ms: int = 320, window: int = WINDOW
    ) -> None:
        """model: `MoonshineStreamingForConditionalGeneration` with eager attention. window: most frames of audio
        that the text is read over. Raises: ValueError."""
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
        self._new = 4 + math.ceil(_TOKENS_PER_S * chunk_ms / 1000)
        self._stood = reviews(chunk_ms / 1000)
        self._room = min(_ROOM, config.max_position_embeddings) - 1
        start = config.decoder_start_token_id
        self._start: int = config.bos_token_id if start is None else start
        eos = config.eos_token_id
        self._ends: frozenset[int] = frozenset(eos if isinstance(eos, list) else [eos])  # pyright: ignore[reportUnknownArgumentType]
        self._layers: Sequence[Any] = model.model.decoder.layers

    # ------------------------------------------------------------ streams

    def start(self) -> MoonshineStream:
        like: Tensor = self.model.proj_out.weight
        empty = like.new_zeros(0, self.encoder.width)
        return MoonshineStream(torch.zeros(0), self.encoder.start(), empty, self._cross())

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
        """Blocks of equal length go together; each stream's is still a forward of its own."""
        return len(stream.queue) if stream.ending else self.chunk_ms * 16

    @torch.no_grad()
    def forward(self, streams: Sequence[MoonshineStream]) -> list[Heard]:
        """The next block of each. Changes nothing of a stream but scratch."""
        return [self._one(stream) for stream in streams]

    def commit(
        self, stream: MoonshineStream, heard: Heard, *, everything: bool = False
    ) -> Sequence[StreamWord]:
        """Take a result over; the words that are now final (with `everything`: all there are)."""
        stream.queue = stream.queue[heard.used :]
        stream.encoder, stream.audio, stream.cross = heard.encoder, heard.audio, heard.cross
        stream.text, seam = heard.text, heard.seam
        stream.origin += seam.frame
        stream.worded -= seam.tokens
        stream.said = [w.moved(seam.tokens, seam.frame) for w in stream.said if w.after > seam.tokens]
        for kv in stream.cross:
            kv.advance(heard.frames)
        if everything:
            settle(stream.text, everything=True)
        return give_words(self.tokens, stream, len(stream.audio), heard.attention, everything=everything)

    def finish(self, stream: MoonshineStream) -> Sequence[StreamWord]:
        """The turn is over: what is there is final."""
        settle(stream.text, everything=True)
        return give_words(self.tokens, stream, len(stream.audio), None, everything=True)

    def pending(self, stream: MoonshineStream) -> str:
        """The words that may still change."""
        return self.tokens.decode(stream.text.tokens[stream.worded :]).strip()

    # ------------------------------------------------------------ one block

    def _one(self, stream: MoonshineStream) -> Heard:
        used = len(stream.queue) if stream.ending else self.chunk_ms * 16
        pcm = stream.queue[:used]
        pcm = torch.cat([pcm, pcm.new_zeros(-len(pcm) % FRAME)])  # fills a frame up; it sees no further
        frames, encoder = self.encoder.step(stream.encoder, pcm, last=stream.ending)
        n, now = len(frames), len(stream.audio)
        audio, cross, seam, text = stream.audio, stream.cross, Seam(0, 0), stream.text.fork()
        if now + n > self.window or len(text.tokens) + self._new > self._room:
            seam = self._seam(stream, n)
            text = text.after(seam.tokens)
            audio = audio[seam.frame :]
            cross = self._cross()
            self._hear(audio, cross, 0)
            for kv in cross:
                kv.advance(len(audio))
        at = len(audio)
        self._hear(frames, cross, at)
        audio = torch.cat([audio, frames])
        attention = self._write(text, cross, len(audio)) if n else None
        return Heard(used, n, encoder, audio, cross, seam, text, attention)

    def _seam(self, stream: MoonshineStream, n: int) -> Seam:
        """Where a full window is cut so that `n` more frames and their tokens have room."""
        now = len(stream.audio)
        open_words = len(stream.text.tokens) > stream.worded
        seam = find_seam(stream.said, now, _GRID, int(self.window * _KEEP), open_words=open_words)
        crowd = len(stream.text.tokens) - seam.tokens + self._new - self._room
        tokens = min(stream.worded, seam.tokens + max(0, crowd))
        return Seam(max(seam.frame, now + n - self.window), tokens)

    def _cross(self) -> list[KvBuffer]:
        like: Tensor = self.model.proj_out.weight
        return [
            KvBuffer.empty(
                layer.encoder_attn.config.num_key_value_heads, self.window, layer.encoder_attn.head_dim, like
            )
            for layer in self._layers
        ]

    def _hear(self, frames: Tensor, cross: Sequence[KvBuffer], at: int) -> None:
        """Put the frames' keys and values at `at`."""
        decoder = self.model.model.decoder
        n = len(frames)
        x = decoder.proj(frames + decoder.pos_emb.weight[at : at + n])
        for layer, kv in zip(self._layers, cross, strict=True):
            attention = layer.encoder_attn
            k, v = (
                p(x).unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)
                for p in (attention.k_proj, attention.v_proj)
            )
            kv.put(k, v, at)

    def _write(self, text: Hypothesis, cross: Sequence[KvBuffer], heard: int) -> Tensor:
        """Review the last words over `heard` frames and go on. Changes `text`; returns (K, n + 1, A) attention."""
        cache = _cache(cross, heard)
        hidden, weights = self._read([self._start, *text.tokens], cache)
        logits = self.model.proj_out(hidden[-1 - checked(text) :])
        row = logits[revise(text, logits)]
        length = 1 + len(text.tokens)
        for layer in cache.self_attention_cache.layers:  # what did not stand the review
            layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
        kept = [weights[:, :length]]
        for _ in range(self._new):
            token = int(row.argmax())
            if token in self._ends or len(text.tokens) >= self._room:
                break
            text.add(token, float(row[token]))
            hidden, weights = self._read([token], cache)
            row = self.model.proj_out(hidden)[-1]
            kept.append(weights)
        settle(text, tail=TAIL, stood=self._stood)
        return torch.cat(kept, 1).float().cpu()

    def _read(self, ids: Sequence[int], cache: Any) -> tuple[Tensor, Tensor]:
        """(n,) tokens that go on from the cache → (n, D) and the upper layers' attention on audio, (K, n, A)."""
        device = self.model.proj_out.weight.device
        out = self.model.model.decoder(
            input_ids=torch.tensor([ids], device=device),
            encoder_hidden_states=self.model.proj_out.weight.new_zeros(
                1, 1, self.encoder.width
            ),  # in the cache
            cache=cache,
            use_cache=True,
            output_attentions=True,
        )
        upper = out.cross_attentions[len(self._layers) // 2 :]
        return out.last_hidden_state[0], torch.cat([w[0] for w in upper])


def _cache(cross: Sequence[KvBuffer], heard: int) -> Any:
    """transformers' cache, with nothing written and all audio heard. Nothing is copied."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, EncoderDecoderCache

    audio: Any = DynamicCache()
    for kv in cross:
        layer: Any = DynamicLayer()
        k, v = kv.view(0, heard)
        layer.lazy_initialization(k, v)
        layer.keys, layer.values = k[None], v[None]
        audio.layers.append(layer)
    return EncoderDecoderCache(DynamicCache(), audio)


def load(source: str, *, chunk_ms: int = 320, device: str = "cpu") -> MoonshineStreamer:
    """From a folder, a hub id or a name of `penstock models`: config.json, model.safetensors, tokenizer.json.

    Raises: ValueError in words.
    """
    try:
        from tokenizers import Tokenizer
        from transformers import MoonshineStreamingForConditionalGeneration
    except ImportError as e:
        raise ValueError("asr.moonshine needs the extra: pip install 'penstock[hub]'") from e
    folder = hub_folder(source, "asr.moonshine", "UsefulSensors/moonshine-streaming-tiny")
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder / name} is missing; a Moonshine folder has config.json, tokenizer.json, weights"
            )
    try:
        kind = json.loads((folder / "config.json").read_text()).get("model_type")
        if kind != "moonshine_streaming":
            raise ValueError(f"model_type is {kind!r}; accepted: 'moonshine_streaming'")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        network: Any = MoonshineStreamingForConditionalGeneration
        model, info = network.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            attn_implementation="eager",
            output_loading_info=True,
        )
    except Exception as e:  # each of three libraries has its own
        first = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise ValueError(f"{folder} cannot be read: {first}") from e
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{folder} lacks {len(missing)} weights, the first: {missing[0]}")
    if tokenizer.get_vocab_size() > model.config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {tokenizer.get_vocab_size()} tokens, the model {model.config.vocab_size}"
        )
    model = model.float().eval().requires_grad_(False).to(device)
    return MoonshineStreamer(model, MoonshineTokens(tokenizer), chunk_ms=chunk_ms)
