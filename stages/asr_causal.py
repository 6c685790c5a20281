"""`asr.causal`: streaming speech recognition by a causal Whisper.

Without `model` it runs the fixture: 31 command words in one synthetic voice, for tests of the path. For people,
give a causal checkpoint (published ones are converted when they are first read) with its tokenizer.json.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from pydantic import Field

from ..models import whisper_loader
from ..models.asr_session import AsrRows
from ..models.causal_whisper import CausalWhisper
from ..models.devices import pick
from ..models.hub_folder import pulled
from ..models.whisper_dims import FRAME_MS, BlockPlan
from ..models.whisper_ort import OrtWhisper
from ..models.whisper_stream import WhisperStreamer
from .asr_stream import StreamedAsr

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class CausalAsr(StreamedAsr):
    """`asr_stream` on a causal Whisper."""

    class Options(StreamedAsr.Options):
        model: str = Field(
            default="fixture",
            description="fixture, a checkpoint's path, a hub id, or a name of `penstock models`",
        )
        language: str = Field(default="en", description="Of a multilingual checkpoint")
        chunk_ms: int | None = Field(
            default=None, ge=40, le=1000, description="Audio a step; the checkpoint's own"
        )
        left_ms: int | None = Field(
            default=None, ge=600, description="Bounded window, for weights trained for one"
        )
        engine: Literal["auto", "torch", "onnx"] = Field(
            default="auto",
            description="onnx is two times quicker on CPUs; auto takes it there when it is installed",
        )
        dtype: Literal["fp32", "bf16"] = "fp32"
        int8: Literal["none", "head", "all"] = Field(default="head", description="Which weights are int8")
        beams: int = Field(default=1, ge=1, le=16)

    async def load(self) -> tuple[str, AsrRows]:
        o = self.options
        key = (o.model, o.language, o.chunk_ms, o.left_ms, o.device, o.engine, o.dtype, o.int8, o.beams)
        return "asr.causal " + "/".join(map(str, key)), await self.ctx.pool().call(_load, *key)


@cache
def _load(
    model: str,
    language: str,
    chunk_ms: int | None,
    left_ms: int | None,
    device: str,
    engine: str,
    dtype: str,
    int8: str,
    beams: int,
) -> AsrRows:
    """One set of weights for all sessions with the same options. Raises: ValueError, FileNotFoundError."""
    source = str(whisper_loader.FIXTURE) if model == "fixture" else pulled(model, "asr.causal")
    if model == "fixture" and not whisper_loader.FIXTURE.is_file():
        raise FileNotFoundError(
            f"the fixture {whisper_loader.FIXTURE.name} has not been made: run python -m "
            "penstock.models.training.asr_fixture (minutes, needs libflite1), or name a checkpoint in 'model'"
        )
    checkpoint = whisper_loader.read(source)
    device = pick(device)
    plan = checkpoint.plan or BlockPlan()
    if chunk_ms is not None or left_ms is not None:
        first = plan.first * FRAME_MS
        plan = BlockPlan.of_ms(chunk_ms or plan.chunk_ms, first_ms=first, left_ms=left_ms)
    weights = _engine(checkpoint, engine, device, dtype, int8)
    words = whisper_loader.vocabulary(checkpoint, source, language)
    return AsrRows(WhisperStreamer(weights, words, plan, beams=beams))


def _engine(
    checkpoint: whisper_loader.Checkpoint, engine: str, device: str, dtype: str, int8: str
) -> CausalWhisper | OrtWhisper:
    """The weights on torch or onnxruntime. Raises: ValueError."""
    able = device == "cpu" and dtype == "fp32"
    if engine == "auto":
        engine = "onnx" if able and find_spec("onnx") is not None else "torch"
    if engine == "torch":
        return whisper_loader.build(checkpoint, device=device, dtype=_DTYPES[dtype], int8=int8)
    if not able:
        raise ValueError(
            f"engine onnx runs fp32 or int8 on the cpu, not {dtype} on {device}; use engine: torch"
        )
    if find_spec("onnx") is None:
        raise ValueError(
            "engine onnx needs the package onnx: pip install 'penstock[hub]', or use engine: torch"
        )
    return OrtWhisper(whisper_loader.build(checkpoint), int8)
