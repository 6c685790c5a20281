"""A rolling cache as bytes and back: to move a session to another process, or to wake it up later.

safetensors holds what is visible and the pristine prefix; free slots are left out.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from .ring_kv import Segment
from .rolling_kv import RollingKv

_FORMAT = "penstock-kv-1"


def snapshot(cache: RollingKv) -> bytes:
    """All of the cache's state."""
    tensors: dict[str, torch.Tensor] = {}
    for i, layer in enumerate(cache.layers):
        if layer.ready:
            keys, values = layer.window()
            tensors[f"window.{i}.k"], tensors[f"window.{i}.v"] = keys.contiguous(), values.contiguous()
    for i, (keys, values) in enumerate(cache.pristine):
        tensors[f"prefix.{i}.k"], tensors[f"prefix.{i}.v"] = keys.contiguous(), values.contiguous()
    state = {
        "format": _FORMAT,
        "prefix": [asdict(s) for s in cache.prefix],
        "window": [asdict(s) for s in cache.window],
        "next_position": cache.next_position,
        "layers": len(cache.layers),
    }
    tensors["state"] = torch.frombuffer(bytearray(json.dumps(state).encode()), dtype=torch.uint8)
    return save(tensors)


def restore(cache: RollingKv, data: bytes) -> None:
    """Put a snapshot's state in place of the cache's own.

    Raises: ValueError when the bytes are no snapshot, or of a larger or another cache.
    """
    tensors, state = _read(data)
    if state["layers"] != len(cache.layers):
        raise ValueError(f"a snapshot of {state['layers']} layers for a cache of {len(cache.layers)}")
    prefix = [Segment(**s) for s in state["prefix"]]
    window = [Segment(**s) for s in state["window"]]
    total = sum(s.tokens for s in prefix + window)
    if total > cache.budget.tokens:
        raise ValueError(f"a snapshot of {total} tokens for a budget of {cache.budget.tokens}")
    held = sum(s.tokens for s in prefix)
    device = cache.layers[0].key_buffer.device
    cache.prefix, cache.window, cache.next_position = prefix, window, state["next_position"]
    cache.pristine = []
    for i, layer in enumerate(cache.layers):
        layer.lo = layer.w0 = layer.w1 = held
        keys, values = tensors.get(f"window.{i}.k"), tensors.get(f"window.{i}.v")
        if keys is not None and values is not None:
            layer.append(keys.to(device), values.to(device))
        if held:
            cache.pristine.append((tensors[f"prefix.{i}.k"].to(device), tensors[f"prefix.{i}.v"].to(device)))
    cache.stamp()


def _read(data: bytes) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    try:
        tensors = load(data)
        state = json.loads(bytes(tensors.pop("state").tolist()))
    except (SafetensorError, KeyError, ValueError) as e:
        raise ValueError(f"these {len(data)} bytes are no snapshot of a rolling cache: {e}") from e
    if not isinstance(state, dict) or state.get("format") != _FORMAT:
        raise ValueError(f"a snapshot of another format; this version reads {_FORMAT!r}")
    return tensors, state
