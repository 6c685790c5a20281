"""A function over rows at a few fixed batch sizes: what torch.compile and CUDA graphs need of a batch that varies.

Rows are filled up to the next size by repeating the last one. On a GPU each size is captured once as a CUDA graph with
buffers of its own and replayed after: a few-step model launches thousands of small kernels a picture, and the CPU would be
the slower half. Captures are made by hand: those that torch.compile makes belong to one thread, pools have several.

Source: PyTorch documentation, "CUDA semantics", CUDA Graphs (static inputs, warm-up on a side stream).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

SIZES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
WARM_UPS = 3  # before a capture: autotuning must not be captured

Fn = Callable[..., Tensor]


@dataclass(slots=True)
class _Captured:
    graph: Any  # torch.cuda.CUDAGraph
    inputs: tuple[Tensor, ...]
    output: Tensor


class StaticRows:
    """`fn(*tensors)` → one tensor; all have rows in their first axis. Any thread may call it; calls take turns."""

    def __init__(self, fn: Fn, *, sizes: Sequence[int] = SIZES, compiled: bool = False) -> None:
        """compiled: through torch.compile first; each size is compiled when it is first seen."""
        self._fn: Fn = torch.compile(fn, dynamic=False) if compiled else fn
        self._sizes = tuple(sorted(sizes))
        self._captured: dict[tuple[Any, ...], _Captured] = {}
        self._lock = threading.Lock()
        self.shapes: set[tuple[Any, ...]] = set()  # that have run: compiled, and on a GPU captured

    @torch.inference_mode()
    def __call__(self, *tensors: Tensor) -> Tensor:
        rows, most = len(tensors[0]), self._sizes[-1]
        if rows > most:
            parts = [self(*(t[i : i + most] for t in tensors)) for i in range(0, rows, most)]
            return torch.cat(parts)
        size = next(s for s in self._sizes if s >= rows)
        filled = tuple(_filled(t, size) for t in tensors)
        key = tuple((t.shape, t.dtype) for t in filled)  # not strides: inputs are copied into a capture's own
        with self._lock:
            output = self._replay(key, filled) if filled[0].is_cuda else self._fn(*filled)
            self.shapes.add(key)
            return output[:rows].clone()  # the buffer is written again by whoever comes next

    def warm(self, *example: Tensor, most: int) -> None:
        """Compile and capture all sizes that up to `most` rows may need; example: one row of each."""
        for size in self._sizes:
            self(*(_filled(t, size) for t in example))
            if size >= most:
                return

    def _replay(self, key: tuple[Any, ...], tensors: tuple[Tensor, ...]) -> Tensor:
        captured = self._captured.get(key)
        if captured is None:
            captured = self._captured[key] = self._capture(tensors)
        for held, new in zip(captured.inputs, tensors, strict=True):
            held.copy_(new)
        captured.graph.replay()
        return captured.output

    def _capture(self, tensors: tuple[Tensor, ...]) -> _Captured:
        inputs = tuple(t.clone() for t in tensors)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                self._fn(*inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # other threads go on allocating while this one captures
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            output = self._fn(*inputs)
        return _Captured(graph, inputs, output)


def _filled(x: Tensor, size: int) -> Tensor:
    """(n, …) → (size, …), the last row repeated."""
    missing = size - len(x)
    return x if missing <= 0 else torch.cat([x, x[-1:].expand(missing, *x.shape[1:])])
