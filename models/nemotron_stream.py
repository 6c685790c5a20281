"""Streams through a cache-aware FastConformer transducer (Nemotron streaming): a block in, final words out.

A frame of 80 ms attends to its own block of `lookahead + 1` frames and to a bounded left context, so what has been
encoded never changes, and neither does a transducer's text: words are final when the next one begins.

The network is the one in transformers. Streams share every product: the encoder's (`nemotron_encoder`) and, frame by frame,
those of the prediction and joint networks, where a row that has said all leaves.

Source: Stateful Conformer with cache-based inference, arXiv 2312.17279; RNN-T, arXiv 1211.3711.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .hub_model import read_folder, read_network
from .nemo_mel import NemoMel
from .nemotron_encoder import EncoderState, NemotronEncoder
from .stream_words import StreamWord

FRAME_MS = 80
_UNITS = 4  # of 20 ms, in which words are told
_BEGIN = "\u2581"  # sentencepiece's mark of a word's begin
_QUIET = -16.6  # log of the guard value: digital silence


Predictor = tuple[Tensor, Tensor, Tensor]
"""The prediction network after a text: its output (D,), h and c of the LSTM (L, H)."""


@dataclass(slots=True)
class NemotronStream:
    """All that one stream is."""

    queue: Tensor  # (M, T) mel frames that wait
    at: int = 0  # encoder frames so far
    encoder: EncoderState = field(default_factory=EncoderState)
    predictor: Predictor | None = None  # None: nothing has been said
    tokens: list[int] = field(default_factory=list[int])  # of the word that is being said
    first: int = 0  # its first and last frame
    last: int = 0
    last_end: int = 0  # end of the last word given, in units of 20 ms


@dataclass(frozen=True, slots=True)
class Heard:
    """A block's result: the caches after it, and the tokens with their encoder frames."""

    used: int  # mel frames
    frames: int
    encoder: EncoderState
    predictor: Predictor
    tokens: list[tuple[int, int]]


class NemotronStreamer:
    """A transducer as `AsrSession` takes it. Holds no stream."""

    def __init__(self, model: Any, tokenizer: Any, *, lookahead: int = 6, emphasis: float = 0.97) -> None:
        """model: `NemotronAsrStreamingForRNNT`. tokenizer: of the package tokenizers. lookahead: frames of 80 ms."""
        self.model, self.tokenizer, self.lookahead = model, tokenizer, lookahead
        config = model.config
        self._factor: int = config.encoder_config.subsampling_factor
        self._blank: int = config.blank_token_id
        self._most: int = config.max_symbols_per_step
        self.encoder = NemotronEncoder(model, lookahead)
        self.front = NemoMel(config.encoder_config.num_mel_bins, emphasis)

    @property
    def chunk_ms(self) -> int:
        """Audio a block."""
        return (self.lookahead + 1) * FRAME_MS

    def start(self) -> NemotronStream:
        return NemotronStream(torch.zeros(self.front.n_mels, 0))

    def push(self, stream: NemotronStream, mel: Tensor) -> None:
        """Take (M, T) frames of 10 ms."""
        stream.queue = torch.cat([stream.queue, mel], 1)

    def _needed(self, stream: NemotronStream) -> int:
        """Mel frames of the next block; the first one sees zeros on its left."""
        return 1 + self._factor * self.lookahead if stream.at == 0 else self._factor * (self.lookahead + 1)

    def ready(self, stream: NemotronStream) -> bool:
        return stream.queue.shape[1] >= self._needed(stream)

    def fill(self, stream: NemotronStream) -> bool:
        """Fill what waits up to a block with silence. False when nothing waits."""
        missing = self._needed(stream) - stream.queue.shape[1]
        if stream.queue.shape[1] == 0:
            return False
        self.push(stream, torch.full((self.front.n_mels, missing), _QUIET))
        return True

    def batch_key(self, stream: NemotronStream) -> Hashable:
        """Blocks of equal length go together: a stream's first one is shorter."""
        return self._needed(stream)

    @torch.no_grad()
    def forward(self, streams: Sequence[NemotronStream]) -> list[Heard]:
        """The next block of each. Changes no stream."""
        used = self._needed(streams[0])
        steps = self.encoder.steps([s.encoder for s in streams], [s.queue[:, :used] for s in streams])
        states = torch.stack([frames for frames, _ in steps])  # (B, F, D)
        predictors = [s.predictor for s in streams]
        fresh = [i for i, p in enumerate(predictors) if p is None]
        begun = self._predict([self._blank] * len(fresh), None) if fresh else []
        for i, one in zip(fresh, begun, strict=True):
            predictors[i] = one
        said: list[list[tuple[int, int]]] = [[] for _ in streams]
        whole = [p for p in predictors if p is not None]
        for frame in range(states.shape[1]):
            self._say(states[:, frame], frame, whole, said)
        return [
            Heard(used, states.shape[1], encoder, predictor, tokens)
            for (_, encoder), predictor, tokens in zip(steps, whole, said, strict=True)
        ]

    def commit(self, stream: NemotronStream, heard: Heard, *, everything: bool = False) -> list[StreamWord]:
        """Take a result over; the words that are now whole (with `everything`: all there are)."""
        stream.queue = stream.queue[:, heard.used :]
        stream.encoder, stream.predictor = heard.encoder, heard.predictor
        words: list[StreamWord] = []
        for token, frame in heard.tokens:
            if stream.tokens and self._begins(token):
                words += self.finish(stream)
            if not stream.tokens:
                stream.first = stream.at + frame
            stream.tokens.append(token)
            stream.last = stream.at + frame
        stream.at += heard.frames
        return words + self.finish(stream) if everything else words

    def finish(self, stream: NemotronStream) -> list[StreamWord]:
        """The word that is being said ends here."""
        text = self.pending(stream)
        stream.tokens = []
        if not text:
            return []
        begin = max(stream.last_end, stream.first * _UNITS)
        stream.last_end = max(begin, (stream.last + 1) * _UNITS)
        return [StreamWord(text, begin, stream.last_end)]

    def pending(self, stream: NemotronStream) -> str:
        """The word that is being said."""
        return str(self.tokenizer.decode(stream.tokens)).strip() if stream.tokens else ""

    # ------------------------------------------------------------ inside

    def _begins(self, token: int) -> bool:
        return str(self.tokenizer.id_to_token(token)).startswith(_BEGIN)

    def _say(
        self, states: Tensor, frame: int, predictors: list[Predictor], said: list[list[tuple[int, int]]]
    ) -> None:
        """One frame of each stream, (B, D): add to `said` what it says, and keep `predictors` up with it."""
        going = list(range(len(predictors)))
        for _ in range(self._most):
            outputs = torch.stack([predictors[i][0] for i in going])
            logits = self.model.joint(decoder_hidden_states=outputs, encoder_hidden_states=states[going])
            best: list[int] = logits.argmax(-1).tolist()
            new = [(i, t) for i, t in zip(going, best, strict=True) if t != self._blank]
            if not new:
                return
            going = [i for i, _ in new]
            after = self._predict([t for _, t in new], [predictors[i] for i in going])
            for (i, token), predictor in zip(new, after, strict=True):
                said[i].append((token, frame))
                predictors[i] = predictor

    def _predict(self, tokens: Sequence[int], before: Sequence[Predictor] | None) -> list[Predictor]:
        """The prediction network after one more token of each stream."""
        net = self.model.decoder
        ids = torch.tensor(tokens, device=self.model.device)[:, None]
        hidden = None
        if before is not None:
            hidden = tuple(torch.stack([p[i] for p in before], 1) for i in (1, 2))  # (L, B, H)
        y, (h, c) = net.lstm(net.embedding(ids), hidden)
        out = net.decoder_projector(y)[:, 0]  # (B, D)
        return [(out[b], h[:, b], c[:, b]) for b in range(len(tokens))]


def load(source: str, *, lookahead_ms: int = 560, device: str = "cpu") -> NemotronStreamer:
    """From a folder, a hub id or a name of `penstock models`: config.json, model.safetensors, tokenizer.json.

    Raises: ValueError in words.
    """
    example = "nvidia/nemotron-speech-streaming-en-0.6b"
    folder, tokenizer = read_folder(source, "asr.nemotron", example, "nemotron_asr_streaming")
    allowed, emphasis = _processing(folder)
    latencies = sorted((frames + 1) * FRAME_MS for frames in allowed)
    if lookahead_ms not in latencies:
        raise ValueError(f"lookahead_ms {lookahead_ms} is none that the model knows; it knows: {latencies}")
    model = read_network(folder, "NemotronAsrStreamingForRNNT", tokenizer, device)
    ahead = lookahead_ms // FRAME_MS - 1
    return NemotronStreamer(model, tokenizer, lookahead=ahead, emphasis=emphasis)


def _processing(folder: Path) -> tuple[list[int], float]:
    """What the processor's files say: frames of look-ahead that the model was trained with, and pre-emphasis."""
    found: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            found |= json.loads((folder / name).read_text())
    extractor = found | found.get("feature_extractor", {})
    allowed: list[int] = found.get("supported_num_lookahead_tokens") or [13, 6, 1, 0]
    return allowed, float(extractor.get("preemphasis", 0.97))
