"""Streams through a cache-aware FastConformer transducer (Nemotron streaming): a block in, final words out.

A frame of 80 ms attends to its own block of `lookahead + 1` frames and to a bounded left context, so what has been
encoded never changes, and neither does a transducer's text: words are final when the next one begins.

The network is the one in transformers. Its caches are changed by what is called with them: a forward works on a copy,
and `commit` puts the copy in place.

Source: Stateful Conformer with cache-based inference, arXiv 2312.17279; RNN-T, arXiv 1211.3711.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .hub_folder import hub_folder
from .nemo_mel import NemoMel
from .stream_words import StreamWord

FRAME_MS = 80
_UNITS = 4  # of 20 ms, in which words are told
_BEGIN = "\u2581"  # sentencepiece's mark of a word's begin
_QUIET = -16.6  # log of the guard value: digital silence


@dataclass(slots=True)
class NemotronStream:
    """All that one stream is."""

    queue: Tensor  # (M, T) mel frames that wait
    at: int = 0  # encoder frames so far
    encoder: Any = None  # transformers' caches: keys and values, and the convolutions' left sides
    padding: Any = None
    predictor: tuple[Tensor, Tensor, Tensor] | None = None  # output (1, 1, D), h and c of the LSTM
    tokens: list[int] = field(default_factory=list[int])  # of the word that is being said
    first: int = 0  # its first and last frame
    last: int = 0
    last_end: int = 0  # end of the last word given, in units of 20 ms


@dataclass(frozen=True, slots=True)
class Heard:
    """A block's result: the caches after it, and the tokens with their encoder frames."""

    used: int  # mel frames
    frames: int
    encoder: Any
    padding: Any
    predictor: tuple[Tensor, Tensor, Tensor]
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
        """Blocks of equal length go together; each stream's is still a forward of its own."""
        return self._needed(stream)

    @torch.no_grad()
    def forward(self, streams: Sequence[NemotronStream]) -> list[Heard]:
        """The next block of each. Changes no stream."""
        return [self._one(stream) for stream in streams]

    def commit(self, stream: NemotronStream, heard: Heard, *, everything: bool = False) -> list[StreamWord]:
        """Take a result over; the words that are now whole (with `everything`: all there are)."""
        stream.queue = stream.queue[:, heard.used :]
        stream.encoder, stream.padding, stream.predictor = heard.encoder, heard.padding, heard.predictor
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

    def _one(self, stream: NemotronStream) -> Heard:
        used = self._needed(stream)
        mel = stream.queue[:, :used].T[None]
        out = self.model.get_audio_features(
            input_features=mel.to(self.model.device, self.model.dtype),
            cache=copy.deepcopy(stream.encoder),
            padding_cache=copy.deepcopy(stream.padding),
            num_lookahead_tokens=self.lookahead,
            use_cache=True,
            output_attention_mask=False,
        )
        states: Tensor = out.pooler_output  # (1, F, D)
        predictor = stream.predictor or self._predict(self._blank, None)
        tokens: list[tuple[int, int]] = []
        for frame in range(states.shape[1]):
            for _ in range(self._most):
                logits = self.model.joint(
                    decoder_hidden_states=predictor[0], encoder_hidden_states=states[:, frame : frame + 1]
                )
                token = int(logits[0, 0].argmax())
                if token == self._blank:
                    break
                tokens.append((token, frame))
                predictor = self._predict(token, predictor)
        return Heard(used, states.shape[1], out.cache, out.padding_cache, predictor, tokens)

    def _predict(
        self, token: int, before: tuple[Tensor, Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The prediction network after one more token."""
        net = self.model.decoder
        ids = torch.tensor([[token]], device=self.model.device)
        y, (h, c) = net.lstm(net.embedding(ids), None if before is None else before[1:])
        return net.decoder_projector(y), h, c


def load(source: str, *, lookahead_ms: int = 560, device: str = "cpu") -> NemotronStreamer:
    """From a folder, a hub id or a name of `penstock models`: config.json, model.safetensors, tokenizer.json.

    Raises: ValueError in words.
    """
    try:
        from tokenizers import Tokenizer
        from transformers import NemotronAsrStreamingForRNNT
    except ImportError as e:
        raise ValueError("asr.nemotron needs the extra: pip install 'penstock[hub]'") from e
    folder = hub_folder(source, "asr.nemotron", "nvidia/nemotron-speech-streaming-en-0.6b")
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise ValueError(
                f"{folder / name} is missing; a Nemotron folder has config.json, tokenizer.json, weights"
            )
    kind = json.loads((folder / "config.json").read_text()).get("model_type")
    if kind != "nemotron_asr_streaming":
        raise ValueError(f"{folder}: model_type is {kind!r}; accepted: 'nemotron_asr_streaming'")
    allowed, emphasis = _processing(folder)
    latencies = sorted((frames + 1) * FRAME_MS for frames in allowed)
    if lookahead_ms not in latencies:
        raise ValueError(f"lookahead_ms {lookahead_ms} is none that the model knows; it knows: {latencies}")
    model: Any = NemotronAsrStreamingForRNNT.from_pretrained(
        folder, use_safetensors=True, local_files_only=True
    )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ahead = lookahead_ms // FRAME_MS - 1
    return NemotronStreamer(model.eval().to(device), tokenizer, lookahead=ahead, emphasis=emphasis)


def _processing(folder: Path) -> tuple[list[int], float]:
    """What the processor's files say: frames of look-ahead that the model was trained with, and pre-emphasis."""
    found: dict[str, Any] = {}
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            found |= json.loads((folder / name).read_text())
    extractor = found | found.get("feature_extractor", {})
    allowed: list[int] = found.get("supported_num_lookahead_tokens") or [13, 6, 1, 0]
    return allowed, float(extractor.get("preemphasis", 0.97))
