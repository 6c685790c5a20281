"""Streams that a GPU carries: the most whose common block, in one forward, is done within a chunk."""

from __future__ import annotations

import time

import torch
from penstock.models.causal_whisper import CausalWhisper
from penstock.models.local_optimality import Hypothesis
from penstock.models.tokens import WordTokens
from penstock.models.whisper_dims import SIZES, BlockPlan
from penstock.models.whisper_stream import WhisperStreamer
from report import line

CHUNK = BlockPlan.of_ms(300)
FRAMES, TOKENS = 750, 50  # 15 s into a window, as people speak


def streams_per_device(size: str, device: str, most: int = 1024) -> dict[str, object]:
    """bf16 on a GPU, fp32 on a CPU (to try it): doubles the streams until a block takes longer than a chunk."""
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    dims = SIZES[size]
    model = CausalWhisper.random(dims).to(device, dtype)
    asr = WhisperStreamer(model, WordTokens([str(i) for i in range(dims.n_vocab - 2)]), CHUNK)
    asr.writer.new = 1  # a block's worth of speech; more would be noise
    best, ms_at_best, count = 0, 0.0, 8
    while count <= most:
        streams = [asr.start() for _ in range(count)]
        for stream in streams:
            for kv in [*stream.encoder.layers, *stream.cross]:
                shape = (kv.k.shape[0], FRAMES, kv.k.shape[2])
                kv.put(torch.randn(shape).to(kv.k), torch.randn(shape).to(kv.v), 0)
                kv.advance(FRAMES)
            stream.encoder.at = FRAMES
            stream.beams = [Hypothesis(list(range(TOKENS)), [0.0] * TOKENS, committed=TOKENS - 2)]
            stream.encoder.queue.push(torch.randn(80, 60).to(device))
        took: list[float] = []
        for i in range(5):
            begin = _now(device)
            heard = asr.forward(streams)
            took.append((_now(device) - begin) * 1000)
            if i == 0:  # from the second on, what is final is not read again
                for stream, h in zip(streams, heard, strict=True):
                    asr.writer.hold(stream.past, TOKENS - 4)
                    stream.beams = [b.fork() for b in h.beams]
        ms = max(took[2:])
        line(
            bench="device_step",
            shape=size,
            device=device,
            streams=count,
            ms=round(ms, 1),
            rows_in_one_forward=count,
        )
        if ms > CHUNK.chunk_ms:
            break
        best, ms_at_best, count = count, ms, count * 2
    figures: dict[str, object] = {"streams_per_gpu": best, "ms_at_that": round(ms_at_best, 1)}
    line(bench="device", shape=size, device=device, dtype=str(dtype), chunk_ms=CHUNK.chunk_ms, **figures)
    return figures


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
