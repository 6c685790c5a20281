"""Train `models/data/asr_fixture.safetensors`: the small recogniser that the closed-loop tests use.

    python -m penstock.models.training.asr_fixture --minutes 12

It knows 31 words in one synthetic voice and nothing else: a fixture for the neural path, not a product.
Seeded; one thread; needs libflite. A run that was broken off goes on where it was (`--work`).
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch
from rich.progress import Progress
from torch import nn

from .. import whisper_loader
from ..causal_whisper import CausalWhisper
from ..log_mel import LogMel
from ..tokens import WordTokens
from ..whisper_dims import BlockPlan, WhisperDims
from ..whisper_loader import Checkpoint
from .aligned import Aligned, Hints, collate, loss
from .command_speech import WORDS, Bank, Sample, draw, spoken_bank
from .offline import transcribe

DIMS = WhisperDims(
    n_mels=80,
    n_audio_ctx=200,
    n_audio_state=128,
    n_audio_head=4,
    n_audio_layer=3,
    n_vocab=len(WORDS) + 2,
    n_text_ctx=48,
    n_text_state=128,
    n_text_head=4,
    n_text_layer=2,  # one layer finds the last word, the next looks behind it
)
EOT, SOT = len(WORDS), len(WORDS) + 1
PLAN = BlockPlan(chunk=15, first=30)
OUT = whisper_loader.FIXTURE
_BATCH = 24
_BUCKETS = 4  # batches drawn together and sorted by length
_RATE = 2e-3
_WARM = 80  # steps
_EASY = 0.25  # of the run: the longest phrase grows from 2 words to 6
_GUIDE = 0.3  # weight of the attention's loss
_PHONES = 64  # room for more than the voice has
_HELD_OUT = 1 << 30  # seeds of evaluation


@dataclass(slots=True)
class Run:
    """A training run and how far it is."""

    model: CausalWhisper
    hints: Hints
    optimiser: torch.optim.AdamW
    step: int = 0
    used: float = 0.0  # of the CPU time allowed

    def save(self, path: Path) -> None:
        parts = (self.model.state_dict(), self.hints.state_dict(), self.optimiser.state_dict())
        whole = dict(zip(("model", "hints", "optimiser"), parts, strict=True))
        torch.save(whole | {"step": self.step, "used": self.used}, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def load(self, path: Path) -> None:
        whole: Any = torch.load(path, weights_only=True)
        self.model.load_state_dict(whole["model"])
        self.hints.load_state_dict(whole["hints"])
        self.optimiser.load_state_dict(whole["optimiser"])
        self.step, self.used = whole["step"], whole["used"]


def aligned(sample: Sample, mel: LogMel) -> Aligned:
    """A sample as the model takes it: whole encoder frames only."""
    frames = mel.forward(torch.from_numpy(sample.pcm))
    tokens = tuple(WORDS.index(w) for w in sample.words)
    whole = frames.shape[1] // 2
    return Aligned(frames[:, : whole * 2], tokens, sample.ends, torch.from_numpy(sample.phones[:whole]))


def initial(seed: int) -> tuple[CausalWhisper, Hints]:
    """An untrained model of the fixture's shape and its teacher."""
    torch.manual_seed(seed)
    model = CausalWhisper(DIMS)
    nn.init.normal_(model.decoder.token_embedding.weight, std=0.1)
    nn.init.normal_(model.decoder.positional_embedding, std=0.05)
    return model, Hints(DIMS.n_audio_state, _PHONES, len(WORDS))


def begin(seed: int) -> Run:
    """A run's start."""
    model, hints = initial(seed)
    weights = [*model.parameters(), *hints.parameters()]
    return Run(model, hints, torch.optim.AdamW(weights, lr=_RATE, betas=(0.9, 0.98), weight_decay=0.02))


def advance(run: Run, items: list[Aligned], rng: np.random.Generator) -> float:
    """One step of gradient descent; the rate falls with `run.used`. Returns the loss."""
    rate = _RATE * min(1.0, (run.step + 1) / _WARM) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * run.used)))
    for group in run.optimiser.param_groups:
        group["lr"] = rate
    batch = collate(items, PLAN, [SOT], EOT, rng)
    with torch.autocast("cpu", torch.bfloat16):
        value = loss(run.model, batch, PLAN, run.hints, _GUIDE)
    run.optimiser.zero_grad()
    value.backward()
    weights = [*run.model.parameters(), *run.hints.parameters()]
    nn.utils.clip_grad_norm_(weights, 1.0)
    run.optimiser.step()
    run.step += 1
    return value.item()


def word_error(model: CausalWhisper, bank: Bank, count: int) -> float:
    """Offline, on utterances whose joins and noises were never trained on."""
    mel = LogMel(DIMS.n_mels)
    samples = [s for s in draw(bank, [_HELD_OUT], count) if s.words]
    model.eval()
    found = [transcribe(model, aligned(s, mel).mel, PLAN, WordTokens(WORDS)) for s in samples]
    model.train()
    return jiwer.wer([" ".join(s.words) for s in samples], found)


def train(bank: Bank, seconds: float, seed: int, keep: Path) -> CausalWhisper:
    """Train until `seconds` of this thread's CPU time are used up. Writes the run to `keep` now and then."""
    run, mel = begin(seed), LogMel(DIMS.n_mels)
    if keep.is_file():
        run.load(keep)
    before = run.used
    since = time.thread_time()
    with Progress() as progress:
        task = progress.add_task("asr fixture", total=1.0)
        while run.used < 1:
            longest = 2 + int(4 * min(1.0, run.used / _EASY))
            items = [aligned(s, mel) for s in draw(bank, [seed, run.step], _BATCH * _BUCKETS, longest)]
            items.sort(
                key=lambda item: item.mel.shape[1]
            )  # equal lengths together: half of a batch was padding
            rng = np.random.default_rng([seed, run.step, 1])
            values = [advance(run, items[i : i + _BATCH], rng) for i in rng.permutation(_BUCKETS) * _BATCH]
            value = float(np.mean(values))
            run.used = min(1.0, before + (time.thread_time() - since) / seconds)
            progress.update(task, completed=run.used, description=f"step {run.step} loss {value:.3f}")
            if run.step % 40 == 0:
                progress.console.print(f"step {run.step} used {run.used:.3f} loss {value:.3f}")
            if run.step % 200 == 0:
                run.save(keep)
                progress.console.print(f"step {run.step} word error {word_error(run.model, bank, 40):.3f}")
    run.save(keep)
    return run.model.eval()


def save(model: CausalWhisper, path: Path) -> None:
    """fp16, with shape, words and plan in the header."""
    state = {k: v.half() for k, v in model.state_dict().items()}
    whisper_loader.save(Checkpoint(DIMS, state, PLAN, tuple(WORDS)), path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=12.0, help="CPU minutes of training")
    parser.add_argument("--phrases", type=int, default=3000, help="spoken once, then cut and joined")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--work", type=Path, default=Path("build/asr_fixture"), help="bank and state of the run"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.work.mkdir(parents=True, exist_ok=True)
    kept = options.work / f"phrases-{options.seed}-{options.phrases}.npz"
    if not kept.is_file():
        with Progress() as progress:
            task = progress.add_task("speaking", total=options.phrases)
            spoken_bank(options.seed, options.phrases, lambda n: progress.update(task, completed=n)).save(
                kept
            )
    bank = Bank.load(kept)
    model = train(bank, options.minutes * 60, options.seed, options.work / f"run-{options.seed}.pt")
    save(model, options.out)
    print(f"word error offline {word_error(model, bank, 300):.4f}")
    print(f"{options.out}: {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters")


if __name__ == "__main__":
    main()
