"""A stream as bytes and back: to move it to another process or machine that has the same weights."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .attention_kv import KvBuffer
from .causal_whisper import EncoderState
from .local_optimality import Hypothesis
from .whisper_stream import WhisperStream, WhisperStreamer
from .whisper_window import NextWindow
from .window_seam import Said, Seam


def dump(stream: WhisperStream) -> bytes:
    """safetensors: the filled part of each buffer, and the rest as JSON in one tensor of bytes."""
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {
        "beams": [asdict(b) for b in stream.beams],
        "said": [asdict(w) for w in stream.said],
        "origin": stream.origin,
        "worded": stream.worded,
        "last_end": stream.last_end,
        "now": _keep(tensors, "", stream.encoder, stream.cross),
        "next": None,
    }
    _buffers(tensors, "past", stream.past)
    if stream.history is not None:
        tensors["history"] = stream.history[:, : 2 * stream.encoder.at].contiguous().clone()
    if stream.next is not None:
        facts["next"] = _keep(tensors, "next.", stream.next.encoder, stream.next.cross)
        facts["seam"] = asdict(stream.next.seam)
    tensors["facts"] = torch.frombuffer(bytearray(json.dumps(facts).encode()), dtype=torch.uint8)
    return save(tensors)


def restore(data: bytes, streamer: WhisperStreamer) -> WhisperStream:
    """The stream of `dump`. Raises: ValueError when it is damaged or of another model's shape."""
    try:
        tensors = load(data)
        facts: dict[str, Any] = json.loads(tensors.pop("facts").numpy().tobytes())
    except (SafetensorError, KeyError, json.JSONDecodeError) as e:
        raise ValueError(f"the snapshot is damaged ({e})") from e
    stream = streamer.start(facts["origin"])
    _take(tensors, "", stream.encoder, stream.cross, facts["now"])
    _refill(tensors, "past", stream.past)
    if stream.history is not None:
        history = tensors["history"]
        stream.history[:, : history.shape[1]] = history.to(stream.history)
    stream.beams = [Hypothesis(**b) for b in facts["beams"]]
    stream.said = [Said(**w) for w in facts["said"]]
    stream.worded, stream.last_end = facts["worded"], facts["last_end"]
    if facts["next"] is not None:
        fresh = streamer.start()
        stream.next = NextWindow(fresh.encoder, fresh.cross, Seam(**facts["seam"]))
        _take(tensors, "next.", fresh.encoder, fresh.cross, facts["next"])
    return stream


def _keep(
    tensors: dict[str, Tensor], name: str, encoder: EncoderState, cross: list[KvBuffer]
) -> dict[str, Any]:
    tensors[f"{name}queue"] = encoder.queue.frames.contiguous().clone()
    _buffers(tensors, f"{name}encoder", encoder.layers)
    _buffers(tensors, f"{name}cross", cross)
    return {"at": encoder.at, "first": encoder.queue.first}


def _take(
    tensors: dict[str, Tensor], name: str, encoder: EncoderState, cross: list[KvBuffer], facts: dict[str, Any]
) -> None:
    encoder.queue.frames = tensors[f"{name}queue"].to(encoder.queue.frames)
    encoder.queue.first, encoder.at = facts["first"], facts["at"]
    _refill(tensors, f"{name}encoder", encoder.layers)
    _refill(tensors, f"{name}cross", cross)


def _buffers(tensors: dict[str, Tensor], name: str, buffers: list[KvBuffer]) -> None:
    for i, kv in enumerate(buffers):
        tensors[f"{name}.{i}.k"] = kv.k[:, : kv.fill].contiguous().clone()
        tensors[f"{name}.{i}.v"] = kv.v[:, : kv.fill].contiguous().clone()


def _refill(tensors: dict[str, Tensor], name: str, buffers: list[KvBuffer]) -> None:
    for i, kv in enumerate(buffers):
        _fill(kv, tensors.get(f"{name}.{i}.k"), tensors.get(f"{name}.{i}.v"))


def _fill(kv: KvBuffer, k: Tensor | None, v: Tensor | None) -> None:
    if (
        k is None
        or v is None
        or k.shape != v.shape
        or k.shape[::2] != kv.k.shape[::2]
        or k.shape[1] > kv.capacity
    ):
        raise ValueError(
            f"the snapshot is of another model: a buffer has shape {None if k is None else tuple(k.shape)}, "
            f"this model's {tuple(kv.k.shape)}"
        )
    kv.put(k.to(kv.k), v.to(kv.v), 0)
    kv.advance(k.shape[1])
