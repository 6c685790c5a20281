"""Moonshine streaming, measured in CPU time of one thread: a step against encoding 30 s again, over time, and end to end.

The shape is that of the configuration's defaults (width 320, 6 + 6 layers, 32768 tokens) with random weights: the cost
is the same, the text is noise, held at one new token a block (3.1 a second, as people speak). Baseline: transformers'
encoder with its mask over 30 s, in the same run; both sides are the least of a few.

    make bench AREA=asr_moonshine
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from penstock.models.asr_session import AsrRows, AsrSession
from penstock.models.moonshine_stream import MoonshineStreamer, MoonshineTokens
from report import line

CHUNK_MS = 320
SECONDS = 60


class Pieces:
    """A vocabulary in which every token is a word."""

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))

    def id_to_token(self, token: int) -> str:
        return f"\u2581{token}"


def cost(work: Callable[[], Any]) -> tuple[float, Any]:
    """CPU ms of this thread, and the result."""
    begin = time.thread_time()
    result = work()
    return (time.thread_time() - begin) * 1000, result


def main() -> None:
    from transformers import MoonshineStreamingConfig, MoonshineStreamingForConditionalGeneration

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = MoonshineStreamingConfig(
        num_key_value_heads=8, decoder_start_token_id=1, encoder_config={}, attn_implementation="eager"
    )
    model: Any = MoonshineStreamingForConditionalGeneration(config).eval()
    model.model.encoder.set_attn_implementation("sdpa")  # the quickest that the baseline can have
    asr = MoonshineStreamer(model, MoonshineTokens(Pieces(), config), chunk_ms=CHUNK_MS)
    asr.writer.new = 1

    pcm = torch.randn(30 * 16_000) * 0.1
    mask = torch.ones(1, len(pcm), dtype=torch.long)
    with torch.no_grad():
        whole = [cost(lambda: model.model.encoder(pcm[None], attention_mask=mask))[0] for _ in range(3)]
    state, steps, n = asr.encoder.start(), list[float](), CHUNK_MS * 16
    for i in range(SECONDS * 1000 // CHUNK_MS):
        at = i * n % (len(pcm) - n)
        ms, (_, state) = cost(lambda s=state, a=at: asr.encoder.step(s, pcm[a : a + n]))
        steps.append(ms)
    early, late = steps[10:60], steps[-50:]
    encoder = {
        "chunk_ms": CHUNK_MS, "reencode_30s_ms": round(min(whole), 1), "chunk_cpu_ms": round(min(late), 2),
        "chunk_vs_reencode_ratio": round(min(whole) / min(late), 1),
        "chunk_growth": round(float(np.median(late) / np.median(early)), 3),
    }  # fmt: skip
    line(bench="moonshine_encoder", minutes=SECONDS / 60, **encoder)

    session = AsrSession(AsrRows(asr), gated=False)
    session.voice(True)
    sound = (np.random.default_rng(0).normal(size=SECONDS // 2 * 16_000) * 0.1).astype(np.float32)
    blocks = [
        cost(lambda a=at: session.push(sound[a : a + n], a * 62_500))[0] for at in range(0, len(sound), n)
    ]
    ends = {
        "rtf": round(sum(blocks) / (len(sound) / 16), 3), "block_ms_at_3s": round(min(blocks[7:12]), 1),
        "block_ms_at_30s": round(min(blocks[-8:-1]), 1),
    }  # fmt: skip
    line(bench="moonshine_end_to_end", **ends)
    line(area="asr_moonshine", shape="tiny", threads=1, weights="random", **encoder, **ends)


if __name__ == "__main__":
    main()
