"""Causal Whisper on onnxruntime: on CPUs the quickest way to run it, most of all with int8 weights.

The same interface as `causal_whisper`, the same state: a stream can be moved from one engine to the other. Streams of
one forward run one after the other, so that none is quantised together with a stranger.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from . import whisper_graph
from .attention_kv import KvBuffer
from .causal_whisper import CausalWhisper, EncoderState, TextRow, advanced, fresh_cache, fresh_state
from .whisper_dims import BlockPlan

Floats = NDArray[np.float32]


def _session(graph: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # a core a stream: the steadiest when streams share a machine
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # spinning threads of one session take the core from the next
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _mask(total: int, begin: int, end: int) -> Floats:
    """(total,) 0 where [begin, end) counts, else −∞."""
    mask = np.full(total, -np.inf, np.float32)
    mask[begin:end] = 0
    return mask


class OrtEncoder:
    """As `causal_whisper.Encoder`, without `forward`."""

    def __init__(self, model: CausalWhisper, *, int8: bool) -> None:
        self.dims = model.dims
        self._positions = model.encoder.positional_embedding.numpy()
        self._run = _session(whisper_graph.encoder(model, int8=int8)).run
        layers = range(model.dims.n_audio_layer)
        self._names = ["states", *(f"new_{kv}{i}" for i in layers for kv in "kv")]
        self._like = torch.zeros(1)

    def start(self, plan: BlockPlan) -> EncoderState:
        return fresh_state(self.dims, plan, self._like)

    def step(self, states: Sequence[EncoderState], n: int, plan: BlockPlan) -> Tensor:
        return torch.stack([self._one(state, n, plan) for state in states])

    def commit(self, state: EncoderState, n: int, plan: BlockPlan) -> None:
        advanced(state, n, plan)

    def _one(self, state: EncoderState, n: int, plan: BlockPlan) -> Tensor:
        window = state.queue.window(n, plan.lookahead)
        edge = np.ones((1, 1, 2 * n + 1), np.float32)
        if state.queue.first:
            edge[..., 0] = 0
        fill = state.layers[0].fill
        held = state.layers[0].k.shape[1]
        mask = _mask(held + n, 0 if plan.left is None else max(0, fill - plan.left), fill)
        mask[held:] = 0
        feed: dict[str, Any] = {
            "window": window[None].contiguous().numpy(),
            "edge": edge,
            "places": self._positions[np.arange(state.at, state.at + n) % len(self._positions)],
            "mask": mask[None, None],
            "sizes": np.array([held, n], np.int64),
        }
        for i, kv in enumerate(state.layers):
            feed[f"k{i}"], feed[f"v{i}"] = kv.k.numpy(), kv.v.numpy()
        out = self._run(self._names, feed)
        for i, kv in enumerate(state.layers):
            kv.put(torch.from_numpy(out[1 + 2 * i]), torch.from_numpy(out[2 + 2 * i]), kv.fill)
        return torch.from_numpy(out[0])


class OrtDecoder:
    """As `causal_whisper.Decoder`, without `forward`."""

    def __init__(self, model: CausalWhisper, *, int8: bool, int8_head: bool) -> None:
        self.dims = model.dims
        self._tokens = model.decoder.token_embedding.weight.detach().float()
        self._places = model.decoder.positional_embedding.detach().float()
        self._hear = _session(whisper_graph.hear(model, int8=int8)).run
        self._body = _session(whisper_graph.body(model, int8=int8)).run
        self._head = _session(whisper_graph.head(model, int8=int8_head)).run
        layers = range(model.dims.n_text_layer)
        self._names = ["hidden", *(f"new_{kv}{i}" for i in layers for kv in "kv")]
        self._aligned = [f"attention{i}" for i in whisper_graph.upper(model.dims.n_text_layer)]
        self._like = torch.zeros(1)

    def start(self, capacity: int) -> list[KvBuffer]:
        return fresh_cache(self.dims, capacity, self._like)

    def hear(self, audio: Tensor, caches: Sequence[list[KvBuffer]]) -> None:
        for states, cache in zip(audio, caches, strict=True):
            new = torch.from_numpy(self._hear(["audio"], {"states": states.numpy()})[0])
            for i, kv in enumerate(cache):
                kv.put(new[2 * i], new[2 * i + 1], kv.fill)

    def step(self, rows: Sequence[TextRow], *, align: bool = False) -> Tensor:
        return torch.cat([self._one(row, align) for row in rows])

    def logits(self, hidden: Tensor, sizes: Sequence[int]) -> Tensor:
        parts = [self._head(["logits"], {"hidden": h.numpy()})[0] for h in hidden.split(list(sizes))]
        return torch.from_numpy(np.concatenate(parts))

    def _one(self, row: TextRow, align: bool) -> Tensor:
        n, start = len(row.tokens), row.start
        x = F.embedding(torch.tensor(row.tokens), self._tokens) + self._places[start : start + n]
        held, heard = row.past[0].k.shape[1], row.audio[0].k.shape[1]
        mask = np.empty((n, held + n), np.float32)
        mask[:, :held] = _mask(held, 0, start)
        mask[:, held:] = np.triu(np.full((n, n), -np.inf, np.float32), 1)
        feed: dict[str, Any] = {
            "x": x.numpy(),
            "mask": mask[None],
            "audio_mask": _mask(heard, row.audio_begin, row.audio_end)[None, None],
            "sizes": np.array([held, n], np.int64),
        }
        for i, (kv, audio) in enumerate(zip(row.past, row.audio, strict=True)):
            feed[f"k{i}"], feed[f"v{i}"] = kv.k.numpy(), kv.v.numpy()
            feed[f"audio_k{i}"], feed[f"audio_v{i}"] = audio.k.numpy(), audio.v.numpy()
        out = self._body([*self._names, *(self._aligned if align else [])], feed)
        for i, kv in enumerate(row.past):
            kv.put(torch.from_numpy(out[1 + 2 * i]), torch.from_numpy(out[2 + 2 * i]), start)
        if align:
            for weights in out[len(self._names) :]:
                row.attention.append(torch.from_numpy(weights)[..., row.audio_begin : row.audio_end])
        return torch.from_numpy(out[0])


class OrtWhisper:
    """A `CausalWhisper` on onnxruntime, fp32 or int8. It holds its own weights: the one it is made of may go."""

    def __init__(self, model: CausalWhisper, int8: str = "none") -> None:
        """`int8`: none, head (the output layer) or all. Raises: ModuleNotFoundError without the package `onnx`."""
        if int8 not in ("none", "head", "all"):
            raise ValueError(f"int8 {int8!r} is not possible; accepted: none, head, all")
        self.dims = model.dims
        self.encoder = OrtEncoder(model, int8=int8 == "all")
        self.decoder = OrtDecoder(model, int8=int8 == "all", int8_head=int8 != "none")
        self.like = torch.zeros(1)
