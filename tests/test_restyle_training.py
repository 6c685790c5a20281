"""The recipe of tiny-restyle: a run that is stopped goes on where it was, and learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from penstock.models.tiny_restyle import load_net

pytest.importorskip("skimage", reason="needs scikit-image, of the extra: test")
from penstock.models.training.restyle import train
from penstock.models.training.restyle_run import Run

torch.set_num_threads(1)


def test_a_stopped_run_goes_on_with_the_optimizers_state(tmp_path: Path) -> None:
    out = tmp_path / "net.safetensors"
    run = Run.open(out, steps=4, seed=0)
    for _ in range(2):  # stopped after one step each
        train(run, minutes=0.0, size=32, count=1, rate=1e-3, singles=0.5)
    assert run.step == 2
    again = Run.open(out, steps=4, seed=0)
    assert again.step == 2
    for a, b in zip(run.net.parameters(), again.net.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(run.optimizer.state[a]["exp_avg_sq"], again.optimizer.state[b]["exp_avg_sq"])
    train(again, minutes=60.0, size=32, count=1, rate=1e-3, singles=0.5)
    assert again.step == 4  # clips too
    assert not torch.equal(next(again.net.parameters()), next(run.net.parameters()))
    load_net(out)  # what it writes is what is shipped


def test_new_weights_do_not_overwrite_a_run(tmp_path: Path) -> None:
    out = tmp_path / "net.safetensors"
    Run.open(out, steps=4, seed=0).save()
    with pytest.raises(ValueError, match="holds a run already"):
        Run.open(out, steps=4, seed=0, start=out)
