"""Many listeners in one pool: their blocks share forwards, and each hears what it would hear alone."""

from __future__ import annotations

import asyncio

import numpy as np
import torch
from numpy.typing import NDArray
from penstock.models.asr_session import AsrEvent, AsrRows, AsrSession
from penstock.models.causal_whisper import CausalWhisper
from penstock.models.tokens import WordTokens
from penstock.models.whisper_dims import BlockPlan, WhisperDims
from penstock.models.whisper_stream import WhisperStreamer
from penstock.pipeline.clock import MS, SECOND
from penstock.pipeline.row_pool import RowPool
from penstock.pipeline.rows import ModelSpec, Row
from penstock.pipeline.virtual_loop import run_virtual
from penstock.stages.asr_stream import AsrRowModel
from row_models import virtual_pool

Pcm = NDArray[np.float32]
DIMS = WhisperDims(80, 200, 32, 2, 1, 32, 32, 32, 2, 1)
WORDS = tuple(f"w{i}" for i in range(30))
torch.set_num_threads(1)


def rows() -> AsrRows:
    model = CausalWhisper.random(DIMS)
    model.decoder.token_embedding.weight.data.mul_(20)
    return AsrRows(WhisperStreamer(model, WordTokens(WORDS), BlockPlan(10, 10), tokens_per_s=0.1))


def speech(seed: int) -> Pcm:
    """Silence, a turn, silence: each listener's of its own length."""
    rng = np.random.default_rng(seed)
    loud = rng.normal(size=16_000 + 1600 * seed) * 0.2
    return np.concatenate([rng.normal(size=4800) * 1e-5, loud, rng.normal(size=16_000) * 1e-5]).astype(
        np.float32
    )


async def listen(pool: RowPool, recogniser: AsrRows, name: str, pcm: Pcm) -> list[AsrEvent]:
    session, events = AsrSession(recogniser), list[AsrEvent]()
    for at in range(0, len(pcm), 320):
        session.feed(pcm[at : at + 320], at * SECOND // 16_000)
        events += session.pump()
        while session.ready:
            events += await pool.run("asr", Row(None, state=session, session=name, epoch=0))
            events += session.pump()
        await asyncio.sleep(0.02)
    return events


def test_listeners_in_one_pool_hear_what_each_would_hear_alone() -> None:
    recogniser = rows()
    alone: list[list[AsrEvent]] = []
    for seed in range(4):
        session, pcm, found = AsrSession(recogniser), speech(seed), list[AsrEvent]()
        for at in range(0, len(pcm), 320):
            found += session.push(pcm[at : at + 320], at * SECOND // 16_000)
        alone.append(found)

    async def together() -> tuple[list[list[AsrEvent]], list[int]]:
        pool, _ = virtual_pool(lambda n: 50 * MS)
        await pool.load(ModelSpec("asr", lambda: AsrRowModel(recogniser)))
        found = await asyncio.gather(*(listen(pool, recogniser, f"s{i}", speech(i)) for i in range(4)))
        sizes = [n for n, times in pool.stats.batches.items() for _ in range(times)]
        pool.close()
        return found, sizes

    found, sizes = run_virtual(together())
    assert found == alone
    assert all(any(e.kind == "endpoint" for e in events) for events in found)
    assert max(sizes) >= 3
