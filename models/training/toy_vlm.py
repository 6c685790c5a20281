"""Trains the toy VLM on its synthetic world, on one CPU thread, in well under an hour.

    python -m penstock.models.training.toy_vlm --work /tmp/toy

First the eye learns what is in a picture and how it moves (the world knows); then it is frozen, a bank of
streams is looked at once, and the decoder learns to narrate and to answer from it (`toy_lessons.py`). A question
about one thing is also told which: the tapped layers learn to look there (supervised attention, 1608.00112).
Seeded; minutes are CPU time.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..rope import turn
from ..toy_questions import Moment
from ..toy_vlm import CELL_PARTS, CELLS, SCENE_PARTS, THINGS, TOKENS, WEIGHTS, Block, Eye, Seen, ToyVlm, load
from .toy_lessons import IGNORE, SILENCE, Lesson, Stream, bank, lesson, watch

QUESTIONS = 16  # of a lesson: they share its pictures
LOOK_WEIGHT = 0.2  # of the loss that teaches where to look
LOOK_MASS = 0.2  # of its attention: as much on the thing that is asked about is enough
_BRIGHT, _MOTION = ("dark", "medium", "bright"), ("none", "little", "much")
_MAIN = ("gray", "red", "yellow", "green", "blue", "purple")


def eye_loss(seen: Seen, moments: list[Moment]) -> Tensor:
    """Things at their centre's cell, and the scene."""
    b = len(moments)
    there = torch.zeros(b, CELLS, CELLS)
    picked: list[tuple[int, int, int]] = []
    truth: list[tuple[int, int, int, float, float]] = []
    for i, m in enumerate(moments):
        for t in m.things:
            x, y = t.x / 8, t.y / 8
            column, row = min(CELLS - 1, int(x)), min(CELLS - 1, int(y))
            there[i, row, column] = 1
            picked.append((i, row, column))
            fresh = m.first or (m.happening is not None and m.happening.name == t.name)
            truth.append(
                (t.shape, t.colour, IGNORE if fresh else t.direction, x - column - 0.5, y - row - 0.5)
            )
    logit, shape, colour, direction, offset = seen.cells.split(CELL_PARTS, 1)
    loss = F.binary_cross_entropy_with_logits(logit[:, 0], there, pos_weight=torch.tensor(3.0)) * 4
    if picked:
        i, r, c = torch.tensor(picked).T
        labels = torch.tensor([t[:3] for t in truth]).T
        for part, label in zip((shape, colour, direction), labels, strict=True):
            loss = loss + F.cross_entropy(part[i, :, r, c], label, ignore_index=IGNORE)
        place = torch.tensor([t[3:] for t in truth])
        loss = loss + F.mse_loss(offset[i, :, r, c].tanh() * 0.5, place) * 4
    words = [(_BRIGHT.index(m.brightness), _MOTION.index(m.motion), _MAIN.index(m.main)) for m in moments]
    for part, label in zip(seen.scene.split(SCENE_PARTS, 1), torch.tensor(words).T, strict=True):
        loss = loss + 0.5 * F.cross_entropy(part, label)
    return loss


def train_eye(eye: Eye, course: Course) -> None:
    for step in course:
        batches = [watch((course.seed, 1, step, i), 8) for i in range(14)]
        moments = [m for b in batches for m in b[2]]
        with torch.autocast("cpu", torch.bfloat16):
            seen = eye(torch.cat([b[0] for b in batches]), torch.cat([b[1] for b in batches]))
        course.learn(eye_loss(Seen(*(part.float() for part in seen)), moments))


class Gaze:
    """Records where layers look from: their queries and keys. `with Gaze(model) as gaze: forward …`."""

    def __init__(self, model: ToyVlm) -> None:
        self._decoder = model.decoder
        self.found: list[Tensor] = []

    def __enter__(self) -> Gaze:
        def keep(module: object, inputs: object, output: Tensor) -> None:
            self.found.append(output)

        self._handles = [
            cast("Block", block).qkv.register_forward_hook(keep) for block in self._decoder.blocks[:3]
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def loss(self, lessons: list[Lesson], positions: Tensor, mask: Tensor) -> Tensor:
        """positions (B, L), mask (B, L, L). Of questions about one thing, a step a layer: the word that names it looks at it,
        the question's end at that word, then at the thing itself; and what tells that a thing came or left looks at it. Mean
        of -log(its share of what its picture's things get), and of what each look lacks to LOOK_MASS of all attention."""
        about = [(b, *x) for b, one in enumerate(lessons) for x in one.about]
        told = [(b, *x) for b, one in enumerate(lessons) for x in one.happened]
        b, named, end, thing = torch.tensor(about, dtype=torch.long).view(-1, 4).T
        steps = (
            (0, b, named, thing),
            (1, b, end, named),
            (2, b, end, thing),
            (2, *torch.tensor(told, dtype=torch.long).view(-1, 3).T),
        )
        loss = torch.zeros(())
        for layer, row, at, to in steps:
            if not len(row):
                continue
            looks = self.looks_of(self.found[layer], row, at, positions, mask)
            own = looks.gather(1, to[:, None])[:, 0] + 1e-6
            loss = loss + (LOOK_MASS / own).log().clamp_min(0).mean()
            if to is not named:
                where = [lessons[r].picture_of(t) for r, t in zip(row.tolist(), to.tolist(), strict=True)]
                every = torch.tensor(where)[:, None] + torch.arange(THINGS)
                loss = loss + ((looks.gather(1, every).sum(1) + 1e-6) / own).log().mean()
        return loss

    def looks_of(self, found: Tensor, b: Tensor, at: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
        """(n, L): what tokens `at` of rows `b` look at, heads averaged."""
        d = self._decoder
        cos, sin = (x[:, None] for x in d.rope.angles(positions))
        q, k, _ = found.float().split([n * d.head_dim for n in (d.heads, d.kv_heads, d.kv_heads)], -1)
        q, k = (
            turn(x.unflatten(-1, (-1, d.head_dim)).transpose(1, 2), cos, sin) for x in (q, k)
        )  # (B, H, L, D)
        k = k.repeat_interleave(d.heads // d.kv_heads, 1)
        scores = torch.einsum("nhd,nhkd->nhk", q[b, :, at], k[b]) * d.head_dim**-0.5
        return scores.masked_fill(~mask[b, at][:, None], -torch.inf).softmax(-1).mean(1)


def forward(model: ToyVlm, lessons: list[Lesson], look: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """→ logits (B, L, words), labels (B, L), and the loss of where it looks, 0 unless asked for."""
    length = max(len(x.ids) for x in lessons)

    def pad(rows: list[list[int]], value: int) -> Tensor:
        return torch.tensor([r + [value] * (length - len(r)) for r in rows])

    ids, labels = pad([x.ids for x in lessons], 0), pad([x.labels for x in lessons], IGNORE)
    branch, positions = pad([x.branch for x in lessons], 99), pad([x.positions for x in lessons], 0)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    mask = causal & ((branch[:, None] == -1) | (branch[:, None] == branch[:, :, None]))  # (B, L, L)
    where, rows, slots, whole = [], [], [], []
    for b, x in enumerate(lessons):
        for at, tick in x.pictures:
            where.append(torch.arange(at, at + TOKENS))
            rows.append(torch.full((TOKENS,), b))
            slots.append(x.stream.slots[tick])
            whole.append(x.stream.whole[tick])
    decoder = model.decoder
    pictures = decoder.picture(torch.stack(slots), torch.stack(whole)).flatten(0, 1)
    x = decoder.words(ids).index_put((torch.cat(rows), torch.cat(where)), pictures.float())
    if not look:
        return decoder(x, positions, mask[:, None]), labels, torch.zeros(())
    with Gaze(model) as gaze:
        logits = decoder(x, positions, mask[:, None])
    return logits, labels, gaze.loss(lessons, positions, mask)


def train_decoder(model: ToyVlm, streams: list[Stream], course: Course) -> None:
    weight = torch.ones(model.decoder.words.num_embeddings)
    weight[SILENCE] = 0.3
    kinds = (None,) * QUESTIONS
    for step in course:
        rng = np.random.default_rng((course.seed, 3, step))
        lessons = [lesson(rng, streams[int(rng.integers(len(streams)))], kinds) for _ in range(16)]
        with torch.autocast("cpu", torch.bfloat16):
            logits, labels, astray = forward(model, lessons, look=True)
        said = F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), weight, ignore_index=IGNORE)
        course.learn(said + LOOK_WEIGHT * astray)


@torch.no_grad()
def examine(model: ToyVlm, count: int, seed: int, bar: Progress) -> dict[str, float]:
    """Held-out streams: share of right answers by kind, precision and recall of what it says at `<look>`."""
    rng = np.random.default_rng((seed, 5))
    streams = bank(model.eye, count, (seed, 4), bar)
    right: dict[str, list[bool]] = {}
    said = true = hit = exact = 0
    for first in range(0, count, 32):
        lessons = [lesson(rng, s, (None,) * QUESTIONS) for s in streams[first : first + 32]]
        words = forward(model, lessons)[0].argmax(-1)
        for i, x in enumerate(lessons):
            for kind, at, answer in x.asked:
                right.setdefault(kind, []).append(words[i, at : at + len(answer)].tolist() == answer)
            for at, say in x.looks:
                speaks = int(words[i, at]) != SILENCE
                said += speaks
                true += bool(say)
                hit += speaks and bool(say)
                exact += bool(say) and words[i, at : at + len(say)].tolist() == say
    table = {kind: 100 * sum(r) / len(r) for kind, r in sorted(right.items())}
    table["qa"] = 100 * sum(map(sum, right.values())) / sum(map(len, right.values()))
    table |= {"event_precision": 100 * hit / max(1, said), "event_recall": 100 * hit / max(1, true)}
    table["event_words"] = 100 * exact / max(1, true)
    return {k: round(v, 1) for k, v in table.items()}


class Course:
    """Steps of one training, with warm-up and cosine decay; saved once a minute, and taken up again from there."""

    def __init__(
        self,
        module: torch.nn.Module,
        steps: int,
        rate: float,
        seed: int,
        save: Path,
        bar: Progress,
        decay: float,
    ) -> None:
        self.module, self.steps, self.rate, self.seed, self._save = module, steps, rate, seed, save
        self._bar, self._task, self._name = bar, bar.add_task(save.stem, total=steps), save.stem
        self._optimiser = torch.optim.AdamW(
            module.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=decay
        )
        self.step = self._load() if save.exists() else 0
        self._saved = time.monotonic()

    def __iter__(self) -> Iterator[int]:
        while self.step < self.steps:
            yield self.step
        self._store()

    def learn(self, loss: Tensor) -> None:
        """One step of the optimiser."""
        part = self.step / self.steps
        rate = self.rate * min(1, (self.step + 1) / 60) * (0.02 + 0.49 * (1 + math.cos(math.pi * part)))
        for group in self._optimiser.param_groups:
            group["lr"] = rate
        self._optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self._optimiser.step()
        self.step += 1
        self._bar.update(self._task, completed=self.step, description=f"{self._name} loss {loss.item():.3f}")
        if self.step % 100 == 0:
            spent = time.process_time()
            self._bar.console.print(f"{self._name} {self.step}: loss {loss.item():.3f}, {spent:.0f} CPU s")
        if time.monotonic() - self._saved > 60:
            self._store()

    def _moments(self) -> dict[str, Tensor]:
        state = self._optimiser.state
        named = self.module.named_parameters()
        return {
            f"{key}/{name}": state[p][key] for name, p in named for key in ("exp_avg", "exp_avg_sq", "step")
        }

    def _store(self) -> None:
        tensors = {f"weight/{k}": v for k, v in self.module.state_dict().items()}
        draft = self._save.with_suffix(".part")
        save_file(tensors | self._moments() | {"step": torch.tensor(self.step)}, draft)
        draft.replace(self._save)  # at once: a kill never leaves half a file
        self._saved = time.monotonic()

    def _load(self) -> int:
        tensors = load_file(self._save)
        weights = {k.removeprefix("weight/"): v for k, v in tensors.items() if k.startswith("weight/")}
        self.module.load_state_dict(weights)
        for name, p in self.module.named_parameters():
            self._optimiser.state[p] = {
                key: tensors[f"{key}/{name}"] for key in ("exp_avg", "exp_avg_sq", "step")
            }
        return int(tensors["step"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the toy VLM")
    parser.add_argument("--eye-steps", type=int, default=4000)
    parser.add_argument("--decoder-steps", type=int, default=4000)
    parser.add_argument("--streams", type=int, default=5000, help="in the bank that the decoder learns from")
    parser.add_argument(
        "--start", type=Path, help="a toy's weights to begin from; keep its eye with --eye-steps 0"
    )
    parser.add_argument("--rate", type=float, default=2.5e-3, help="of learning, at its height")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument(
        "--work", type=Path, default=Path("toy_vlm_work"), help="where it can be taken up again"
    )
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    model = load(args.start).requires_grad_() if args.start else ToyVlm()
    args.work.mkdir(parents=True, exist_ok=True)
    with Progress() as bar:
        if args.eye_steps:
            course = Course(
                model.eye, args.eye_steps, args.rate, args.seed, args.work / "eye.safetensors", bar, 0.02
            )
            train_eye(model.eye, course)
        streams = bank(model.eye.eval(), args.streams, (args.seed, 2), bar)
        course = Course(
            model.decoder,
            args.decoder_steps,
            args.rate,
            args.seed,
            args.work / "decoder.safetensors",
            bar,
            0.05,
        )
        train_decoder(model, streams, course)
        table = examine(model.eval(), 640, args.seed + 1_000_000, bar)
    print(json.dumps(table))
    args.out.parent.mkdir(exist_ok=True)
    weights = {k: v.half().contiguous() for k, v in model.state_dict().items()}
    save_file(weights, args.out, metadata={"exam": json.dumps(table), "seed": str(args.seed)})
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
