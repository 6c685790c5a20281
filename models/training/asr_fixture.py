"""Train `models/data/asr_fixture.safetensors`: the small recogniser that the closed-loop tests use.

    python -m penstock.models.training.asr_fixture --minutes 6

It knows 31 words in one synthetic voice and nothing else: a fixture for the neural path, not a product.
Seeded; one thread; needs libflite.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from safetensors.torch import load_file
from torch import nn

from .. import whisper_loader
from ..causal_whisper import CausalWhisper
from ..log_mel import LogMel
from ..whisper_dims import BlockPlan, WhisperDims
from ..whisper_loader import Checkpoint
from .aligned import Aligned, collate, loss
from .command_speech import WORDS, Sample, corpus

DIMS = WhisperDims(
    n_mels=80,
    n_audio_ctx=200,
    n_audio_state=128,
    n_audio_head=4,
    n_audio_layer=2,
    n_vocab=len(WORDS) + 2,
    n_text_ctx=48,
    n_text_state=128,
    n_text_head=4,
    n_text_layer=1,
)
EOT, SOT = len(WORDS), len(WORDS) + 1
PLAN = BlockPlan(chunk=15, first=30)
OUT = whisper_loader.FIXTURE
_BATCH = 16
_RATE = 2e-3
_WARM = 60  # steps


def aligned(sample: Sample, mel: LogMel) -> Aligned:
    """A sample as the model takes it: whole encoder frames only."""
    frames = mel.forward(torch.from_numpy(sample.pcm))
    tokens = tuple(WORDS.index(w) for w in sample.words)
    return Aligned(frames[:, : frames.shape[1] // 2 * 2], tokens, sample.ends)


def initial(seed: int) -> tuple[CausalWhisper, nn.Linear]:
    """An untrained model of the fixture's shape and its auxiliary CTC head."""
    torch.manual_seed(seed)
    model = CausalWhisper(DIMS)
    nn.init.normal_(model.decoder.token_embedding.weight, std=0.1)
    nn.init.normal_(model.decoder.positional_embedding, std=0.05)
    return model, nn.Linear(DIMS.n_audio_state, len(WORDS) + 1)


def train(
    items: list[Aligned],
    steps: int,
    seconds: float,
    seed: int = 0,
    start: Path | None = None,
    keep: Path | None = None,
) -> CausalWhisper:
    """Train for `steps`, or until `seconds` of this thread's CPU time are used up; the rate falls by either.

    `start`: go on from the weights of an earlier run. `keep`: write them every 100 steps.
    """
    model, ctc = initial(seed)
    if start is not None:
        weights16 = load_file(start)
        model.load_state_dict({k: v.float() for k, v in weights16.items()}, strict=False)
    weights = [*model.parameters(), *ctc.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=_RATE, betas=(0.9, 0.98), weight_decay=0.02)
    rng = np.random.default_rng(seed)
    begin = time.thread_time()
    with Progress() as progress:
        task = progress.add_task("asr fixture", total=1000)
        order: list[int] = []
        for step in range(steps):
            used = max(step / steps, (time.thread_time() - begin) / seconds)
            if used >= 1:
                break
            if len(order) < _BATCH:
                order = [int(i) for i in rng.permutation(len(items))]
            chosen = [items[order.pop()] for _ in range(_BATCH)]
            batch = collate(chosen, PLAN, [SOT], EOT, rng)
            rate = _RATE * min(1.0, (step + 1) / _WARM) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * used)))
            for group in optimiser.param_groups:
                group["lr"] = rate
            value = loss(model, batch, PLAN, ctc)
            optimiser.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            progress.update(task, completed=1000 * used, description=f"step {step} loss {value.item():.3f}")
            if step % 100 == 99 and keep is not None:
                save(model, keep)  # a run that is broken off can go on from here
            if step % 50 == 0:
                progress.console.print(f"step {step} used {used:.2f} loss {value.item():.3f}")
    return model.eval()


def save(model: CausalWhisper, path: Path) -> None:
    """fp16, with shape, words and plan in the header."""
    state = {k: v.half() for k, v in model.state_dict().items()}
    whisper_loader.save(Checkpoint(DIMS, state, PLAN, tuple(WORDS)), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=6.0, help="CPU minutes of training")
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--utterances", type=int, default=2400)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--start", type=Path, help="go on from these weights")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    mel = LogMel(DIMS.n_mels)
    items = [aligned(s, mel) for s in corpus(options.seed, options.utterances)]
    model = train(items, options.steps, options.minutes * 60, options.seed, options.start, options.out)
    save(model, options.out)
    print(f"{options.out}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters")


if __name__ == "__main__":
    main()
