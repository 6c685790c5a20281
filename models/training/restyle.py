"""Train `tiny-restyle` from nothing on one CPU core: `python -m penstock.models.training.restyle --minutes 60`.

Teachers are the classical filters of `teachers.py`; what is shown comes from `scenes.py`. The first part of the time
goes to single pictures, many styles a batch. In the second, clips of three frames are unrolled as the stream will be:
the network sees its own result of the frame before and, at the second step, its own first estimate; how the result
moves between frames is part of the loss. Targets are drawn from the clean picture while the network sees a noisy one:
that is what makes it flicker less than its teachers.

Seeded; the learning rate follows the time used, so any budget is a whole run. What it writes can be resumed.
"""

from __future__ import annotations

import argparse
import hashlib
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
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..restyle_net import RestyleNet
from ..restyle_prompt import INKS, MODIFIERS, PHRASES, SIZE, padded, read
from . import scenes, teachers

FRAMES = 3
_POOL = 400  # stills kept and cut again: drawing them costs more than a teacher's picture of them
# harder ones more often, from the errors of earlier runs
_OFTEN: dict[str, float] = {
    **{"oil": 1.4, "neon": 1.4, "cartoon": 1.4, "pencil": 1.3, "popart": 1.2, "pixel": 1.2, "blueprint": 1.2},
    **{"identity": 0.7, "sepia": 0.6, "night": 0.6, "noir": 0.8, "thermal": 0.8},
}
_STYLES = tuple(teachers.TEACHERS)


def shares(focus: Sequence[str]) -> NDArray[np.float64]:
    """How often each style is asked for; those in focus four times as often."""
    often = np.array([_OFTEN.get(s, 1.0) * (4 if s in focus else 1) for s in _STYLES])
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
        ids.append([padded(read(w.prompt).ids) for w in (a, b)])
        mix.append(share)
        pans.append(clip.pan)
    words = torch.tensor(ids).transpose(0, 1)
    return Batch(_tensor(seen), _tensor(drawn), words, torch.tensor(mix)[:, None], tuple(pans))


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
        for _ in range(count):
            image, w = self._cut(), wish(rng, self._often)
            level = 0.0 if rng.random() < 0.3 else float(rng.uniform(0, 0.04))
            drawn.append(teachers.apply(image, w.style, w.ink, w.modifiers)[inner, inner])
            seen.append(scenes.sensor(rng, image[inner, inner], level))
            ids.append(padded(read(w.prompt).ids))
        source, target = _tensor([[s] for s in seen])[0], _tensor([[d] for d in drawn])[0]
        half = count // 2
        sigma = torch.empty(count).uniform_(0.65, 0.95, generator=noise)
        sigma[half:] = torch.empty(count - half).uniform_(0.15, 0.6, generator=noise)

        def rough(x: Tensor) -> Tensor:
            amount = torch.rand(count, 1, 1, 1, generator=noise) * 0.15
            return x + amount * torch.randn(x.shape, generator=noise)

        base = torch.cat([source[:half], rough(target)[half:]])
        # the frame before: none, in place, or moved on since, which teaches not to copy it blindly
        dy, dx = (int(v) for v in rng.integers(-6, 7, 2))
        moved = torch.rand(count, 1, 1, 1, generator=noise) < 0.6
        before = torch.where(moved, torch.roll(target, (dy, dx), (-2, -1)), target)
        before = rough(before) * (torch.rand(count, 1, 1, 1, generator=noise) > 0.35)
        s = sigma[:, None, None, None]
        noisy = (1 - s) * base + s * torch.randn(base.shape, generator=noise)
        return picture_loss(net(noisy, source, before, sigma, net.encode(torch.tensor(ids))), target)


def picture_loss(y: Tensor, target: Tensor) -> Tensor:
    """L1, a little L2 for PSNR, and L1 of the gradients, without which lines come out blurred."""
    gy = F.l1_loss(y[..., 1:, :] - y[..., :-1, :], target[..., 1:, :] - target[..., :-1, :])
    gx = F.l1_loss(y[..., 1:] - y[..., :-1], target[..., 1:] - target[..., :-1])
    return F.l1_loss(y, target) + 0.5 * F.mse_loss(y, target) + 0.6 * (gx + gy)


def motion_loss(
    y: Tensor, before: Tensor, t: Tensor, t_before: Tensor, pans: tuple[tuple[int, int] | None, ...]
) -> Tensor:
    """How differently from its clean target a result changes along the camera's pan; (B, 3, S, S) each."""
    losses: list[Tensor] = []
    edge = 8  # px that rolling may bring in from the other side
    for i, pan in enumerate(pans):
        if pan is None:
            continue
        shift = (-pan[1], -pan[0])  # what is at x now was at x + pan before
        change = y[i] - torch.roll(before[i], shift, (-2, -1))
        wanted = t[i] - torch.roll(t_before[i], shift, (-2, -1))
        losses.append((change - wanted)[:, edge:-edge, edge:-edge].abs().mean())
    return torch.stack(losses).mean() if losses else y.new_zeros(())


def unroll(net: RestyleNet, data: Batch, noise: torch.Generator) -> float:
    """Run the clips frame by frame as a stream would, two steps each, adding to the gradients. Returns the loss."""
    frames, count, *_ = data.source.shape
    fixed = torch.randn((2, *data.source.shape[1:]), generator=noise)
    first = torch.empty(count).uniform_(0.65, 0.95, generator=noise)
    second = torch.empty(count).uniform_(0.15, 0.6, generator=noise)
    previous: list[Tensor] = [torch.zeros_like(data.source[0]) for _ in range(2)]
    total = 0.0
    for t in range(frames):
        source, target = data.source[t], data.target[t]
        prompt = torch.lerp(net.encode(data.ids[0]), net.encode(data.ids[1]), data.mix)
        estimate, loss = source, source.new_zeros(())
        for step, sigma in enumerate((first, second)):
            s = sigma[:, None, None, None]
            x = (1 - s) * estimate + s * fixed[step]
            y = net(x, source, previous[step], sigma, prompt)
            loss = loss + picture_loss(y, target)
            if t:
                moved = motion_loss(y, previous[step], target, data.target[t - 1], data.pans)
                loss = loss + 0.6 * moved
            estimate = y.detach().clamp(-1, 1)
            previous[step] = estimate
        (loss / (2 * frames)).backward()
        total += float(loss.detach()) / (2 * frames)
        if t == 0:  # streams also start, and restart after gaps
            keep = (torch.rand(count, generator=noise) > 0.1).float()[:, None, None, None]
            previous = [p * keep for p in previous]
    return total


def write(net: RestyleNet, path: Path, dtype: torch.dtype) -> str:
    """Write the weights as safetensors. Returns: the file's SHA-256."""
    state = {k: v.to(dtype).contiguous() for k, v in net.state_dict().items()}
    save_file(state, path, metadata={"model": "tiny-restyle", "format": "1"})
    return hashlib.sha256(path.read_bytes()).hexdigest()


def train(
    minutes: float,
    out: Path,
    *,
    size: int,
    count: int,
    seed: int,
    rate: float,
    singles: float = 0.6,
    focus: Sequence[str] = (),
) -> RestyleNet:
    """Train for `minutes` of wall-clock time; checkpoints beside `out`, from which the next call goes on.

    singles: the share of the time for single pictures; the rest goes to unrolled clips.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    noise = torch.Generator().manual_seed(seed)
    net = RestyleNet(SIZE).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    resume = out.with_suffix(".resume.safetensors")
    if resume.exists():
        net.load_state_dict(load_file(resume))
    mean = RestyleNet(SIZE)
    mean.load_state_dict(net.state_dict())
    optimizer = torch.optim.AdamW(net.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=1e-4)
    columns = (TextColumn("tiny-restyle"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[at]}"))
    with Progress(*columns) as bar:
        task = bar.add_task("train", total=minutes * 60, at="")
        step, smooth, saved, used = 0, 1.0, 0.0, 0.0
        often = shares(focus)
        alone = Singles(rng, size, often)
        data: Batch | None = None
        while used < minutes * 60:
            done = used / (minutes * 60)
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1, (step + 1) / 200) * (0.5 + 0.5 * math.cos(math.pi * done)) + 1e-5
            optimizer.zero_grad()
            if done < singles:
                first = alone.loss(net, 16, noise)
                first.backward()
                loss = float(first.detach())
            else:
                if data is None or step % 2 == 0:  # each batch twice, with other noise: half the drawing
                    data = batch(rng, count, size, often)
                loss = unroll(net, data, noise)
            torch.nn.utils.clip_grad_norm_(net.parameters(), 0.5)
            if loss < 3 * smooth:  # without norms a step from an outlier can throw the whole stack off
                optimizer.step()
            decay = min(0.998, (step + 1) / (step + 10))
            with torch.no_grad():
                for slow, fast in zip(mean.parameters(), net.parameters(), strict=True):
                    slow.lerp_(fast, 1 - decay)
            smooth += (loss - smooth) * max(0.01, 1 / (step + 1))
            step += 1
            used = bar.tasks[task].elapsed or 0.0
            bar.update(task, completed=used, at=f"step {step}  loss {smooth:.4f}")
            if used - saved > 120:
                saved = used
                write(net, resume, torch.float32)
                write(mean, out, torch.float16)
                bar.console.print(f"{used / 60:.1f} min  step {step}  loss {smooth:.4f}", highlight=False)
    write(net, resume, torch.float32)
    return mean


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--minutes", type=float, default=60.0, help="wall-clock budget (default: %(default)g)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[1] / "data" / "tiny-restyle.safetensors"
    )
    parser.add_argument("--size", type=int, default=64, help="side of a training crop, a multiple of 16")
    parser.add_argument("--batch", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=1.5e-3)
    parser.add_argument("--singles", type=float, default=0.6, help="share of the time for single pictures")
    parser.add_argument("--focus", default="", help="styles that need more, by commas")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    net = train(
        args.minutes,
        args.out,
        size=args.size,
        count=args.batch,
        seed=args.seed,
        rate=args.rate,
        singles=args.singles,
        focus=args.focus.split(","),
    )
    print(f"{args.out}  sha256 {write(net, args.out, torch.float16)}")


if __name__ == "__main__":
    main()
