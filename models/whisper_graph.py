"""Causal Whisper as ONNX graphs, written from its weights: four of them, each over the rows of some streams.

| graph | in | out |
|---|---|---|
| encoder | mel windows, positions; of each stream keys and values so far | states, new keys and values |
| hear | states | cross-attention keys and values of all decoder layers |
| body | embedded tokens; of each stream keys and values so far, cross ones | hidden states, new keys and values, attention |
| head | hidden states | logits |

What has weights is done for all rows at once, attention stream by stream (`lanes` of them, some of which may be empty).
Keys and values come as they lie in memory, (H, A, Dh), unfilled positions and all, and a mask says which count: that
costs some arithmetic and saves a copy of megabytes a step. What is new is attended to beside them.

int8: symmetric weights, one scale an output; activations are quantised as they come, row by row, so a row does not depend
on the strangers beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from .attention_kv import Attention, Block
from .causal_whisper import CausalWhisper

Array = NDArray[Any]
_MS = "com.microsoft"
_OPSET, _IR = 17, 9


def upper(layers: int) -> list[int]:
    """The decoder layers whose attention tells word times."""
    return [i for i in range(layers) if 2 * i >= layers - 1]


@dataclass(frozen=True, slots=True)
class Lane:
    """One stream's inputs of a graph, by name."""

    name: str  # what its inputs' names end with
    mask: str  # (…, A + n)
    sizes: str  # [A, n]
    audio_mask: str = ""  # (1, 1, S)


class Graph:
    """An ONNX graph in the making; every method returns the name of what it makes."""

    def __init__(self, name: str) -> None:
        """Raises: ModuleNotFoundError without the package `onnx`."""
        from onnx import TensorProto, helper, numpy_helper

        self._helper: Any = helper
        self._array: Any = numpy_helper.from_array
        self._float: int = TensorProto.FLOAT
        self._name = name
        self._nodes: list[Any] = []
        self._weights: list[Any] = []
        self._in: list[Any] = []
        self._out: list[Any] = []

    def input(self, name: str, shape: list[int | str], integer: bool = False) -> str:
        kind = self._float if not integer else 7  # TensorProto.INT64
        self._in.append(self._helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, value: str, name: str, rank: int) -> None:
        self.op("Identity", value, to=name)
        self._out.append(self._helper.make_tensor_value_info(name, self._float, [None] * rank))

    def weight(self, value: Tensor | Array) -> str:
        name = f"w{len(self._weights)}"
        array = value.detach().float().cpu().numpy() if isinstance(value, Tensor) else value
        self._weights.append(self._array(np.ascontiguousarray(array), name))
        return name

    def op(self, kind: str, *inputs: str, to: str = "", outs: int = 1, domain: str = "", **more: Any) -> Any:
        names = [
            to or f"t{len(self._nodes)}" if outs == 1 else f"t{len(self._nodes)}_{i}" for i in range(outs)
        ]
        self._nodes.append(self._helper.make_node(kind, list(inputs), names, domain=domain, **more))
        return names[0] if outs == 1 else names

    def bytes(self) -> bytes:
        graph = self._helper.make_graph(self._nodes, self._name, self._in, self._out, self._weights)
        opsets = [self._helper.make_opsetid("", _OPSET), self._helper.make_opsetid(_MS, 1)]
        model = self._helper.make_model(graph, opset_imports=opsets, ir_version=_IR)
        return bytes(model.SerializeToString())

    # ------------------------------------------------------------ layers

    def linear(self, x: str, weight: Tensor, bias: Tensor | None, *, int8: bool) -> str:
        """(…, In) → (…, Out); weight (Out, In) as in torch."""
        w = weight.detach().float().cpu().numpy()
        if not int8:
            y = self.op("MatMul", x, self.weight(w.T))
            return y if bias is None else self.op("Add", y, self.weight(bias))
        scale = np.maximum(np.abs(w).max(1), 1e-8).astype(np.float32) / np.float32(127)
        q = np.round(w / scale[:, None]).astype(np.int8).T
        one, middle = self.weight(np.array(1, np.float32)), self.weight(np.array(128, np.uint8))
        peak = self.op("ReduceMax", self.op("Abs", x), axes=[-1], keepdims=1)
        step = self.op("Max", self.op("Mul", peak, self.weight(np.array(1 / 127, np.float32))), self._least())
        rounded = self.op("QuantizeLinear", self.op("Div", x, step), one, middle)
        y = self.op(
            "MatMulIntegerToFloat", rounded, self.weight(q), one, self.weight(scale), middle, domain=_MS
        )
        y = self.op("Mul", y, step)
        return y if bias is None else self.op("Add", y, self.weight(bias))

    def _least(self) -> str:
        """A step of a row that is all zeros."""
        return self.weight(np.array(1e-8, np.float32))

    def norm(self, x: str, layer: nn.LayerNorm) -> str:
        return self.op(
            "LayerNormalization",
            x,
            self.weight(layer.weight),
            self.weight(layer.bias),
            axis=-1,
            epsilon=layer.eps,
        )

    def gelu(self, x: str) -> str:
        return self.op("Gelu", x, domain=_MS)

    def heads(self, x: str, count: int) -> str:
        """(n, D) → (H, n, Dh)."""
        apart = self.op("Reshape", x, self.weight(np.array([0, count, -1], np.int64)))
        return self.op("Transpose", apart, perm=[1, 0, 2])

    def together(self, x: str, width: int) -> str:
        """(H, n, Dh) → (n, D)."""
        turned = self.op("Transpose", x, perm=[1, 0, 2])
        return self.op("Reshape", turned, self.weight(np.array([0, width], np.int64)))

    def mlp(self, x: str, block: Block, *, int8: bool) -> str:
        wide, narrow = block.mlp[0], block.mlp[2]
        assert isinstance(wide, nn.Linear)
        assert isinstance(narrow, nn.Linear)
        h = self.norm(x, block.mlp_ln)
        h = self.gelu(self.linear(h, wide.weight, wide.bias, int8=int8))
        return self.op("Add", x, self.linear(h, narrow.weight, narrow.bias, int8=int8))

    def apart(self, x: str, lanes: Sequence[Lane], axis: int) -> list[str]:
        """Rows of all lanes → each lane's."""
        if len(lanes) == 1:
            return [x]
        return self.op("Split", x, "rows", outs=len(lanes), axis=axis)

    def joined(self, parts: list[str]) -> str:
        """(H, n, Dh) of each lane → (H, N, Dh)."""
        return parts[0] if len(parts) == 1 else self.op("Concat", *parts, axis=1)

    def lanes(self, count: int, names: Callable[[str], Lane]) -> list[Lane]:
        """Inputs of each lane, and how many rows each has."""
        if count > 1:
            self.input("rows", [count], integer=True)
        return [names(f"_{i}") for i in range(count)]

    def self_attention(self, x: str, block: Block, index: int, lanes: Sequence[Lane], *, int8: bool) -> str:
        """Over keys and values so far and the new ones."""
        attn, width, count = block.attn, block.attn.query.in_features, block.attn.heads
        h = self.norm(x, block.attn_ln)
        q, k, v = self._projected(h, attn, int8=int8)
        self.output(k, f"new_k{index}", 3)
        self.output(v, f"new_v{index}", 3)
        sums: list[str] = []
        parts = [self.apart(part, lanes, 1) for part in (q, k, v)]
        for lane, q1, k1, v1 in zip(lanes, *parts, strict=True):
            dims: list[int | str] = [count, f"a{index}{lane.name}", width // count]
            past_k, past_v = (
                self.input(f"k{index}{lane.name}", dims),
                self.input(f"v{index}{lane.name}", dims),
            )
            before = self.op("FusedMatMul", q1, past_k, domain=_MS, transB=1)
            now = self.op("FusedMatMul", q1, k1, domain=_MS, transB=1)
            logits = self.op("Add", self.op("Concat", before, now, axis=2), lane.mask)
            p, r = self.op("Split", self.op("Softmax", logits, axis=-1), lane.sizes, outs=2, axis=2)
            sums.append(self.op("Add", self.op("MatMul", p, past_v), self.op("MatMul", r, v1)))
        y = self.together(self.joined(sums), width)
        return self.op("Add", x, self.linear(y, attn.out.weight, attn.out.bias, int8=int8))

    def cross_attention(
        self, x: str, block: Block, index: int, lanes: Sequence[Lane], *, int8: bool
    ) -> tuple[str, list[str]]:
        """Over the audio's keys and values, (H, A, Dh) → (sum, each lane's attention)."""
        attn = block.cross_attn
        assert attn is not None
        assert block.cross_attn_ln is not None
        width, count = attn.query.in_features, attn.heads
        scale = 1 / math.sqrt(width // count)
        h = self.norm(x, block.cross_attn_ln)
        q = self.heads(self.linear(h, attn.query.weight * scale, attn.query.bias * scale, int8=int8), count)
        sums: list[str] = []
        spreads: list[str] = []
        for lane, q1 in zip(lanes, self.apart(q, lanes, 1), strict=True):
            dims: list[int | str] = [count, f"s{index}{lane.name}", width // count]
            k, v = (
                self.input(f"audio_k{index}{lane.name}", dims),
                self.input(f"audio_v{index}{lane.name}", dims),
            )
            logits = self.op("FusedMatMul", q1, k, domain=_MS, transB=1)
            spreads.append(self.op("Softmax", self.op("Add", logits, lane.audio_mask), axis=-1))
            sums.append(self.op("MatMul", spreads[-1], v))
        y = self.linear(self.together(self.joined(sums), width), attn.out.weight, attn.out.bias, int8=int8)
        return self.op("Add", x, y), spreads

    def _projected(self, h: str, attn: Attention, *, int8: bool) -> list[str]:
        """Scaled query, key and value, (H, n, Dh) each, by one product."""
        import torch

        scale = 1 / math.sqrt(attn.query.in_features // attn.heads)
        q, k, v = attn.query, attn.key, attn.value
        weight = torch.cat([q.weight * scale, k.weight, v.weight])
        bias = torch.cat([q.bias * scale, torch.zeros_like(v.bias), v.bias])
        parts = self.op("Split", self.linear(h, weight, bias, int8=int8), outs=3, axis=-1)
        return [self.heads(part, attn.heads) for part in parts]


def encoder(model: CausalWhisper, *, int8: bool, lanes: int = 1) -> bytes:
    """See the table above."""
    dims, net = model.dims, model.encoder
    g = Graph("encoder")
    window = g.input("window", ["b", dims.n_mels, "m"])
    edge = g.input("edge", ["b", 1, "c"])  # 0 in the first column at the start of a stream, else 1
    places = g.input("places", ["n", dims.n_audio_state])

    def lane(name: str) -> Lane:
        mask = g.input(f"mask{name}", [1, 1, f"all{name}"])
        return Lane(name, mask, g.input(f"sizes{name}", [2], integer=True))

    streams = g.lanes(lanes, lane)
    bias1, bias2 = net.conv1.bias, net.conv2.bias
    assert bias1 is not None
    assert bias2 is not None
    x = g.op("Conv", window, g.weight(net.conv1.weight), g.weight(bias1), kernel_shape=[3])
    x = g.op("Mul", g.gelu(x), edge)
    x = g.op("Conv", x, g.weight(net.conv2.weight), g.weight(bias2), kernel_shape=[3], strides=[2])
    x = g.op("Transpose", g.gelu(x), perm=[0, 2, 1])
    x = g.op("Reshape", x, g.weight(np.array([-1, dims.n_audio_state], np.int64)))
    x = g.op("Add", x, places)
    for index, block in enumerate(net.blocks):
        assert isinstance(block, Block)
        x = g.mlp(g.self_attention(x, block, index, streams, int8=int8), block, int8=int8)
    g.output(g.norm(x, net.ln_post), "states", 2)
    return g.bytes()


def hear(model: CausalWhisper, *, int8: bool) -> bytes:
    """All layers by one product: (n, D) → (2·L, H, n, Dh), keys and values in turn."""
    import torch

    dims = model.dims
    weights: list[Tensor] = []
    biases: list[Tensor] = []
    for block in model.decoder.blocks:
        assert isinstance(block, Block)
        assert block.cross_attn is not None
        weights += [block.cross_attn.key.weight, block.cross_attn.value.weight]
        biases += [torch.zeros_like(block.cross_attn.value.bias), block.cross_attn.value.bias]
    g = Graph("hear")
    x = g.linear(
        g.input("states", ["n", dims.n_audio_state]), torch.cat(weights), torch.cat(biases), int8=int8
    )
    shape = np.array([0, len(weights), dims.n_text_head, -1], np.int64)
    g.output(g.op("Transpose", g.op("Reshape", x, g.weight(shape)), perm=[1, 2, 0, 3]), "audio", 4)
    return g.bytes()


def body(model: CausalWhisper, *, int8: bool, lanes: int = 1) -> bytes:
    """See the table above."""
    dims = model.dims
    g = Graph("body")
    x = g.input("x", ["n", dims.n_text_state])

    def lane(name: str) -> Lane:
        mask = g.input(f"mask{name}", [1, f"n{name}", f"all{name}"])
        audio_mask = g.input(f"audio_mask{name}", [1, 1, f"audio{name}"])
        return Lane(name, mask, g.input(f"sizes{name}", [2], integer=True), audio_mask)

    streams = g.lanes(lanes, lane)
    aligned = upper(dims.n_text_layer)
    for index, block in enumerate(model.decoder.blocks):
        assert isinstance(block, Block)
        x = g.self_attention(x, block, index, streams, int8=int8)
        x, spreads = g.cross_attention(x, block, index, streams, int8=int8)
        if index in aligned:
            for stream, spread in zip(streams, spreads, strict=True):
                g.output(spread, f"attention{index}{stream.name}", 3)
        x = g.mlp(x, block, int8=int8)
    g.output(g.norm(x, model.decoder.ln), "hidden", 2)
    return g.bytes()


def head(model: CausalWhisper, *, int8: bool) -> bytes:
    """See the table above."""
    g = Graph("head")
    x = g.input("hidden", ["r", model.dims.n_text_state])
    g.output(g.linear(x, model.decoder.token_embedding.weight, None, int8=int8), "logits", 2)
    return g.bytes()
