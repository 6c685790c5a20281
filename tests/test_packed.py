"""Many caches in one forward pass: the same numbers as one after another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from penstock.models.packed import Packed, Run, install
from penstock.models.rolling_kv import Budget
from penstock.models.toy_vlm import Decoder
from tiny_vlms import EACH, WIDTH, tiny_text_model
from torch import Tensor

GRID, N, SINKS = (1, 2, 3), 6, 4


def vectors(seed: int, tokens: int) -> Tensor:
    return torch.randn(1, tokens, WIDTH, generator=torch.Generator().manual_seed(seed)) * 0.5


def run(model: Any, x: Tensor, positions: Tensor, cache: Any, **extra: Any) -> Tensor:
    return model(
        inputs_embeds=x, position_ids=positions, cache=cache, use_cache=True, **extra
    ).last_hidden_state


def filled(model: Any, seed: int, pictures: int) -> Any:
    from penstock.models.rolling_cache import RollingCache

    cache = RollingCache(model, Budget(SINKS + 5 * N))
    run(model, vectors(1, SINKS), cache.reserve("pinned", SINKS), cache)
    cache.pin()
    for i in range(pictures):
        run(model, vectors(100 * seed + i, N), cache.reserve("frame", GRID, tag=i), cache)
    return cache


@pytest.mark.parametrize("family", EACH)
@torch.inference_mode()
def test_rows_in_one_pass_equal_rows_by_themselves(family: str) -> None:
    model = tiny_text_model(family)
    caches = [filled(model, seed, pictures) for seed, pictures in ((1, 2), (2, 9), (3, 5))]
    alone, together = [[c.fork(room=8) for c in caches] for _ in range(2)]
    words = (1, 5, 3)
    apart = [
        run(model, vectors(50 + i, n), branch.reserve(n), branch)
        for i, (n, branch) in enumerate(zip(words, alone, strict=True))
    ]
    install(model)
    positions = torch.cat([b.reserve(n) for b, n in zip(together, words, strict=True)], -1)
    x = torch.cat([vectors(50 + i, n) for i, n in enumerate(words)], 1)
    packed = Packed([Run(b, n, tap=n == 5) for b, n in zip(together, words, strict=True)], tapped=(1, 2))
    got = run(model, x, positions, packed, packed=packed)
    assert torch.allclose(got, torch.cat(apart, 1), atol=2e-5)
    # the taps are attention: they sum to one over all that the row sees
    assert [len(s) for s in packed.seen] == [0, 2, 0]
    for weights in packed.seen[1]:
        assert weights.shape == (together[1].visible,)
        assert abs(float(weights.sum()) - 1) < 1e-5


@torch.inference_mode()
def test_a_picture_of_gemma_sees_itself_both_ways() -> None:
    from penstock.models.ring_kv import RingLayer
    from penstock.models.rolling_kv import RollingKv

    torch.manual_seed(0)
    decoder = Decoder()
    kv = [RollingKv(decoder.rope, [RingLayer(64) for _ in decoder.blocks], Budget(32)) for _ in range(2)]
    x = torch.randn(1, 4, 128)
    causal, whole = [
        decoder(x, c.reserve("frame", 4)[0], cache=Packed([Run(c, 4, whole=w)]))
        for c, w in zip(kv, ((0, 0), (1, 3)), strict=True)
    ]
    assert torch.equal(causal[:, 0], whole[:, 0]), "the marker before it is causal"
    assert not torch.allclose(causal[:, 1], whole[:, 1], atol=1e-3)
