"""Causal Whisper on onnxruntime: on CPUs the quickest way to run it, most of all with int8 weights.

The same interface as `causal_whisper`, the same state: a stream can be moved from one engine to the other. Streams of
one forward go four at a time, the last ones alone or beside empty lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from . import whisper_graph
from .attention_kv import KvBuffer
from .causal_whisper import CausalWhisper, EncoderState, TextRow, advanced, fresh_cache, fresh_state
from .onnx_session import cpu_session
from .whisper_dims import BlockPlan

Floats = NDArray[np.float32]
_LANES = 4  # streams that share a run: more share little more, as attention is each one's own


def _mask(total: int, begin: int, end: int) -> Floats:
    """(total,) 0 where [begin, end) counts, else −∞."""
    mask = np.full(total, -np.inf, np.float32)
    mask[begin:end] = 0
    return mask


class _Lanes:
    """A graph for one stream and the same for `_LANES`."""

    def __init__(self, graph: Callable[[int], bytes]) -> None:
        self._alone, self._shared = cpu_session(graph(1)).run, cpu_session(graph(_LANES)).run

    def groups(self, count: int) -> list[range]:
        """Which of `count` streams go together."""
        return [range(i, min(i + _LANES, count)) for i in range(0, count, _LANES)]

    def run(
        self, rows: Sequence[int], outputs: list[str], feeds: list[dict[str, Any]], feed: dict[str, Any]
    ) -> Any:
        """feed: of all streams; feeds: each one's, named without their lane. Missing lanes are given empty ones."""
        if len(feeds) == 1:
            feed |= {f"{name}_0": value for name, value in feeds[0].items()}
            return self._alone(outputs, feed)
        held = int(feeds[0]["sizes"][0])  # an empty lane: any keys and values, and no row that looks at them
        empty = feeds[0] | {
            "mask": np.zeros((1, 1, held), np.float32),
            "sizes": np.array([held, 0], np.int64),
        }
        feed["rows"] = np.array([*rows, *[0] * (_LANES - len(rows))], np.int64)
        for lane in range(_LANES):
            one = feeds[lane] if lane < len(feeds) else empty
            feed |= {f"{name}_{lane}": value for name, value in one.items()}
        return self._shared(outputs, feed)


class OrtEncoder:
    """As `causal_whisper.Encoder`, without `forward`."""

    def __init__(self, model: CausalWhisper, *, int8: bool) -> None:
        self.dims = model.dims
        self._positions = model.encoder.positional_embedding.numpy()
        self._lanes = _Lanes(lambda lanes: whisper_graph.encoder(model, int8=int8, lanes=lanes))
        layers = range(model.dims.n_audio_layer)
        self._names = ["states", *(f"new_{kv}{i}" for i in layers for kv in "kv")]
        self._like = torch.zeros(1)

    def start(self, plan: BlockPlan) -> EncoderState:
        return fresh_state(self.dims, plan, self._like)

    def step(self, states: Sequence[EncoderState], n: int, plan: BlockPlan) -> Tensor:
        groups = self._lanes.groups(len(states))
        return torch.cat([self._group([states[i] for i in rows], n, plan) for rows in groups])

    def commit(self, state: EncoderState, n: int, plan: BlockPlan) -> None:
        advanced(state, n, plan)

    def _group(self, states: Sequence[EncoderState], n: int, plan: BlockPlan) -> Tensor:
        edge = np.ones((len(states), 1, 2 * n + 1), np.float32)
        windows: list[Tensor] = []
        places: list[Floats] = []
        feeds: list[dict[str, Any]] = []
        for i, state in enumerate(states):
            windows.append(state.queue.window(n, plan.lookahead))
            if state.queue.first:
                edge[i, :, 0] = 0
            places.append(self._positions[np.arange(state.at, state.at + n) % len(self._positions)])
            fill, held = state.layers[0].fill, state.layers[0].k.shape[1]
            mask = _mask(held + n, 0 if plan.left is None else max(0, fill - plan.left), fill)
            mask[held:] = 0
            feed: dict[str, Any] = {"mask": mask[None, None], "sizes": np.array([held, n], np.int64)}
            for layer, kv in enumerate(state.layers):
                feed[f"k{layer}"], feed[f"v{layer}"] = kv.k.numpy(), kv.v.numpy()
            feeds.append(feed)
        whole = {"window": torch.stack(windows).numpy(), "edge": edge, "places": np.concatenate(places)}
        out = self._lanes.run([n] * len(states), self._names, feeds, whole)
        for i, state in enumerate(states):
            for layer, kv in enumerate(state.layers):
                k, v = (torch.from_numpy(x[:, i * n : i * n + n]) for x in out[1 + 2 * layer : 3 + 2 * layer])
                kv.put(k, v, kv.fill)
        return torch.from_numpy(out[0]).unflatten(0, (len(states), n))


class OrtDecoder:
    """As `causal_whisper.Decoder`, without `forward`."""

    def __init__(self, model: CausalWhisper, *, int8: bool, int8_head: bool) -> None:
        self.dims = model.dims
        self._tokens = model.decoder.token_embedding.weight.detach().float()
        self._places = model.decoder.positional_embedding.detach().float()
        self._hear = cpu_session(whisper_graph.hear(model, int8=int8)).run
        self._lanes = _Lanes(lambda lanes: whisper_graph.body(model, int8=int8, lanes=lanes))
        self._head = cpu_session(whisper_graph.head(model, int8=int8_head)).run
        layers = range(model.dims.n_text_layer)
        self._names = ["hidden", *(f"new_{kv}{i}" for i in layers for kv in "kv")]
        self._aligned = [f"attention{i}" for i in whisper_graph.upper(model.dims.n_text_layer)]
        self._like = torch.zeros(1)

    def start(self, capacity: int) -> list[KvBuffer]:
        return fresh_cache(self.dims, capacity, self._like)

    def hear(self, audio: Tensor, caches: Sequence[list[KvBuffer]]) -> None:
        n = audio.shape[1]
        new = torch.from_numpy(self._hear(["audio"], {"states": audio.flatten(0, 1).numpy()})[0])
        for r, cache in enumerate(caches):
            mine = new[:, :, r * n : r * n + n]  # (2·L, H, n, Dh)
            for i, kv in enumerate(cache):
                kv.put(mine[2 * i], mine[2 * i + 1], kv.fill)

    def step(self, rows: Sequence[TextRow], *, align: bool = False) -> Tensor:
        groups = self._lanes.groups(len(rows))
        return torch.cat([self._group([rows[i] for i in group], align) for group in groups])

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.from_numpy(self._head(["logits"], {"hidden": hidden.numpy()})[0])

    def _group(self, rows: Sequence[TextRow], align: bool) -> Tensor:
        counts = [len(row.tokens) for row in rows]
        ids = torch.tensor([t for row in rows for t in row.tokens])
        places = torch.cat([torch.arange(r.start, r.start + n) for r, n in zip(rows, counts, strict=True)])
        x = F.embedding(ids, self._tokens) + F.embedding(places, self._places)
        feeds: list[dict[str, Any]] = []
        for row, n in zip(rows, counts, strict=True):
            held, heard = row.past[0].k.shape[1], row.audio[0].k.shape[1]
            mask = np.empty((n, held + n), np.float32)
            mask[:, :held] = _mask(held, 0, row.start)
            mask[:, held:] = np.triu(np.full((n, n), -np.inf, np.float32), 1)
            feed: dict[str, Any] = {
                "mask": mask[None],
                "audio_mask": _mask(heard, row.audio_begin, row.audio_end)[None, None],
                "sizes": np.array([held, n], np.int64),
            }
            for i, (kv, audio) in enumerate(zip(row.past, row.audio, strict=True)):
                feed[f"k{i}"], feed[f"v{i}"] = kv.k.numpy(), kv.v.numpy()
                feed[f"audio_k{i}"], feed[f"audio_v{i}"] = audio.k.numpy(), audio.v.numpy()
            feeds.append(feed)
        aligned = [f"{name}_{i}" for i in range(len(rows)) for name in self._aligned] if align else []
        out = self._lanes.run(counts, [*self._names, *aligned], feeds, {"x": x.numpy()})
        at = 0
        for row, n in zip(rows, counts, strict=True):
            for i, kv in enumerate(row.past):
                k, v = (torch.from_numpy(y[:, at : at + n]) for y in out[1 + 2 * i : 3 + 2 * i])
                kv.put(k, v, row.start)
            at += n
        spreads = iter(out[len(self._names) :])
        for row in rows if align else ():
            for _ in self._aligned:
                row.attention.append(torch.from_numpy(next(spreads))[..., row.audio_begin : row.audio_end])
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
