"""Causal streaming recognition, measured in CPU time of one thread: cost a block, cost over time, rows that share a forward,
streams a core, and on the fixture word error and how soon words are final.

Shapes are Whisper's with random weights (the cost is the same, the text is noise, held at one new token a block:
3.3 a second, as people speak). The re-encoding baseline is the same engine over 30 s at once, in the same
run; both sides are the least of a few, since other work on the machine slows small steps most.

    make bench AREA=asr [ARGS="--full --data ../shared/data --device cuda"]

--full: more phrases. --data: recordings for the embedded recogniser and for turns, left out when missing. --device cuda:
streams a GPU can carry, instead of everything else; with --tiny a small trial of it, on the CPU where there is no GPU.
"""

from __future__ import annotations

import argparse
import asyncio
import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from asr_device import streams_per_device
from asr_turns import turns
from asr_words import fixture
from penstock.models.causal_whisper import CausalWhisper
from penstock.models.log_mel import LogMel, LogMelState
from penstock.models.tokens import WordTokens
from penstock.models.whisper_dims import SIZES, BlockPlan, WhisperDims
from penstock.models.whisper_loader import quantized
from penstock.models.whisper_ort import OrtWhisper
from penstock.models.whisper_stream import WhisperStreamer
from report import line, note, percentile

FULL = False
CHUNK = BlockPlan.of_ms(300)


def cost(work: Callable[[], object]) -> float:
    """CPU ms of this thread."""
    begin = time.thread_time()
    work()
    return (time.thread_time() - begin) * 1000


def told(bench: str, **figures: object) -> dict[str, object]:
    """Print one bench's figures and give them back."""
    line(bench=bench, **figures)
    return figures


def mel(frames: int) -> torch.Tensor:
    return torch.randn(80, 2 * frames) * 0.5


def blocks(model: CausalWhisper | OrtWhisper, plan: BlockPlan, seconds: int) -> list[float]:
    """CPU ms of each encoder block of a stream."""
    state = model.encoder.start(plan)
    out: list[float] = []
    for _ in range(seconds):
        state.queue.push(mel(50))
        while state.queue.available(0) >= (n := plan.block(state.at)):
            out.append(cost(lambda n=n: model.encoder.step([state], n, plan)))
            model.encoder.commit(state, n, plan)
    return out


def encoder(size: str, model: CausalWhisper | OrtWhisper, kind: str) -> dict[str, object]:
    """A block against 30 s at once, on one engine."""
    dims = model.dims
    whole_plan = BlockPlan(50, dims.n_audio_ctx)
    whole: list[float] = []
    for _ in range(3):
        state = model.encoder.start(whole_plan)
        state.queue.push(mel(dims.n_audio_ctx))
        whole.append(cost(lambda s=state: model.encoder.step([s], dims.n_audio_ctx, whole_plan)))
    times = blocks(model, CHUNK, 30)
    middle = min(times[45:52])
    return told(
        "chunk_vs_reencode", shape=size, kind=kind, chunk_ms=300, threads=1, reencode_30s_ms=round(min(whole), 1),
        chunk_ms_at_3s=round(min(times[4:10]), 2), chunk_ms_at_15s=round(middle, 2),
        chunk_ms_at_30s=round(min(times[-6:]), 2), chunk_vs_reencode_ratio=round(min(whole) / middle, 1),
        ratio_at_3s=round(min(whole) / min(times[4:10]), 1),
    )  # fmt: skip


def growth(size: str, model: CausalWhisper | OrtWhisper) -> dict[str, object]:
    """Ten minutes of a bounded left window: the last minute's blocks over the first's, the first 12 s left out."""
    times = blocks(model, BlockPlan(15, 30, left=500), 600)
    early, late = times[40:200], times[-200:]
    return told(
        "chunk_growth", shape=size, left_window_s=10, chunk_ms=300, minutes=10,
        early_ms=round(float(np.median(early)), 2), late_ms=round(float(np.median(late)), 2),
        chunk_growth_10min=round(float(np.median(late) / np.median(early)), 3),
    )  # fmt: skip


def difference(dims: WhisperDims) -> float:
    """Largest difference of streamed to offline block-causal states over 12 s, chunks of 40 to 1000 ms."""
    model, worst = CausalWhisper.random(dims), 0.0
    sound = mel(600)
    for chunk_ms in (40, 100, 300, 1000):
        plan = BlockPlan.of_ms(chunk_ms)
        state, parts = model.encoder.start(plan), list[torch.Tensor]()
        state.queue.push(sound)
        while state.queue.available(0) >= (n := plan.block(state.at)):
            parts.append(model.encoder.step([state], n, plan)[0])
            model.encoder.commit(state, n, plan)
        streamed = torch.cat(parts)
        whole = model.encoder(sound[None, :, : 2 * len(streamed)], plan)[0]
        worst = max(worst, float((streamed - whole).abs().max()))
    return worst


def streams_per_core(service_ms: Sequence[float], chunk_ms: float) -> tuple[int, float]:
    """Most streams whose p99 answer comes within a chunk, when one core serves their blocks in order of arrival.

    Service times are the measured ones, in order, each stream beginning elsewhere in the list; arrivals evenly
    staggered. Returns (streams, p99 in ms).
    """
    best = (0, 0.0)
    for n in range(1, 400):
        free, waits = 0.0, list[float]()
        for k in range(n * len(service_ms)):
            arrival = k * chunk_ms / n
            begin = max(arrival, free)
            free = begin + service_ms[(k // n + (k % n) * len(service_ms) // n) % len(service_ms)]
            waits.append(free - arrival)
        if percentile(waits, 0.99) >= chunk_ms:
            break
        best = (n, percentile(waits, 0.99))
    return best


def engine(dims: WhisperDims, kind: str) -> CausalWhisper | OrtWhisper:
    """Random weights on "torch" or "onnx", with "bf16", "int8 head" or "int8 all"."""
    model, int8 = CausalWhisper.random(dims), "all" if "all" in kind else "head" if "int8" in kind else "none"
    if "onnx" in kind:
        return OrtWhisper(model, int8)
    return quantized(model.to(torch.bfloat16) if "bf16" in kind else model, int8)


def streamer(size: str, kind: str) -> WhisperStreamer:
    dims = SIZES[size]
    words = WordTokens([str(i) for i in range(dims.n_vocab - 2)])
    asr = WhisperStreamer(engine(dims, kind), words, CHUNK)
    asr.writer.new = 1
    return asr


def end_to_end(size: str, kind: str, seconds: int) -> dict[str, object]:
    """Log-mel, encoder, cross keys and text; the window slides, which counts."""
    asr = streamer(size, kind)
    stream, front, state = asr.start(), LogMel(), LogMelState()
    total, service, slides = 0.0, list[float](), 0
    rng = np.random.default_rng(0)
    for _ in range(seconds):
        pcm = torch.from_numpy((rng.normal(size=16_000) * 0.1).astype(np.float32))
        begin = time.thread_time()
        for at in range(0, 16_000, 320):
            stream.encoder.queue.push(front.step(pcm[at : at + 320], state))
        total += (time.thread_time() - begin) * 1000
        while asr.ready(stream):  # the log-mel is counted apart
            begin = time.thread_time()
            heard = asr.forward([stream])[0]
            asr.commit(stream, heard)
            service.append((time.thread_time() - begin) * 1000)
            slides += heard.slid is not None
    front_ms = total / len(service)
    per_block = [s + front_ms for s in service]
    count, p99 = streams_per_core(per_block, 300)
    quarter = len(per_block) // 4
    return told(
        "end_to_end", shape=size, kind=kind, chunk_ms=300, threads=1, audio_s=seconds, slides=slides,
        block_ms_p50=round(percentile(per_block, 0.5), 1), block_ms_p99=round(percentile(per_block, 0.99), 1),
        worst_ms=round(max(per_block), 1), rtf=round((total + sum(service)) / 1000 / seconds, 3),
        sliding_growth=round(float(np.mean(per_block[-quarter:]) / np.mean(per_block[quarter : 2 * quarter])), 3),
        streams_per_core=count, p99_ms_at_that=round(p99, 1),
    )  # fmt: skip


def shared(size: str, kind: str) -> dict[str, object]:
    """CPU ms a stream and block of 1, 2, 4 and 8 streams in one forward, 12 s in and 38 tokens."""
    asr = streamer(size, kind)
    stream = asr.start()
    asr.push(stream, mel(600))
    while asr.ready(stream):
        asr.commit(stream, asr.forward([stream])[0])
    streams = [copy.deepcopy(stream) for _ in range(8)]
    for one in streams:
        asr.push(one, mel(15))
    each: dict[int, float] = {}
    for rows in (1, 2, 4, 8):
        each[rows] = min(cost(lambda n=rows: asr.forward(streams[:n])) for _ in range(8)) / rows
    return told(
        "rows", shape=size, kind=kind, ms_per_stream={str(n): round(ms, 2) for n, ms in each.items()},
        gain={str(n): round(each[1] / ms, 2) for n, ms in each.items()},
    )  # fmt: skip


def recordings(data: Path) -> dict[str, float]:
    """Word error of the embedded recogniser on real speech."""
    import asr_embedded

    asr_embedded.DATA = data
    return asr_embedded.recordings()


@torch.no_grad()
def main() -> None:
    global FULL
    parser = argparse.ArgumentParser(description="Causal streaming recognition")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[2] / "shared" / "data")
    parser.add_argument("--tiny", action="store_true", help="of --device cuda: small, to try it")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    FULL = options.full
    torch.set_num_threads(1)
    found: dict[str, object] = {}
    if options.device == "cuda":
        where = "cpu" if options.tiny and not torch.cuda.is_available() else "cuda"
        if where == "cuda" and not torch.cuda.is_available():
            raise SystemExit("--device cuda: torch sees no CUDA device here")
        for size in ("tiny",) if options.tiny else ("base", "large-v2"):
            figures = streams_per_device(size, where, 16 if options.tiny else 1024)
            found[f"{size}_streams_per_gpu"] = figures["streams_per_gpu"]
        line(area="asr", device=torch.cuda.get_device_name() if where == "cuda" else "cpu (a trial)", **found)
        return
    found["streaming_minus_offline"] = round(difference(SIZES["tiny"]), 7)
    for size in ("tiny", "base"):
        for kind in ("torch", "onnx int8 all"):
            model = engine(SIZES[size], kind)
            key = f"{size}_{kind.replace(' ', '_')}"
            found[f"{key}_chunk_vs_reencode_ratio"] = encoder(size, model, kind)["chunk_vs_reencode_ratio"]
            if key == "tiny_onnx_int8_all":
                found["chunk_growth_10min"] = growth(size, model)["chunk_growth_10min"]
    for size, kind, seconds in (
        ("tiny", "torch int8 head", 45), ("tiny", "onnx int8 all", 120), ("base", "onnx int8 all", 60)
    ):  # fmt: skip
        figures, key = end_to_end(size, kind, seconds), f"{size}_{kind.replace(' ', '_')}"
        for name in ("rtf", "streams_per_core", "sliding_growth", "worst_ms"):
            found[f"{key}_{name}"] = figures[name]
    for size, kind in (("tiny", "torch int8 head"), ("tiny", "onnx int8 all"), ("base", "onnx int8 all")):
        found[f"{size}_{kind.replace(' ', '_')}_rows_gain"] = shared(size, kind)["gain"]
    found |= fixture(240 if FULL else 120)
    found |= {k: v for k, v in asyncio.run(turns(options.data)).items() if k != "bench"}
    found["embedded_wer"] = recordings(options.data) if options.data.is_dir() else None
    if not options.data.is_dir():
        note(f"{options.data} is not there: the embedded recogniser's word error on recordings is left out")
        found["embedded_wer_reason"] = "no recordings: --data"
    found["streams_per_gpu"], found["streams_per_gpu_reason"] = None, "needs a GPU: --device cuda"
    line(area="asr", threads=1, **found)


if __name__ == "__main__":
    main()
