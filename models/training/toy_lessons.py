"""What the toy VLM's decoder is taught from: streams that the eye has looked at, and moments of them as lessons.

Each lesson has the layout of the live cache: sinks, old narrations, the last few pictures, then questions as branches that do
not see each other. Invented old narrations make memory independent of age; most real hours are quiet, so some streams are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from ..toy_questions import INDEX, Moment, encode, moment, question
from ..toy_vlm import TOKENS, Eye, scene, things
from ..toy_world import COLOURS, SHAPES, Happening, World

TICKS = 16  # of a stream in the bank
RATES = (0.35, 0.35, 0.1, 0.02)  # chances of an event in a tick, of the bank's streams in turn
IGNORE = -100
SINKS = 4
_SYS, _LOOK, SILENCE = INDEX["<sys>"], INDEX["<look>"], INDEX["<silence>"]
_ASK, _ANSWER, _END = INDEX["<ask>"], INDEX["<answer>"], INDEX["<end>"]
_NAMES = frozenset(INDEX[w] for w in (*COLOURS, *SHAPES))


@dataclass(slots=True)
class Stream:
    """One stream of the bank, looked at."""

    slots: Tensor  # (16, 4, THING)
    whole: Tensor  # (16, 1, 12)
    moments: list[Moment]
    past: list[Happening]


def _chw(images: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous()


def watch(
    seed: tuple[int, ...], ticks: int, rate: float = 0.35
) -> tuple[Tensor, Tensor, list[Moment], list[Happening]]:
    """(now, before, moments, happenings) of a fresh world; pictures uint8 (ticks, 3, 48, 48)."""
    world = World(seed, rate=rate)
    images, moments, past = [], [], []
    for t in range(ticks):
        tick = world.step()
        moments.append(moment(tick, images[-1] if t else None))
        images.append(tick.image)
        if tick.happening:
            past.append(tick.happening)
    return _chw(images), _chw(images[:1] + images[:-1]), moments, past


@torch.no_grad()
def bank(eye: Eye, count: int, seed: tuple[int, ...], bar: Progress) -> list[Stream]:
    streams: list[Stream] = []
    for i in bar.track(range(count), description="looking"):
        now, before, moments, past = watch((*seed, i), TICKS, RATES[i % len(RATES)])
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
    about: list[tuple[int, int, int]]  # of one thing: where it is named, where the question ends, its token
    happened: list[tuple[int, int]]  # what came or left: where it is told, where its token is or last was

    def picture_of(self, token: int) -> int:
        """Where the picture begins that the token is of."""
        return max(at for at, _ in self.pictures if at <= token)


def lesson(rng: np.random.Generator, stream: Stream, kinds: tuple[str | None, ...]) -> Lesson:
    """A moment of the stream as the live cache would hold it."""
    t = int(rng.integers(0, TICKS))
    start = max(0, t + 1 - int(rng.integers(4, 9)))
    out = Lesson(stream, [_SYS] * SINKS, [IGNORE] * SINKS, [-1] * SINKS, [], [], [], [], [], [])
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
        back = 1 if now is not None and now.what == "left" else 0
        if taught and now is not None and tick - back >= start:
            slot = _of_colour(stream.slots[tick - back], now.name.split()[0])
            if slot is not None:
                out.happened.append((len(out.ids) + TOKENS, out.pictures[-1 - back][0] + slot))
        out.ids += [0] * TOKENS + [_LOOK] + say
        out.labels += (
            [IGNORE] * TOKENS + ([*say, IGNORE] if say else [SILENCE])
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
        if (slot := _slot(stream.slots[t], asked, q, a)) is not None:
            named = next(i for i, w in enumerate(ask) if w in _NAMES)
            out.about.append((len(out.ids) + named, len(out.ids) + len(ask) - 1, out.pictures[-1][0] + slot))
        out.ids += ask + answer
        out.labels += [IGNORE] * (len(ask) - 1) + answer + [IGNORE]
        out.branch += [number] * (len(ask) + len(answer))
        out.positions += range(end, end + len(ask) + len(answer))
    return out


def _slot(slots: Tensor, kind: str, q: str, a: str) -> int | None:
    """Which of the picture's tokens (4, THING) is the thing that the question is about; None when it is about none."""
    if kind not in ("shape", "where", "moves", "color", "exist"):
        return None
    colour = a if kind == "color" else next((w for w in q.split() if w in COLOURS), "")
    return _of_colour(slots, colour) if colour else None  # "": it became a count


def _of_colour(slots: Tensor, colour: str) -> int | None:
    first = 1 + len(SHAPES)
    seen = slots[:, first : first + len(COLOURS)][:, COLOURS.index(colour)]
    return int(seen.argmax()) if float(seen.max()) > 0.5 else None
