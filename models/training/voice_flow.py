"""Train `models/data/voice_flow.safetensors`: the embedded neural voice, taught by flite's rms.

    python -m penstock.models.training.voice_flow --steps 4000 --work /tmp/voice-flow

Seeded; one thread; needs libflite. Bfloat16 where the processor has it. Stops and resumes at any checkpoint with the
same result: what a step sees depends on its number only.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from .. import flow_voice
from ..flow_acoustic import MASKS, FlowAcoustic, FlowDims, mask_of
from ..flow_phones import FLAGS
from ..flow_vocoder import DIMS
from .voice_corpus import Example, example, sentence

BATCH = 16
WINDOW = 240  # frames of an utterance seen at once
RATE = 1.5e-3
WARM = 150  # steps
AVERAGE = 0.998  # of the weights, exponentially
HELD_OUT = 16
SAVE_EVERY = 200


def corpus(seed: int, count: int, folder: Path) -> list[Example]:
    """`count` utterances; made once, kept in `folder`."""
    path = folder / f"corpus-{seed}-{count}.safetensors"
    if not path.exists():
        rng = np.random.default_rng(seed)
        tensors: dict[str, Tensor] = {}
        with Progress(transient=True) as progress:
            for i in progress.track(range(count), description="speaking"):
                it = example(sentence(rng))
                tensors |= {
                    f"{i}.phones": torch.from_numpy(it.phones),
                    f"{i}.flags": torch.from_numpy(it.flags),
                    f"{i}.durations": torch.from_numpy(it.durations),
                    f"{i}.frames": torch.from_numpy(it.frames),
                }
        save_file(tensors, path)
    read = load_file(path)
    return [
        Example(*(read[f"{i}.{name}"].numpy() for name in ("phones", "flags", "durations", "frames")))
        for i in range(count)
    ]


def loss(model: FlowAcoustic, batch: list[Example], rng: np.random.Generator) -> dict[str, Tensor]:
    """The terms: velocity of the flow, its mean, durations."""
    dims = model.dims
    longest = max(len(it.phones) for it in batch)
    phones = torch.zeros(len(batch), longest, dtype=torch.long)
    flags = torch.zeros(len(batch), longest, FLAGS)
    for i, it in enumerate(batch):
        phones[i, : len(it.phones)] = torch.from_numpy(it.phones)
        flags[i, : len(it.phones)] = torch.from_numpy(it.flags)
    h, log_frames = model.encode(phones, flags)
    conditions, targets, durations = [], [], []
    present = torch.zeros(len(batch), WINDOW)
    for i, it in enumerate(batch):
        condition = model.spread(h[i, : len(it.phones)], it.durations.tolist())
        frames = (torch.from_numpy(it.frames) - model.mean) / model.deviation
        begin = int(rng.integers(0, max(1, len(frames) - WINDOW + 1)))
        condition, frames = condition[begin : begin + WINDOW], frames[begin : begin + WINDOW]
        missing = WINDOW - len(frames)
        present[i, : len(frames)] = 1
        conditions.append(F.pad(condition, (0, 0, 0, missing)))
        targets.append(F.pad(frames, (0, 0, 0, missing)))
        durations.append(log_frames[i, : len(it.phones)] - torch.from_numpy(it.durations).float().log())
    condition, x1 = torch.stack(conditions), torch.stack(targets)
    x0 = torch.from_numpy(rng.standard_normal((len(batch), WINDOW, DIMS), np.float32))
    t = torch.from_numpy(rng.random(len(batch), np.float32))
    x = x0 + (x1 - x0) * t[:, None, None]
    mask = mask_of(MASKS[int(rng.integers(len(MASKS)))], WINDOW, dims)
    velocity, _ = model.velocity(x, condition, t, mask)
    weight = present[..., None] / (present.sum() * DIMS)
    return {
        "flow": ((velocity.float() - (x1 - x0)).square() * weight).sum(),
        "mean": ((model.prior(condition).float() - x1).square() * weight).sum(),
        "durations": torch.cat(durations).float().square().mean(),
    }


def rate(step: int, steps: int) -> float:
    if step < WARM:
        return RATE * (step + 1) / WARM
    return RATE * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - WARM) / max(1, steps - WARM))))


def train(steps: int, seed: int, count: int, work: Path, out: Path) -> None:
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    work.mkdir(parents=True, exist_ok=True)
    everything = corpus(seed, count, work)
    held_out, examples = everything[:HELD_OUT], everything[HELD_OUT:]
    model = FlowAcoustic(FlowDims())
    frames = np.concatenate([it.frames for it in examples])
    model.mean.copy_(torch.from_numpy(frames.mean(0)))
    model.deviation.copy_(torch.from_numpy(np.maximum(frames.std(0), 1e-3)))
    parameters: list[Tensor] = list(model.parameters())
    optimiser = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    average = [p.detach().clone() for p in parameters]
    path = work / "checkpoint.safetensors"
    begin = _resume(path, parameters, average, optimiser) if path.exists() else 0
    started = time.process_time()
    with Progress() as progress:
        bar = progress.add_task("training", total=steps, completed=begin)
        for step in range(begin, steps):
            rng = np.random.default_rng((seed, step))
            batch = [examples[int(i)] for i in rng.integers(0, len(examples), BATCH)]
            for group in optimiser.param_groups:
                group["lr"] = rate(step, steps)
            with torch.autocast("cpu", torch.bfloat16, enabled=_has_bf16()):
                terms = loss(model, batch, rng)
            total = terms["flow"] + 0.5 * terms["mean"] + 0.3 * terms["durations"]
            optimiser.zero_grad(set_to_none=True)
            total.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimiser.step()
            keep = min(AVERAGE, (step + 1) / (step + 10))
            for kept, p in zip(average, parameters, strict=True):
                kept.lerp_(p.detach(), 1 - keep)
            progress.advance(bar)
            if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
                _save(path, step + 1, parameters, average, optimiser)
                _export(model, average, out)
                with torch.no_grad():
                    told = loss(model, held_out, np.random.default_rng(0))
                figures = {name: round(float(value), 4) for name, value in told.items()}
                cpu = round(time.process_time() - started)
                progress.console.print(f"step {step + 1}: held out {figures}, {cpu} s of CPU")


def _has_bf16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())  # pyright: ignore


def _save(
    path: Path, step: int, parameters: list[Tensor], average: list[Tensor], optimiser: torch.optim.Optimizer
) -> None:
    tensors: dict[str, Tensor] = {"step": torch.tensor(step)}
    for i, p in enumerate(parameters):
        state = optimiser.state[p]
        tensors |= {f"p.{i}": p.detach(), f"a.{i}": average[i]}
        tensors |= {f"m.{i}": state["exp_avg"], f"v.{i}": state["exp_avg_sq"], f"n.{i}": state["step"]}
    partial = path.with_suffix(".partial")
    save_file({k: t.contiguous() for k, t in tensors.items()}, partial)
    partial.replace(path)


def _resume(
    path: Path, parameters: list[Tensor], average: list[Tensor], optimiser: torch.optim.Optimizer
) -> int:
    tensors = load_file(path)
    for i, p in enumerate(parameters):
        p.data.copy_(tensors[f"p.{i}"])
        average[i].copy_(tensors[f"a.{i}"])
        optimiser.state[p] = {
            "exp_avg": tensors[f"m.{i}"], "exp_avg_sq": tensors[f"v.{i}"], "step": tensors[f"n.{i}"]
        }  # fmt: skip
    return int(tensors["step"])


def _export(model: FlowAcoustic, average: list[Tensor], out: Path) -> None:
    weights = {name: value for (name, _), value in zip(model.named_parameters(), average, strict=True)}
    flow_voice.save(weights | dict(model.named_buffers()), model.dims, out)


def main() -> None:
    options = argparse.ArgumentParser(description="Train the embedded neural voice.")
    options.add_argument("--steps", type=int, default=4000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--utterances", type=int, default=1500)
    options.add_argument("--work", type=Path, default=Path("voice-flow"))
    options.add_argument("--out", type=Path, default=flow_voice.WEIGHTS)
    args = options.parse_args()
    train(args.steps, args.seed, args.utterances, args.work, args.out)


if __name__ == "__main__":
    main()
