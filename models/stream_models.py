"""The live picture models by name. Weights are loaded once a process and shared by all streams.

A name is `tiny-restyle`, which comes with Penstock, one of `registry.py`'s checkpoints, or the path of a folder in
diffusers' layout: `unet/` makes it a StreamBatch (SD-Turbo, LCM), `transformer/` a causal Wan.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch

from . import registry
from .devices import pick
from .restyle_ort import OrtForward
from .stream_model import StreamModel
from .tiny_restyle import WEIGHTS, TinyRestyle, load_net

Engine = Literal["auto", "torch", "onnx"]
Precision = Literal["auto", "fp32", "bf16"]
Guidance = Literal["self", "onetime", "full"]

EMBEDDED = "tiny-restyle"

_loading = threading.Lock()  # two sessions that start together must not both load


@dataclass(frozen=True, slots=True)
class How:
    """How to run a model; what one does not have is ignored."""

    engine: Engine = "auto"
    device: str = "auto"
    precision: Precision = "auto"
    guidance: Guidance = "self"
    window: int = 6  # latent frames, with the sink
    sink: int = 1
    compiled: bool = False


def has_fast_bf16(device: str) -> bool:
    """Whether bf16 is computed in hardware. Emulated on a CPU it is four times slower than fp32."""
    if device != "cpu":
        return True
    cpu: Any = torch.cpu
    return bool(cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported())


def names() -> tuple[str, ...]:
    """What `load` knows by name."""
    return (EMBEDDED, *(card.name for card in registry.cards().values() if card.stage == "diffusion.stream"))


def check(name: str) -> None:
    """Raises: ValueError when there is no model of this name, nor a folder at this path."""
    if name in names():
        return
    if "/" not in name and not name.startswith(("~", ".")):
        raise ValueError(
            f"unknown model {name!r:.80}; there are: {', '.join(names())}; or the path of a folder"
        )
    if not Path(name).expanduser().is_dir():
        raise ValueError(f"model {name!r}: there is no such folder")


def load(name: str, weights: Path | None = None, how: How = How()) -> StreamModel[Any, Any, Any]:
    """The model, loaded when first asked for. Blocks: a second for the embedded one, minutes for large ones.

    weights: another file (tiny-restyle) or folder. Raises: ValueError for an unknown name, a combination that does not
    exist, a checkpoint that is not here, is broken or holds something else, and without the extra `hub`.
    """
    check(name)
    device = pick(how.device)
    precision = how.precision
    if precision == "auto":
        precision = "bf16" if how.engine != "onnx" and has_fast_bf16(device) else "fp32"
    with _loading:
        if name == EMBEDDED:
            return _restyle(weights or WEIGHTS, _engine(how.engine, device, precision), device, precision)
        if how.engine == "onnx":
            raise ValueError(f"model {name!r} has no engine onnx; engine torch runs it")
        folder = weights or (registry.path(name) if name in names() else Path(name).expanduser())
        return _large(folder, replace(how, device=device, precision=precision))


def _engine(engine: Engine, device: str, precision: Precision) -> Engine:
    if engine == "auto":
        return "onnx" if device == "cpu" and precision == "fp32" else "torch"
    if engine == "onnx" and (device != "cpu" or precision != "fp32"):
        raise ValueError(f"engine onnx runs fp32 on the cpu, not {precision} on {device}; engine torch does")
    return engine


@lru_cache(maxsize=8)
def _restyle(weights: Path, engine: Engine, device: str, precision: Precision) -> TinyRestyle:
    net = load_net(weights)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    forward = OrtForward(net) if engine == "onnx" else None
    return TinyRestyle(net, device=device, dtype=dtype, forward=forward)


@lru_cache(maxsize=4)
def _large(folder: Path, how: How) -> StreamModel[Any, Any, Any]:
    dtype = torch.bfloat16 if how.precision == "bf16" else torch.float32
    try:
        if (folder / "unet").is_dir():
            from .stream_batch import load_stream_batch

            return load_stream_batch(
                folder, device=how.device, dtype=dtype, guidance=how.guidance, compiled=how.compiled
            )
        if (folder / "transformer").is_dir():
            from .wan_load import load_wan_video

            return load_wan_video(
                folder,
                device=how.device,
                dtype=dtype,
                window=how.window,
                sink=how.sink,
                compiled=how.compiled,
            )
    except ModuleNotFoundError as e:
        raise ValueError(f"{folder.name} needs the package {e.name!r}: pip install 'penstock[hub]'") from e
    raise ValueError(
        f"{folder} holds no model: neither unet/ (SD-Turbo, LCM) nor transformer/ (Wan) is there"
    )
