"""The live picture models by name. Weights are loaded once a process and shared by all streams."""

from __future__ import annotations

import threading
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from .restyle_ort import OrtForward
from .stream_model import StreamModel
from .tiny_restyle import WEIGHTS, TinyRestyle, load_net

Engine = Literal["auto", "torch", "onnx"]
Precision = Literal["auto", "fp32", "bf16"]

NAMES = ("tiny-restyle",)

_loading = threading.Lock()  # two sessions that start together must not both load


def best_device() -> str:
    """`cuda` where there is one, else `cpu`."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def has_fast_bf16(device: str) -> bool:
    """Whether bf16 is computed in hardware. Emulated on a CPU it is four times slower than fp32."""
    if device != "cpu":
        return True
    cpu: Any = torch.cpu
    return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())


def check(name: str) -> None:
    """Raises: ValueError when there is no model of this name."""
    if name not in NAMES:
        raise ValueError(f"unknown model {name!r}; there are: {', '.join(NAMES)}")


def load(
    name: str,
    weights: Path | None = None,
    *,
    engine: Engine = "auto",
    device: str = "auto",
    precision: Precision = "auto",
) -> StreamModel[Any, Any, Any]:
    """The model, loaded when first asked for. Blocks for a second or so.

    Raises: ValueError for an unknown name or a combination that does not exist; BadCheckpoint, which is one.
    """
    check(name)
    device = best_device() if device == "auto" else device
    if precision == "auto":
        precision = "bf16" if engine != "onnx" and has_fast_bf16(device) else "fp32"
    if engine == "auto":
        engine = "onnx" if device == "cpu" and precision == "fp32" else "torch"
    if engine == "onnx" and (device != "cpu" or precision != "fp32"):
        raise ValueError(f"engine onnx runs fp32 on the cpu, not {precision} on {device}; engine torch does")
    with _loading:
        return _load(weights or WEIGHTS, engine, device, precision)


@lru_cache(maxsize=8)
def _load(weights: Path, engine: Engine, device: str, precision: Precision) -> TinyRestyle:
    net = load_net(weights)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    forward = OrtForward(net) if engine == "onnx" else None
    return TinyRestyle(net, device=device, dtype=dtype, forward=forward)
