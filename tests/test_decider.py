"""When to speak unasked."""

from __future__ import annotations

import pytest
import torch
from penstock.models.decider import Each, Threshold, p_silence


def test_the_decider_does_not_stutter() -> None:
    decider = Threshold(theta=0.7, hysteresis=0.1, cooldown=5)
    numbers = [0.9, 0.6, 0.5, 0.75, 0.6, 0.9, 0.6, 0.9, 0.9, 0.1]
    assert [t for t, p in enumerate(numbers) if decider.decide(p, t)] == [1, 6]
    assert decider.decide(0.1, 20) is True, "it was silent since, and the cooldown is over"
    assert decider.decide(0.1, 40) is False, "it has not been silent since"
    assert decider.decide(0.95, 41) is False
    assert decider.decide(0.1, 42) is True
    with pytest.raises(ValueError, match="theta"):
        Threshold(theta=1.5)
    logits = torch.tensor([0.0, 0.0, 1.0986])
    assert float(p_silence(logits, 2)) == pytest.approx(0.6, abs=1e-3)
    each = Each(0.5)
    assert [each.decide(p, 0) for p in (0.9, 0.4, 0.4)] == [False, True, True]
