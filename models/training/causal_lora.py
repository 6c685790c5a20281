"""Make a Whisper checkpoint causal: low-rank adapters on its attention, trained on time-aligned speech.

    python -m penstock.models.training.causal_lora --base openai/whisper-base --data aligned/ --chunk-ms 300 \\
        --out base_300.pt

The audio is encoded block by block and the text is asked for at random ends of a block, so the model learns to write what
has been said so far. `--base`: whatever `asr.causal` reads. `--data`: a folder with aligned.jsonl (see
`aligned_speech`), or "fixture" for the synthetic voice of the fixture's checkpoint (needs libflite1). `--out`: .pt has the
layout of the published causal checkpoints, adapters apart; .safetensors is merged. Both are what `asr.causal` reads.

Seeded. A run that was broken off (Ctrl-C too) goes on where it was, as long as `--work` is kept.

Source: CarelessWhisper, arXiv 2508.12301, section 3: rank 32 (4 for large), α = rank, query, key, value and out.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn

from .. import whisper_loader
from ..causal_whisper import CausalWhisper
from ..lora import adapt, merge
from ..tokens import Tokens
from ..whisper_dims import FRAME_MS, BlockPlan
from ..whisper_loader import Checkpoint
from .aligned import collate, loss
from .aligned_speech import Material, Recordings, SyntheticCommands
from .offline import transcribe

_FIRST = 30  # frames that the first block has at least
_WARM = 50  # steps


def plan_of(chunk_ms: int) -> BlockPlan:
    """The grid of the published checkpoints: a first block of whole chunks, at least 600 ms. Raises: ValueError."""
    chunk = BlockPlan.of_ms(chunk_ms).chunk
    return BlockPlan(chunk, math.ceil(_FIRST / chunk) * chunk)


@dataclass(slots=True)
class Run:
    """A fine-tuning and how far it is."""

    model: CausalWhisper
    plan: BlockPlan
    tokens: Tokens
    rank: int
    trained: list[nn.Parameter]
    optimiser: torch.optim.AdamW
    origin: str  # digest of the base
    step: int = 0

    def adapters(self) -> dict[str, Tensor]:
        return {k: v for k, v in self.model.state_dict().items() if ".lora_layer." in k}

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {"adapters": self.adapters(), "optimiser": self.optimiser.state_dict(), "step": self.step}
        kept |= {"rank": self.rank, "plan": asdict(self.plan), "origin": self.origin}
        torch.save(kept, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)

    def resume(self, path: Path) -> None:
        """Raises: ValueError when what is kept is of another run."""
        kept: Any = torch.load(path, weights_only=True)
        own = (self.rank, asdict(self.plan), self.origin)
        if (kept.get("rank"), kept.get("plan"), kept.get("origin")) != own:
            raise ValueError(f"{path} was begun with another base, rank or chunk: name another --work")
        self.model.load_state_dict(kept["adapters"], strict=False)
        self.optimiser.load_state_dict(kept["optimiser"])
        self.step = kept["step"]


def begin(
    base: Checkpoint, tokens: Tokens, plan: BlockPlan, *, rank: int, seed: int, device: str = "cpu"
) -> Run:
    """The base with adapters that change nothing yet. Raises: CheckpointError."""
    model = whisper_loader.build(base)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        trained = adapt(model, rank)
    model = model.to(device).train()
    optimiser = torch.optim.AdamW(trained, weight_decay=0.0)
    return Run(model, plan, tokens, rank, trained, optimiser, _digest(base.state))


def _digest(state: Mapping[str, Tensor]) -> str:
    whole = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        whole.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        whole.update(tensor.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data)
    return whole.hexdigest()


def advance(run: Run, material: Material, *, seed: int, batch: int, rate: float, steps: int) -> float:
    """One step of gradient descent; the rate rises, then falls to nothing at `steps`. Returns the loss."""
    turn = 0.5 * (1 + math.cos(math.pi * min(1.0, run.step / max(1, steps))))
    for group in run.optimiser.param_groups:
        group["lr"] = rate * min(1.0, (run.step + 1) / min(_WARM, max(1, steps // 4))) * turn
    items = material.draw([seed, run.step], batch)
    rng = np.random.default_rng([seed, run.step, 1])
    one = collate(items, run.plan, run.tokens.prefix, run.tokens.eot, rng).to(run.model.like.device)
    with torch.autocast(one.mel.device.type, torch.bfloat16):
        value = loss(run.model, one, run.plan)
    run.optimiser.zero_grad()
    value.backward()
    nn.utils.clip_grad_norm_(run.trained, 1.0)
    run.optimiser.step()
    run.step += 1
    return value.item()


def word_error(run: Run, material: Material, count: int) -> float:
    """Of held-out utterances, encoded on the run's blocks."""
    run.model.eval()
    pairs = [(text, item) for text, item in material.held_out(count) if text]
    found = [transcribe(run.model, item.mel, run.plan, run.tokens) for _, item in pairs]
    run.model.train()
    return jiwer.wer([text for text, _ in pairs], found) if pairs else math.nan


def write(run: Run, words: tuple[str, ...], path: Path) -> None:
    """The result: adapters apart in the published layout (.pt), or merged (.safetensors)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state: Mapping[str, Tensor] = {k: v.detach().cpu() for k, v in run.model.state_dict().items()}
    if path.suffix == ".safetensors":
        whisper_loader.save(Checkpoint(run.model.dims, merge(state), run.plan, words), path)
        return
    extra = run.plan.first // run.plan.chunk - 1
    cfg = {"gran": run.plan.chunk, "rank": run.rank, "extra_gran_blocks": extra}
    torch.save({"dims": asdict(run.model.dims), "cfg": cfg, "state_dict": dict(state)}, path)


def train(
    run: Run, material: Material, *, seed: int, batch: int, rate: float, steps: int, keep: Path, every: int
) -> None:
    """Go on until `steps`; `keep` is written each `every` steps and when the run is broken off."""
    if keep.is_file():
        run.resume(keep)
    with Progress() as progress:
        task = progress.add_task("causal lora", total=steps, completed=run.step)
        if run.step == 0:
            progress.console.print(f"word error before: {word_error(run, material, 40):.3f}")
        try:
            while run.step < steps:
                value = advance(run, material, seed=seed, batch=batch, rate=rate, steps=steps)
                progress.update(task, completed=run.step, description=f"step {run.step} loss {value:.3f}")
                if run.step % every == 0:
                    run.save(keep)
                    error = word_error(run, material, 40)
                    progress.console.print(f"step {run.step} loss {value:.3f} word error {error:.3f}")
        finally:
            run.save(keep)


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    whole.add_argument(
        "--base", default=str(whisper_loader.FIXTURE), help="a checkpoint (default: the fixture)"
    )
    whole.add_argument("--data", default="fixture", help="a folder with aligned.jsonl, or fixture")
    whole.add_argument("--language", default="en", help="of a multilingual base")
    whole.add_argument("--chunk-ms", type=int, default=300, help="40 to 1000, a multiple of 20")
    whole.add_argument("--rank", type=int, default=32, help="of the adapters")
    whole.add_argument("--steps", type=int, default=1000)
    whole.add_argument("--batch", type=int, default=16, help="utterances a step")
    whole.add_argument("--rate", type=float, default=1e-3, help="peak learning rate")
    whole.add_argument("--every", type=int, default=200, help="steps from one checkpoint to the next")
    whole.add_argument("--seed", type=int, default=1)
    whole.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    whole.add_argument("--work", type=Path, default=Path("build/causal_lora"), help="state of the run")
    whole.add_argument("--out", type=Path, required=True, help=".pt or .safetensors")
    return whole


def main() -> None:
    options = parser().parse_args()
    if options.out.suffix not in (".pt", ".safetensors"):
        raise SystemExit(f"--out {options.out}: accepted are .pt and .safetensors")
    if min(options.rank, options.steps, options.batch, options.every) < 1:
        raise SystemExit("--rank, --steps, --batch and --every must be at least 1")
    if options.device == "cpu":
        torch.set_num_threads(1)
    elif not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no CUDA device here")
    try:
        plan = plan_of(options.chunk_ms)
        base = whisper_loader.read(options.base)
        tokens = whisper_loader.vocabulary(base, options.base, options.language)
        material = _material(options.data, options.work, tokens, base, options.seed)
        run = begin(base, tokens, plan, rank=options.rank, seed=options.seed, device=options.device)
        train(
            run, material, seed=options.seed, batch=options.batch, rate=options.rate, steps=options.steps,
            keep=options.work / "run.pt", every=options.every,
        )  # fmt: skip
    except (ValueError, FileNotFoundError) as e:
        raise SystemExit(f"causal_lora: {e}") from e
    except KeyboardInterrupt:
        raise SystemExit(f"broken off; the same command goes on from {options.work / 'run.pt'}") from None
    write(run, base.words, options.out)
    trained = sum(p.numel() for p in run.trained)
    print(f"{options.out}: {trained / 1e6:.2f}M trained, word error {word_error(run, material, 150):.4f}")


def _material(data: str, work: Path, tokens: Tokens, base: Checkpoint, seed: int) -> Material:
    if data != "fixture":
        return Recordings(Path(data), tokens, base.dims.n_audio_ctx * FRAME_MS / 1000, base.dims.n_mels)
    phrases = 600
    with Progress() as progress:
        task = progress.add_task("speaking", total=phrases)
        return SyntheticCommands.at(
            work / f"phrases-{seed}.npz", tokens, phrases, seed, lambda n: progress.update(task, completed=n)
        )


if __name__ == "__main__":
    main()
