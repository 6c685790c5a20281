"""Train `tiny-restyle` on one CPU core: `python -m penstock.models.training.restyle --steps 24000`.

Teachers are the classical filters of `teachers.py`; what is shown comes from `scenes.py`. The first steps go to
single pictures, many styles a batch. Later, clips of four frames are unrolled as the stream will be: the network sees
its own result of the frame before, moved along with what is seen, and, at the second step, its own first estimate; how
the result moves between frames is part of the loss. Targets are drawn from the clean picture while the network sees a
noisy one: that is what makes it flicker less than its teachers.

Seeded; the learning rate follows the steps. `--minutes` stops earlier, and the next call goes on at that step with
the optimizer's state. On CPUs with bf16 in hardware the passes run in bf16 over fp32 weights, 1.7 times as fast.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from ..motion_field import followed, look, motion
from ..restyle_net import RestyleNet
from ..restyle_prompt import INKS, MODIFIERS, PHRASES, padded, read
from ..stream_models import has_fast_bf16
from . import scenes, teachers
from .restyle_run import Run, write

FRAMES = 4
MOTION = 1.2  # weight of the change between frames
_POOL = 400  # stills kept and cut again: drawing them costs more than a teacher's picture of them
# harder ones more often, from the errors of earlier runs
_OFTEN: dict[str, float] = {
    **{"oil": 1.4, "neon": 1.4, "cartoon": 1.4, "pencil": 1.3, "popart": 1.2, "pixel": 1.2, "blueprint": 1.2},
    **{"identity": 0.7, "sepia": 0.6, "night": 0.6, "noir": 0.8, "thermal": 0.8},
}
# where the teacher itself hardly flickers, what is left of the sensor's noise shows most
_CALM: dict[str, float] = {"watercolor": 3.0, "thermal": 3.0, "oil": 2.5, "popart": 1.5, "cartoon": 1.5}
_STYLES = tuple(teachers.TEACHERS)


def shares(focus: Sequence[str]) -> NDArray[np.float64]:
    """How often each style is asked for; those in focus twice as often."""
    often = np.array([_OFTEN.get(s, 1.0) * (2 if s in focus else 1) for s in _STYLES])
    return often / often.sum()


@dataclass(frozen=True, slots=True)
class Wish:
    """A prompt and what the teachers make of it."""

    prompt: str
    style: str
    ink: str | None = None
    modifiers: tuple[str, ...] = ()


def wish(rng: np.random.Generator, share: NDArray[np.float64]) -> Wish:
    """A random prompt; one of twenty is empty."""
    if rng.random() < 0.05:
        return Wish("", "identity")
    style = str(rng.choice(_STYLES, p=share))
    words = str(rng.choice(PHRASES[style])).split()
    ink = str(rng.choice(INKS)) if style in teachers.INKED and rng.random() < 0.4 else None
    modifiers = tuple(str(m) for m in rng.choice(MODIFIERS, int(rng.random() < 0.3)))
    words += ([ink] if ink else []) + list(modifiers)
    return Wish(" ".join(words), style, ink, modifiers)


@dataclass(frozen=True, slots=True)
class Batch:
    """Clips of B: what the network sees and what it should draw. Pictures in [-1, 1]."""

    source: Tensor  # (T, B, 3, S, S)
    target: Tensor  # (T, B, 3, S, S)
    ids: Tensor  # (2, B, L) words of two prompts
    mix: Tensor  # (B, 1) how much of the second
    pans: tuple[tuple[int, int] | None, ...]  # px a frame
    calm: tuple[float, ...]  # how much the change between frames counts


def _tensor(frames: list[list[NDArray[np.float32]]]) -> Tensor:
    stacked = np.stack([np.stack(f) for f in frames], 1)  # (T, B, S, S, 3)
    return torch.from_numpy(stacked).permute(0, 1, 4, 2, 3) * 2 - 1


def batch(rng: np.random.Generator, count: int, size: int, often: NDArray[np.float64]) -> Batch:
    """`count` random clips of `FRAMES` frames."""
    inner = slice(scenes.MARGIN, scenes.MARGIN + size)
    seen: list[list[NDArray[np.float32]]] = []
    drawn: list[list[NDArray[np.float32]]] = []
    ids: list[list[list[int]]] = []
    mix: list[float] = []
    pans: list[tuple[int, int] | None] = []
    calm: list[float] = []
    for _ in range(count):
        clip = scenes.clip(rng, size, FRAMES)
        a = wish(rng, often)
        share = float(rng.uniform(0.2, 0.8)) if rng.random() < 0.08 else 0.0
        b = wish(rng, often) if share else a
        noise = 0.0 if rng.random() < 0.3 else float(rng.uniform(0, 0.04))
        results: list[NDArray[np.float32]] = []
        for frame in clip.frames:
            result = teachers.apply(frame, a.style, a.ink, a.modifiers)
            if share:
                other = teachers.apply(frame, b.style, b.ink, b.modifiers)
                result = np.asarray((1 - share) * result + share * other, np.float32)
            results.append(result[inner, inner])
        seen.append([scenes.sensor(rng, f[inner, inner], noise) for f in clip.frames])
        drawn.append(results)
        ids.append([padded(read(w.prompt)) for w in (a, b)])
        mix.append(share)
        pans.append(clip.pan)
        calm.append(_CALM.get(a.style, 1.0))
    words = torch.tensor(ids).transpose(0, 1)
    return Batch(_tensor(seen), _tensor(drawn), words, torch.tensor(mix)[:, None], tuple(pans), tuple(calm))


class Singles:
    """Batches of single pictures: as many styles as rows."""

    def __init__(self, rng: np.random.Generator, size: int, often: NDArray[np.float64]) -> None:
        self._rng = rng
        self._often = often
        self._size = size
        self._pool: list[NDArray[np.float32]] = []

    def _cut(self) -> NDArray[np.float32]:
        """A still of size + 2·MARGIN, sometimes new."""
        rng, full = self._rng, self._size + 2 * scenes.MARGIN
        if len(self._pool) < 24 or rng.random() < 0.12:
            fresh = scenes.still(rng, full + 64)
            if len(self._pool) < _POOL:
                self._pool.append(fresh)
            else:
                self._pool[int(rng.integers(_POOL))] = fresh
        image = self._pool[int(rng.integers(len(self._pool)))]
        y, x = rng.integers(0, 65, 2)
        image = image[y : y + full, x : x + full]
        if rng.random() < 0.5:
            image = image[:, ::-1]
        if rng.random() < 0.2:
            image = image[..., rng.permutation(3)]
        return np.ascontiguousarray(image * np.float32(rng.uniform(0.8, 1.0)))

    def loss(self, net: RestyleNet, count: int, noise: torch.Generator) -> Tensor:
        """Half the rows are first steps, from the source; half later ones, from a rough estimate."""
        rng, inner = self._rng, slice(scenes.MARGIN, scenes.MARGIN + self._size)
        seen: list[NDArray[np.float32]] = []
        drawn: list[NDArray[np.float32]] = []
        ids: list[list[int]] = []
        mosaic: list[bool] = []
        for _ in range(count):
            image, w = self._cut(), wish(rng, self._often)
            level = 0.0 if rng.random() < 0.3 else float(rng.uniform(0, 0.04))
            drawn.append(teachers.apply(image, w.style, w.ink, w.modifiers)[inner, inner])
            seen.append(scenes.sensor(rng, image[inner, inner], level))
            ids.append(padded(read(w.prompt)))
            mosaic.append(w.style == "pixel")
        source, target = _tensor([[s] for s in seen])[0], _tensor([[d] for d in drawn])[0]
        half = count // 2
        sigma = torch.empty(count).uniform_(0.65, 0.95, generator=noise)
        sigma[half:] = torch.empty(count - half).uniform_(0.15, 0.6, generator=noise)

        def rough(x: Tensor) -> Tensor:
            amount = torch.rand(count, 1, 1, 1, generator=noise) * 0.15
            return x + amount * torch.randn(x.shape, generator=noise)

        base = torch.cat([source[:half], rough(target)[half:]])
        # the frame before: none, in place, or where motion was not found, which teaches not to copy it blindly
        dy, dx = (int(v) for v in rng.integers(-6, 7, 2))
        moved = torch.rand(count, 1, 1, 1, generator=noise) < 0.25
        before = torch.where(moved, torch.roll(target, (dy, dx), (-2, -1)), target)
        before = rough(before) * (torch.rand(count, 1, 1, 1, generator=noise) > 0.35)
        s = sigma[:, None, None, None]
        noisy = (1 - s) * base + s * torch.randn(base.shape, generator=noise)
        prompt = net.encode(torch.tensor(ids))
        edges = F.binary_cross_entropy_with_logits(
            net.hard(prompt)[:, 0].float(), torch.tensor(mosaic).float()
        )
        return picture_loss(draw(net, noisy, source, before, sigma, prompt), target) + 0.1 * edges


def draw(
    net: RestyleNet, noisy: Tensor, source: Tensor, before: Tensor, sigma: Tensor, prompt: Tensor
) -> Tensor:
    """The network's x0 in fp32, whatever its weights are."""
    kind = net.words.weight.dtype
    pictures = [x.to(kind).contiguous(memory_format=torch.channels_last) for x in (noisy, source, before)]
    return net(*pictures, sigma, prompt).float()


def picture_loss(y: Tensor, target: Tensor) -> Tensor:
    """L1, L2, and L1 of the gradients, without which lines come out blurred.

    L1 alone draws the median, which for thin bright lines on black (neon) is black: L2 pulls them out.
    """
    gy = F.l1_loss(y[..., 1:, :] - y[..., :-1, :], target[..., 1:, :] - target[..., :-1, :])
    gx = F.l1_loss(y[..., 1:] - y[..., :-1], target[..., 1:] - target[..., :-1])
    return 0.8 * F.l1_loss(y, target) + 1.2 * F.mse_loss(y, target) + 0.6 * (gx + gy)


def motion_loss(y: Tensor, before: Tensor, t: Tensor, t_before: Tensor, data: Batch) -> Tensor:
    """How differently from its clean target a result changes along the camera's pan; (B, 3, S, S) each."""
    losses: list[Tensor] = []
    edge = 8  # px that rolling may bring in from the other side
    for i, (pan, calm) in enumerate(zip(data.pans, data.calm, strict=True)):
        if pan is None:
            continue
        change = y[i] - _panned(before[i], pan)
        wanted = t[i] - _panned(t_before[i], pan)
        losses.append(calm * (change - wanted)[:, edge:-edge, edge:-edge].abs().mean())
    return torch.stack(losses).mean() if losses else y.new_zeros(())


def _panned(before: Tensor, pan: tuple[int, int]) -> Tensor:
    """The picture before, moved to where the camera's pan shows it now: what is at x was at x + pan."""
    return torch.roll(before, (-pan[1], -pan[0]), (-2, -1))


def _settled(data: Batch, noise: torch.Generator) -> Tensor:
    """What a stream that runs for long may carry into the first frame; zeros for half of them."""
    past = data.target[0]
    count, _, height, width = past.shape
    error = torch.randn((count, 3, height // 8, width // 8), generator=noise) * 0.08
    past = past + F.interpolate(error, (height, width), mode="bilinear")
    return past.clamp(-1, 1) * (torch.rand(count, 1, 1, 1, generator=noise) < 0.5)


def _carried(previous: list[Tensor], before: Tensor, now: Tensor, lost: Tensor) -> list[Tensor]:
    """Results of the frame before where their things are now, by the motion that a stream would find; all (B, 3, S, S)."""
    size = (now.shape[-2], now.shape[-1])
    pictures = [
        ((x + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy() for x in (before, now)
    ]
    rows = [p.clone() for p in previous]
    for i in range(len(now)):
        if not lost[i]:
            found = motion(look(pictures[1][i], size), look(pictures[0][i], size))
            for row in rows:
                row[i] = followed(row[i], found)
    return rows


def unroll(net: RestyleNet, data: Batch, noise: torch.Generator) -> float:
    """Run the clips frame by frame as a stream would, two steps each, adding to the gradients. Returns the loss."""
    frames, count, *_ = data.source.shape
    fixed = torch.randn((2, *data.source.shape[1:]), generator=noise)
    first = torch.empty(count).uniform_(0.65, 0.95, generator=noise)
    second = torch.empty(count).uniform_(0.15, 0.6, generator=noise)
    previous: list[Tensor] = [_settled(data, noise)] * 2
    shown = list(previous)
    total = 0.0
    lost = torch.rand(count, generator=noise) < 0.1  # streams whose motion is not found
    for t in range(frames):
        source, target = data.source[t], data.target[t]
        if t:
            previous = _carried(previous, data.source[t - 1], source, lost)
        mix = data.mix.to(net.words.weight.dtype)
        prompt = torch.lerp(net.encode(data.ids[0]), net.encode(data.ids[1]), mix)
        estimate, loss = source, source.new_zeros(())
        for step, sigma in enumerate((first, second)):
            s = sigma[:, None, None, None]
            x = (1 - s) * estimate + s * fixed[step]
            y = draw(net, x, source, previous[step], sigma, prompt)
            loss = loss + picture_loss(y, target)
            if t:
                loss = loss + MOTION * motion_loss(y, shown[step], target, data.target[t - 1], data)
            estimate = y.detach().clamp(-1, 1)
            previous[step] = shown[step] = estimate
        (loss / (2 * frames)).backward()
        total += float(loss.detach()) / (2 * frames)
        if t == 0:  # streams also start, and restart after gaps
            keep = (torch.rand(count, generator=noise) > 0.1).float()[:, None, None, None]
            previous = [p * keep for p in previous]
    return total


def train(
    run: Run,
    *,
    minutes: float,
    size: int,
    count: int,
    rate: float,
    singles: float = 0.5,
    focus: Sequence[str] = (),
) -> None:
    """Go on with a run to its end, or for `minutes` of wall-clock time; checkpoints as it goes.

    singles: the share of the steps for single pictures only; of the rest they are every fourth.
    """
    net = run.passes(torch.bfloat16 if has_fast_bf16("cpu") else torch.float32)
    # a resumed run goes on with other pictures than it began with
    rng = np.random.default_rng((run.seed, run.step))
    noise = torch.Generator().manual_seed(run.seed + run.step)
    often = shares(focus)
    alone = Singles(rng, size, often)
    data: Batch | None = None
    columns = (TextColumn("tiny-restyle"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[at]}"))
    with Progress(*columns) as bar:
        task = bar.add_task("train", total=run.steps, completed=run.step, at="")
        smooth, saved, used = 1.0, 0.0, 0.0
        for done in range(run.steps - run.step):
            part = run.step / run.steps
            warm = min(1, (done + 1) / 200)
            for group in run.optimizer.param_groups:
                group["lr"] = rate * warm * (0.5 + 0.5 * math.cos(math.pi * part)) + 1e-5
            if part < singles or run.step % 4 == 0:
                first = alone.loss(net, 16, noise)
                first.backward()
                loss = float(first.detach())
            else:
                if data is None or run.step % 2 == 0:  # some batches twice, with other noise: less drawing
                    data = batch(rng, count, size, often)
                loss = unroll(net, data, noise)
            run.advance(keep=loss < 3 * smooth)
            smooth += (loss - smooth) * max(0.005, 1 / (done + 1))
            used = bar.tasks[task].elapsed or 0.0
            bar.update(task, completed=run.step, at=f"step {run.step}  loss {smooth:.4f}")
            if used - saved > 120:
                saved = used
                run.save()
                bar.console.print(f"{used / 60:.1f} min  step {run.step}  loss {smooth:.4f}", highlight=False)
            if used > minutes * 60:
                break
    run.save()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=24_000, help="of the whole run (default: %(default)d)")
    parser.add_argument(
        "--minutes", type=float, default=1e6, help="stop after so long; the next call goes on from there"
    )
    parser.add_argument("--start", type=Path, help="weights to begin a new run with, instead of random ones")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "data" / "tiny-restyle.safetensors"
    )
    parser.add_argument("--size", type=int, default=64, help="side of a training crop, a multiple of 16")
    parser.add_argument("--batch", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--singles", type=float, default=0.5, help="share of the steps for single pictures")
    parser.add_argument("--focus", default="", help="styles that need more, by commas")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    run = Run.open(args.out, steps=args.steps, seed=args.seed, start=args.start)
    train(
        run,
        minutes=args.minutes,
        size=args.size,
        count=args.batch,
        rate=args.rate,
        singles=args.singles,
        focus=args.focus.split(","),
    )
    print(f"{args.out}  step {run.step} of {run.steps}  sha256 {write(run.mean, args.out, torch.float16)}")


if __name__ == "__main__":
    main()
