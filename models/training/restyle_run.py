"""A training run of `tiny-restyle` that can be stopped and gone on with: weights, their mean, the optimizer's state."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..restyle_net import RestyleNet
from ..restyle_prompt import SIZE
from ..tiny_restyle import load_net

CLIP = 0.5  # of the gradient's norm: without norm layers a step from an outlier throws the whole stack off


def write(net: RestyleNet, path: Path, dtype: torch.dtype) -> str:
    """Write the weights as safetensors. Returns: the file's SHA-256."""
    state = {k: v.to(dtype).contiguous() for k, v in net.state_dict().items()}
    save_file(state, path, metadata={"model": "tiny-restyle", "format": "1"})
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(slots=True)
class Run:
    """Weights in fp32; the passes may run on a copy in less."""

    out: Path
    seed: int
    steps: int  # of the whole run
    step: int
    net: RestyleNet
    mean: RestyleNet  # exponential moving average: what is shipped
    optimizer: torch.optim.AdamW
    copy: RestyleNet  # what forward and backward run on

    @classmethod
    def open(cls, out: Path, *, steps: int, seed: int, start: Path | None = None) -> Run:
        """Go on with the run beside `out`, or begin one with the weights of `start` or random ones.

        Raises: ValueError when `start` is given for a run that exists; BadCheckpoint, which is one.
        """
        torch.manual_seed(seed)
        resume = out.with_suffix(".resume.safetensors")
        if start is not None and resume.exists():
            raise ValueError(f"--start {start}: {resume} holds a run already; without --start it goes on")
        net = RestyleNet(SIZE)
        if start is not None:
            net.load_state_dict(load_net(start).state_dict())
        net.requires_grad_(True)
        mean = RestyleNet(SIZE).requires_grad_(False)
        mean.load_state_dict(net.state_dict())
        optimizer = torch.optim.AdamW(net.parameters(), betas=(0.9, 0.99), weight_decay=1e-4)
        run = cls(out, seed, steps, 0, net, mean, optimizer, net)
        if resume.exists():
            run._load(resume)
        return run

    def passes(self, dtype: torch.dtype) -> RestyleNet:
        """The network to run forward and backward on, in `dtype`."""
        self.copy = RestyleNet(SIZE).to(dtype=dtype).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue, reportUnknownMemberType]
        self._refresh()
        return self.copy

    @torch.no_grad()
    def _refresh(self) -> None:
        for low, full in zip(self.copy.parameters(), self.net.parameters(), strict=True):
            low.copy_(full)
            low.grad = None

    @torch.no_grad()
    def advance(self, keep: bool) -> None:
        """Take the copy's gradients over and step; `keep` False skips an outlier."""
        for low, full in zip(self.copy.parameters(), self.net.parameters(), strict=True):
            full.grad = None if low.grad is None else low.grad.float()
        torch.nn.utils.clip_grad_norm_(self.net.parameters(), CLIP)
        if keep:
            self.optimizer.step()
        decay = min(0.998, (self.step + 1) / (self.step + 10))
        for slow, fast in zip(self.mean.parameters(), self.net.parameters(), strict=True):
            slow.lerp_(fast, 1 - decay)
        self.step += 1
        self._refresh()

    def save(self) -> None:
        """Write what to go on with beside the weights, and the weights."""
        tensors: dict[str, Tensor] = {}
        for name, parameter in self.net.named_parameters():
            tensors[f"net.{name}"] = parameter.detach().contiguous()
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"{key}.{name}"] = torch.as_tensor(value).clone().contiguous()
        tensors |= {f"mean.{n}": p.contiguous() for n, p in self.mean.named_parameters()}
        resume = self.out.with_suffix(".resume.safetensors")
        fresh = resume.with_suffix(".new")
        save_file(tensors, fresh, metadata={"step": str(self.step)})
        fresh.replace(resume)  # a stop in the middle leaves the older one whole
        write(self.mean, self.out, torch.float16)

    def _load(self, path: Path) -> None:
        with safe_open(path, "pt") as file:  # pyright: ignore[reportUnknownVariableType]
            self.step = int(file.metadata()["step"])
            tensors: dict[str, Tensor] = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
        with torch.no_grad():
            for name, parameter in self.net.named_parameters():
                parameter.copy_(tensors[f"net.{name}"])
                state = {
                    k: tensors[f"{k}.{name}"]
                    for k in ("step", "exp_avg", "exp_avg_sq")
                    if f"{k}.{name}" in tensors
                }
                if state:
                    self.optimizer.state[parameter] = state
            for name, parameter in self.mean.named_parameters():
                parameter.copy_(tensors[f"mean.{name}"])
