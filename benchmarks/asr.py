"""Causal streaming recognition, measured in CPU time of one thread: cost a block, cost over time, streams a core,
and on the fixture word error and how soon words are final.

Shapes are Whisper's with random weights (the cost is the same, the text is noise, held at one new token a block:
3.3 a second, as people speak). The re-encoding baseline is the same engine over 30 s at once, in the same
run; both sides are the least of a few, since other work on the machine slows small steps most.

    make bench AREA=asr [ARGS="--full --data ../shared/data --device cuda"]

--full: ten minutes of audio for the growth, more phrases. --data: recordings for the embedded recogniser and for turns,
left out when missing. --device cuda: streams a GPU can carry, instead of everything else.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import jiwer
import numpy as np
import torch
from asr_turns import turns
from penstock.models import whisper_loader
from penstock.models.asr_session import AsrEvent, AsrRows, AsrSession
from penstock.models.causal_whisper import CausalWhisper
from penstock.models.local_optimality import Hypothesis
from penstock.models.log_mel import LogMel, LogMelState
from penstock.models.tokens import WordTokens
from penstock.models.training import flite_words
from penstock.models.training.command_speech import phrase
from penstock.models.training.offline import transcribe
from penstock.models.whisper_dims import SIZES, BlockPlan, WhisperDims
from penstock.models.whisper_loader import quantized
from penstock.models.whisper_ort import OrtWhisper
from penstock.models.whisper_stream import WhisperStreamer
from report import line, note, percentile

FULL = False
SECOND = 1_000_000_000
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
    seconds = 600 if FULL else 120
    times = blocks(model, BlockPlan(15, 30, left=500), seconds)
    early, late = times[40:100], times[-60:]
    return told(
        "chunk_growth", shape=size, left_window_s=10, chunk_ms=300, minutes=seconds / 60,
        early_ms=round(float(np.median(early)), 2), late_ms=round(float(np.median(late)), 2),
        chunk_growth=round(float(np.median(late) / np.median(early)), 3),
    )  # fmt: skip


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


def end_to_end(size: str, kind: str) -> dict[str, object]:
    """Log-mel, encoder, cross keys and text of 45 s: the window slides once, which counts."""
    dims = SIZES[size]
    model = engine(dims, kind)
    words = WordTokens([str(i) for i in range(dims.n_vocab - 2)])
    asr = WhisperStreamer(model, words, CHUNK)
    asr.writer.new = 1  # as people speak
    stream, front, state = asr.start(), LogMel(), LogMelState()
    total, service = 0.0, list[float]()
    seconds = 45
    rng = np.random.default_rng(0)
    for _ in range(seconds):
        pcm = torch.from_numpy((rng.normal(size=16_000) * 0.1).astype(np.float32))
        begin = time.thread_time()
        for at in range(0, 16_000, 320):
            stream.encoder.queue.push(front.step(pcm[at : at + 320], state))
        total += (time.thread_time() - begin) * 1000
        while asr.ready(stream):  # the log-mel is counted apart
            begin = time.thread_time()
            asr.commit(stream, asr.forward([stream])[0])
            service.append((time.thread_time() - begin) * 1000)
    front_ms = total / len(service)
    per_block = [s + front_ms for s in service]
    count, p99 = streams_per_core(per_block, 300)
    return told(
        "end_to_end", shape=size, kind=kind, chunk_ms=300, threads=1, audio_s=seconds,
        block_ms_p50=round(percentile(per_block, 0.5), 1), block_ms_p99=round(percentile(per_block, 0.99), 1),
        worst_ms=round(max(per_block), 1), rtf=round((total + sum(service)) / 1000 / seconds, 3),
        streams_per_core=count, p99_ms_at_that=round(p99, 1),
    )  # fmt: skip


def fixture(phrases: int) -> dict[str, object]:
    """Synthesised commands, never trained on: word error of committed words against the offline decode."""
    if not flite_words.available() or not whisper_loader.FIXTURE.is_file():
        note(
            "the fixture's figures are left out: they need libflite1 and models/data/asr_fixture.safetensors"
        )
        return {}
    checkpoint = whisper_loader.read(whisper_loader.FIXTURE)
    model = whisper_loader.build(checkpoint)
    words = whisper_loader.vocabulary(checkpoint, whisper_loader.FIXTURE)
    assert checkpoint.plan is not None
    rows = AsrRows(WhisperStreamer(model, words, checkpoint.plan))
    rng = np.random.default_rng(77)
    said, streamed, offline = list[str](), list[str](), list[str]()
    late, revised = list[float](), 0
    for _ in range(phrases):
        text = " ".join(phrase(rng, 5))
        spoken = flite_words.speak(text)
        pad = np.zeros(4800, np.float32)
        pcm = np.concatenate([pad, spoken.pcm, pad, pad, pad, pad])
        pcm = pcm + rng.normal(size=len(pcm)).astype(np.float32) * 1e-4
        session, events, committed = AsrSession(rows), list[AsrEvent](), list[int]()
        for at in range(0, len(pcm), 320):
            events += session.push(pcm[at : at + 320], at * SECOND // 16_000)
            now = session.stream.text.tokens[: len(committed)] if session.stream else committed
            revised += now != committed
            committed = session.stream.text.tokens[: session.stream.text.committed] if session.stream else []
        events += session.finish()
        commits = [e for e in events if e.kind == "commit"]
        said.append(text)
        streamed.append(" ".join(e.text for e in commits))
        given = [(w, e.heard) for e in commits for w in e.text.split()]
        if [w for w, _ in given] == text.split():  # latency needs to know which word is which
            late += [h / 1e6 - (end + 0.3) * 1000 for (_, h), end in zip(given, spoken.ends, strict=True)]
        frames = LogMel().forward(torch.from_numpy(pcm[3200:]))
        offline.append(transcribe(model, frames, checkpoint.plan, words))
    return told(
        "fixture", chunk_ms=checkpoint.plan.chunk_ms, phrases=phrases, words=sum(len(s.split()) for s in said),
        wer_streaming=round(jiwer.wer(said, streamed), 4), wer_offline=round(jiwer.wer(said, offline), 4),
        word_latency_ms_p50=round(percentile(late, 0.5)) if late else None,
        word_latency_ms_p99=round(percentile(late, 0.99)) if late else None, committed_revisions=revised,
    )  # fmt: skip


def streams_per_gpu(size: str, device: str) -> dict[str, object]:
    """Most streams whose common block, in one forward, is done within a chunk: bf16, 15 s and 50 tokens in."""
    model = CausalWhisper.random(SIZES[size]).to(device, torch.bfloat16)
    asr = WhisperStreamer(model, WordTokens([str(i) for i in range(SIZES[size].n_vocab - 2)]), CHUNK)
    asr.writer.new = 1  # as people speak
    best, worst, count = 0, 0.0, 8
    while count <= 1024:
        streams = [asr.start() for _ in range(count)]
        for stream in streams:
            for kv in [*stream.encoder.layers, *stream.cross]:
                shape = (kv.k.shape[0], 750, kv.k.shape[2])
                kv.put(torch.randn(shape).to(kv.k), torch.randn(shape).to(kv.v), 0)
                kv.advance(750)
            stream.encoder.at = 750
            stream.beams = [Hypothesis(list(range(50)), [0.0] * 50, committed=48)]
            stream.encoder.queue.push(mel(30).to(device))
        took: list[float] = []
        for _ in range(5):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            asr.forward(streams)
            torch.cuda.synchronize()
            took.append((time.perf_counter() - begin) * 1000)
        line(bench="gpu_step", shape=size, streams=count, ms=round(max(took[1:]), 1))
        if max(took[1:]) > CHUNK.chunk_ms:
            break
        best, worst, count = count, max(took[1:]), count * 2
    return told(
        "gpu",
        shape=size,
        dtype="bf16",
        chunk_ms=CHUNK.chunk_ms,
        streams_per_gpu=best,
        ms_at_that=round(worst, 1),
    )


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
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    FULL = options.full
    torch.set_num_threads(1)
    found: dict[str, object] = {}
    if options.device == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit("--device cuda: torch sees no CUDA device here")
        for size in ("base", "large-v2"):
            found[f"{size}_streams_per_gpu"] = streams_per_gpu(size, "cuda")["streams_per_gpu"]
        line(area="asr", device=torch.cuda.get_device_name(), **found)
        return
    for size in ("tiny", "base"):
        for kind in ("torch", "onnx int8 all"):
            model = engine(SIZES[size], kind)
            key = f"{size}_{kind.replace(' ', '_')}"
            found[f"{key}_chunk_vs_reencode_ratio"] = encoder(size, model, kind)["chunk_vs_reencode_ratio"]
            if key == "tiny_onnx_int8_all":
                found["chunk_growth"] = growth(size, model)["chunk_growth"]
    for size, kind in (("tiny", "torch int8 head"), ("tiny", "onnx int8 all"), ("base", "onnx int8 all")):
        figures = end_to_end(size, kind)
        found[f"{size}_{kind.replace(' ', '_')}_rtf"] = figures["rtf"]
        found[f"{size}_{kind.replace(' ', '_')}_streams_per_core"] = figures["streams_per_core"]
    found |= {k: v for k, v in fixture(120 if FULL else 40).items() if k not in ("bench", "phrases", "words")}
    found |= {k: v for k, v in asyncio.run(turns(options.data)).items() if k != "bench"}
    found["embedded_wer"] = recordings(options.data) if options.data.is_dir() else None
    if not options.data.is_dir():
        note(f"{options.data} is not there: the embedded recogniser's word error on recordings is left out")
    found["streams_per_gpu"], found["streams_per_gpu_reason"] = None, "needs a GPU: --device cuda"
    line(area="asr", threads=1, **found)


if __name__ == "__main__":
    main()
