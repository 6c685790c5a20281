"""Whisper with a block-causal encoder: what has been encoded never changes, so it is never encoded again.

A frame attends to its own block and to all before it; blocks are as in `BlockPlan`. One set of weights serves
many streams: all state is in `EncoderState`, and rows of different streams share the matrix products.

Source: Whisper (arXiv 2212.04356); block-causal fine-tuning: CarelessWhisper (arXiv 2508.12301).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention_kv import Block, KvBuffer, PackedRows
from .conv_stream import ConvFront, MelQueue
from .whisper_dims import BlockPlan, WhisperDims


def sinusoids(length: int, width: int) -> Tensor:
    """Whisper's encoder positions: (length, width), sines then cosines."""
    step = math.log(10_000) / (width // 2 - 1)
    scale = torch.exp(-step * torch.arange(width // 2))
    angle = torch.arange(length)[:, None] * scale[None]
    return torch.cat([angle.sin(), angle.cos()], 1)


@dataclass(slots=True)
class EncoderState:
    """One stream's place in the encoder."""

    queue: MelQueue
    layers: list[KvBuffer]
    at: int = 0  # frames since the window began


@dataclass(slots=True)
class TextRow:
    """Tokens of one stream for the decoder, from position `start` on; `past` and `audio` are its caches."""

    tokens: Sequence[int]
    start: int
    past: list[KvBuffer]  # self-attention, one a layer
    audio: list[KvBuffer]  # cross-attention, one a layer
    audio_end: int  # positions of `audio` that may be seen end here, scratch included
    audio_begin: int = 0
    attention: list[Tensor] = field(default_factory=list[Tensor])  # (H, n, A) of the upper layers


def packed_text(
    rows: Sequence[TextRow], device: torch.device, pad: bool
) -> tuple[Tensor, Tensor, PackedRows, PackedRows]:
    """Tokens (N,) and their places (N,), row after row; what they see of the text, themselves included; and of the audio."""
    counts, starts = [len(row.tokens) for row in rows], [row.start for row in rows]
    ends = [start + n for start, n in zip(starts, counts, strict=True)]
    ids = torch.tensor([t for row in rows for t in row.tokens], device=device)
    places = torch.tensor(
        [i for start, end in zip(starts, ends, strict=True) for i in range(start, end)], device=device
    )
    text = PackedRows(counts, [0] * len(rows), ends, starts, pad=pad)
    audio = PackedRows(counts, [r.audio_begin for r in rows], [r.audio_end for r in rows], pad=pad)
    return ids, places, text, audio


def fresh_state(dims: WhisperDims, plan: BlockPlan, like: Tensor) -> EncoderState:
    """A stream's beginning, with buffers for the plan's window; dtype and device of `like`."""
    capacity = dims.n_audio_ctx if plan.left is None else 2 * plan.left + plan.first
    width = dims.n_audio_state // dims.n_audio_head
    layers = [KvBuffer.empty(dims.n_audio_head, capacity, width, like) for _ in range(dims.n_audio_layer)]
    return EncoderState(MelQueue.empty(dims.n_mels, like), layers)


def advanced(state: EncoderState, n: int, plan: BlockPlan) -> None:
    """Take over what a step of `n` frames left in the scratch."""
    state.queue.drop(n)
    state.at += n
    for kv in state.layers:
        kv.advance(n)
        if plan.left is not None and kv.fill + plan.first > kv.capacity:
            kv.shift(plan.left)


def fresh_cache(dims: WhisperDims, capacity: int, like: Tensor) -> list[KvBuffer]:
    """Empty buffers of the decoder for `capacity` positions, one a layer."""
    width = dims.n_text_state // dims.n_text_head
    return [KvBuffer.empty(dims.n_text_head, capacity, width, like) for _ in range(dims.n_text_layer)]


class Encoder(ConvFront):
    """Mel frames → states of 20 ms. `step` over blocks equals `forward` over the whole."""

    positional_embedding: Tensor  # (n_audio_ctx, D)
    pad = False  # stack streams' buffers as on a GPU, wherever it runs

    def __init__(self, dims: WhisperDims) -> None:
        super().__init__(dims.n_mels, dims.n_audio_state)
        self.dims = dims
        self.register_buffer("positional_embedding", sinusoids(dims.n_audio_ctx, dims.n_audio_state))
        self.blocks = nn.ModuleList(
            Block(dims.n_audio_state, dims.n_audio_head) for _ in range(dims.n_audio_layer)
        )
        self.ln_post = nn.LayerNorm(dims.n_audio_state)

    def start(self, plan: BlockPlan) -> EncoderState:
        """State of a stream that begins now, with buffers for the plan's window."""
        return fresh_state(self.dims, plan, self.conv1.weight)

    def step(self, states: Sequence[EncoderState], n: int, plan: BlockPlan) -> Tensor:
        """The next `n` frames of each stream: (B, n, D). Changes nothing but scratch; see `commit`."""
        windows = torch.stack([s.queue.window(n, plan.lookahead) for s in states])
        first = torch.tensor([s.queue.first for s in states], device=windows.device)
        x = ConvFront.forward(self, windows, first)  # (B, n, D)
        size = self.positional_embedding.shape[0]
        where = torch.stack([torch.arange(s.at, s.at + n) % size for s in states]).to(x.device)
        x = (x + self.positional_embedding[where]).flatten(0, 1)  # (B·n, D)
        fills = [s.layers[0].fill for s in states]
        begins = [0 if plan.left is None else max(0, fill - plan.left) for fill in fills]
        rows = PackedRows([n] * len(states), begins, [fill + n for fill in fills], pad=self.pad)
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            h = block.attn_ln(x)
            kvs = [s.layers[index] for s in states]
            rows.put(kvs, *block.attn.keys_values(h))  # (H, B·n, Dh)
            x = x + block.attn.packed(h, rows, kvs)[0]
            x = x + block.mlp(block.mlp_ln(x))
        return self.ln_post(x).unflatten(0, (len(states), n))

    def commit(self, state: EncoderState, n: int, plan: BlockPlan) -> None:
        """Take over what `step` left in the scratch."""
        advanced(state, n, plan)

    def forward(self, mel: Tensor, plan: BlockPlan, layers: list[Tensor] | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Reference and training: (B, M, 2T) whole windows → (B, T, D), T ≤ n_audio_ctx without a left window.

        layers: takes what each layer gives."""
        frames = mel.shape[-1] // 2
        x = self.front(mel, plan)
        size = self.positional_embedding.shape[0]
        x = x + self.positional_embedding[torch.arange(frames, device=x.device) % size]
        mask = block_mask(frames, plan).to(x.device)
        for block in self.blocks:
            x = block(x, mask)
            if layers is not None:
                layers.append(x)
        return self.ln_post(x)

    def front(self, mel: Tensor, plan: BlockPlan) -> Tensor:
        """Both convolutions over whole windows, each block with the right edge that it sees live."""
        padded = F.pad(mel, (2, 1))  # frame i is at i + 2
        out: list[Tensor] = []
        for begin, end in plan.bounds(mel.shape[-1] // 2):
            stop = 2 * end + 2 + plan.lookahead
            window = F.pad(padded[..., 2 * begin : stop], (0, 1 - plan.lookahead))
            first = torch.full((mel.shape[0],), begin == 0, device=mel.device)
            out.append(ConvFront.forward(self, window, first))
        return torch.cat(out, 1)


def block_mask(frames: int, plan: BlockPlan) -> Tensor:
    """(T, T), True where row may see column."""
    mask = torch.zeros(frames, frames, dtype=torch.bool)
    for begin, end in plan.bounds(frames):
        mask[begin:end, 0 if plan.left is None else max(0, begin - plan.left) : end] = True
    return mask


class Decoder(nn.Module):
    """Tokens and audio states → logits."""

    pad = False  # stack streams' buffers as on a GPU, wherever it runs

    def __init__(self, dims: WhisperDims) -> None:
        super().__init__()
        self.dims = dims
        width = dims.n_text_state
        self.token_embedding = nn.Embedding(dims.n_vocab, width)
        self.positional_embedding = nn.Parameter(torch.zeros(dims.n_text_ctx, width))
        self.blocks = nn.ModuleList(
            Block(width, dims.n_text_head, cross=True) for _ in range(dims.n_text_layer)
        )
        self.ln = nn.LayerNorm(width)
        self.head: nn.Module | None = None  # an int8 copy of the embedding takes its place here

    def start(self, capacity: int) -> list[KvBuffer]:
        """Empty buffers for `capacity` positions, one a layer."""
        return fresh_cache(self.dims, capacity, self.token_embedding.weight)

    def hear(self, audio: Tensor, caches: Sequence[list[KvBuffer]]) -> None:
        """Write the cross-attention keys and values of new states (B, n, D) into each stream's scratch."""
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            assert block.cross_attn is not None
            k, v = block.cross_attn.keys_values(audio)  # (B, H, n, Dh)
            for r, cache in enumerate(caches):
                cache[index].put(k[r], v[r], cache[index].fill)

    def step(self, rows: Sequence[TextRow], *, align: bool = False) -> Tensor:
        """All rows' tokens in one forward → hidden states (N, D), row after row. Writes `past` beyond `start`.

        With `align`, each row's `attention` gets the cross-attention of the upper half of the layers.
        """
        ids, places, own, heard = packed_text(rows, self.token_embedding.weight.device, self.pad)
        x = self.token_embedding(ids) + self.positional_embedding[places]  # (N, D)
        for index, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            assert block.cross_attn is not None
            assert block.cross_attn_ln is not None
            h = block.attn_ln(x)
            pasts = [row.past[index] for row in rows]
            own.put(pasts, *block.attn.keys_values(h))
            x = x + block.attn.packed(h, own, pasts)[0]
            audio = [row.audio[index] for row in rows]
            aligned = align and 2 * index >= len(self.blocks) - 1
            y, spread = block.cross_attn.packed(block.cross_attn_ln(x), heard, audio, aligned)
            for row, one in zip(rows, spread, strict=False):
                row.attention.append(one)
            x = x + y
            x = x + block.mlp(block.mlp_ln(x))
        return self.ln(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(R, D) → (R, V), float32."""
        if self.head is not None:
            return self.head(hidden)
        return F.linear(hidden, self.token_embedding.weight).float()

    def forward(
        self,
        tokens: Tensor,
        audio: Tensor,
        audio_mask: Tensor | None = None,
        weights: list[Tensor] | None = None,
    ) -> Tensor:
        """Reference and training: (B, T), (B, S, D), (B, 1, T or 1, S) → logits (B, T, V).

        weights: takes each layer's cross-attention, (B, H, T, S)."""
        n = tokens.shape[1]
        x = self.token_embedding(tokens) + self.positional_embedding[:n]
        mask = torch.ones(n, n, dtype=torch.bool, device=x.device).tril()
        for block in self.blocks:
            x = block(x, mask, audio, audio_mask, weights)
        return self.logits(self.ln(x))


class CausalWhisper(nn.Module):
    """Encoder and decoder; parameter names as in OpenAI's checkpoints."""

    def __init__(self, dims: WhisperDims) -> None:
        super().__init__()
        self.dims = dims
        self.encoder = Encoder(dims)
        self.decoder = Decoder(dims)

    @property
    def like(self) -> Tensor:
        """Has the dtype and device of a stream's tensors."""
        return self.encoder.conv1.weight

    @classmethod
    def random(cls, dims: WhisperDims, seed: int = 0) -> CausalWhisper:
        """Untrained weights, for benchmarks and tests: it says nothing sensible."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = cls(dims)
            nn.init.normal_(model.decoder.positional_embedding, std=0.01)
            nn.init.normal_(model.decoder.token_embedding.weight, std=0.05)
        return model.eval()
