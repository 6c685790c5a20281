"""Trains the toy VLM on its synthetic world, on one CPU thread, in well under an hour.

    python -m penstock.models.training.toy_vlm --work /tmp/toy

First the eye learns what is in a picture and how it moves (the world knows); then it is frozen, a bank of
streams is looked at once, and the decoder learns to narrate and to answer from it. Each lesson has the layout
of the live cache: sinks, old narrations, the last few pictures, then questions as branches that do not see
each other. Invented old narrations make memory independent of age. Seeded; minutes are CPU time.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..toy_questions import INDEX, Moment, encode, moment, question
from ..toy_vlm import CELL_PARTS, CELLS, SCENE_PARTS, TOKENS, WEIGHTS, Eye, Seen, ToyVlm, scene, things
from ..toy_world import COLOURS, SHAPES, Happening, World

TICKS = 16  # of a stream in the bank
QUESTIONS = 16  # of a lesson: they share its pictures
IGNORE = -100
SINKS = 4
_SYS, _LOOK, _SILENCE = INDEX["<sys>"], INDEX["<look>"], INDEX["<silence>"]
_ASK, _ANSWER, _END = INDEX["<ask>"], INDEX["<answer>"], INDEX["<end>"]
_BRIGHT, _MOTION = ("dark", "medium", "bright"), ("none", "little", "much")
_MAIN = ("gray", "red", "yellow", "green", "blue", "purple")


@dataclass(slots=True)
class Stream:
    """One stream of the bank, looked at."""

    slots: Tensor  # (16, 4, THING)
    whole: Tensor  # (16, 1, 12)
    moments: list[Moment]
    past: list[Happening]


def _chw(images: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def watch(seed: tuple[int, ...], ticks: int) -> tuple[Tensor, Tensor, list[Moment], list[Happening]]:
    """(now, before, moments, happenings) of a fresh world; pictures uint8 (ticks, 3, 48, 48)."""
    world = World(seed, rate=0.35)
    images, moments, past = [], [], []
    for t in range(ticks):
        tick = world.step()
        moments.append(moment(tick, images[-1] if t else None))
        images.append(tick.image)
        if tick.happening:
            past.append(tick.happening)
    return _chw(images), _chw(images[:1] + images[:-1]), moments, past


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


@torch.no_grad()
def bank(eye: Eye, count: int, seed: tuple[int, ...], bar: Progress) -> list[Stream]:
    streams: list[Stream] = []
    for i in bar.track(range(count), description="looking"):
        now, before, moments, past = watch((*seed, i), TICKS)
        seen = eye(now, before)
        streams.append(Stream(things(seen), scene(seen), moments, past))
    return streams


@dataclass(slots=True)
class Lesson:
    """One sequence. `branch`: -1 for the stream itself, else the question's number."""

    stream: Stream
    ids: list[int]
    labels: list[int]
    branch: list[int]
    positions: list[int]
    pictures: list[tuple[int, int]]  # (where its five tokens are, which tick)
    asked: list[tuple[str, int, list[int]]]  # kind, where the answer is predicted from, its ids
    looks: list[tuple[int, list[int]]]  # where it may speak, what it should say ([] is silence)


def lesson(rng: np.random.Generator, stream: Stream, kinds: tuple[str | None, ...]) -> Lesson:
    """A moment of the stream as the live cache would hold it."""
    t = int(rng.integers(0, TICKS))
    start = max(0, t + 1 - int(rng.integers(4, 9)))
    out = Lesson(stream, [_SYS] * SINKS, [IGNORE] * SINKS, [-1] * SINKS, [], [], [], [])
    older: list[Happening] = []
    for _ in range(min(24, int(rng.geometric(0.2)) - 1)):
        name = f"{COLOURS[int(rng.integers(6))]} {SHAPES[int(rng.integers(4))]}"
        older.append(Happening(-1, name, "came" if rng.random() < 0.5 else "left"))
    past = older + [h for h in stream.past if h.tick <= t]
    for h in older + [h for h in stream.past if h.tick < start]:
        words = [*encode(f"{h.name} {h.what}"), _END]
        out.ids += words
        out.labels += [IGNORE] * len(words)
        out.branch += [-1] * len(words)
    for tick in range(start, t + 1):
        out.pictures.append((len(out.ids), tick))
        now = stream.moments[tick].happening
        say = [*encode(f"{now.name} {now.what}"), _END] if now else []
        taught = tick - start >= 2 or start == 0  # it sees enough pictures to know
        out.looks += [(len(out.ids) + TOKENS, say)] if taught else []
        out.ids += [0] * TOKENS + [_LOOK] + say
        out.labels += (
            [IGNORE] * TOKENS + ([*say, IGNORE] if say else [_SILENCE])
            if taught
            else ([IGNORE] * (TOKENS + 1 + len(say)))
        )
        out.branch += [-1] * (TOKENS + 1 + len(say))
    end = len(out.ids)
    out.positions = list(range(end))
    for number, kind in enumerate(kinds):
        asked, q, a = question(rng, stream.moments[t], past, kind)
        ask, answer = [_ASK, *encode(q), _ANSWER], [*encode(a), _END]
        out.asked.append((asked, len(out.ids) + len(ask) - 1, answer))
        out.ids += ask + answer
        out.labels += [IGNORE] * (len(ask) - 1) + answer + [IGNORE]
        out.branch += [number] * (len(ask) + len(answer))
        out.positions += range(end, end + len(ask) + len(answer))
    return out


def forward(model: ToyVlm, lessons: list[Lesson]) -> tuple[Tensor, Tensor]:
    """→ logits (B, L, words), labels (B, L)."""
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
    return decoder(x, positions, mask[:, None]), labels


def train_decoder(model: ToyVlm, streams: list[Stream], course: Course) -> None:
    weight = torch.ones(model.decoder.words.num_embeddings)
    weight[_SILENCE] = 0.3
    kinds = (None,) * QUESTIONS
    for step in course:
        rng = np.random.default_rng((course.seed, 3, step))
        lessons = [lesson(rng, streams[int(rng.integers(len(streams)))], kinds) for _ in range(16)]
        with torch.autocast("cpu", torch.bfloat16):
            logits, labels = forward(model, lessons)
        course.learn(
            F.cross_entropy(logits.float().flatten(0, 1), labels.flatten(), weight, ignore_index=IGNORE)
        )


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
                speaks = int(words[i, at]) != _SILENCE
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
        self, module: torch.nn.Module, steps: int, seed: int, save: Path, bar: Progress, decay: float
    ) -> None:
        self.module, self.steps, self.seed, self._save = module, steps, seed, save
        self._bar, self._task, self._name = bar, bar.add_task(save.stem, total=steps), save.stem
        self._optimiser = torch.optim.AdamW(
            module.parameters(), lr=2.5e-3, betas=(0.9, 0.98), weight_decay=decay
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
        rate = 2.5e-3 * min(1, (self.step + 1) / 60) * (0.02 + 0.49 * (1 + math.cos(math.pi * part)))
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
    parser.add_argument("--start", type=Path, help="a decoder's weights to begin from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument(
        "--work", type=Path, default=Path("toy_vlm_work"), help="where it can be taken up again"
    )
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(1)
    model = ToyVlm()
    args.work.mkdir(parents=True, exist_ok=True)
    with Progress() as bar:
        train_eye(
            model.eye, Course(model.eye, args.eye_steps, args.seed, args.work / "eye.safetensors", bar, 0.02)
        )
        streams = bank(model.eye.eval(), args.streams, (args.seed, 2), bar)
        if args.start:
            model.decoder.load_state_dict(load_file(args.start))
        course = Course(
            model.decoder, args.decoder_steps, args.seed, args.work / "decoder.safetensors", bar, 0.05
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
