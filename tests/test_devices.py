"""A device that this machine has not is refused with those that it has."""

from __future__ import annotations

import pytest
import torch
from penstock.models.devices import pick


@pytest.mark.parametrize(
    ("gpus", "name", "told"),
    [
        (0, "cuda", "finds no GPU that it can use; accepted here: auto, cpu"),
        (0, "cuda:1", "device 'cuda:1' is not here"),
        (2, "cuda:2", "finds cuda:0, cuda:1; accepted here"),
    ],
)
def test_a_device_that_is_not_here_is_refused(
    monkeypatch: pytest.MonkeyPatch, gpus: int, name: str, told: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ValueError, match=told):
        pick(name)
    assert pick("auto") == ("cuda" if gpus else "cpu")
    assert pick("cpu") == "cpu"
    if gpus:
        assert pick("cuda:1") == "cuda:1"
