"""What leaves a rolling cache and comes back: snapshots, int8 blocks, the retrieval store, the static ring."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from penstock.models.kv_int8 import block_bytes, pack, unpack
from penstock.models.query_tap import QueryTap
from penstock.models.retrieval_store import AtRandom, MeanKey, Recent, RetrievalStore
from penstock.models.ring_kv import RingLayer
from penstock.models.rolling_kv import Budget, RollingKv
from penstock.models.rope import Rope
from penstock.models.snapshot import restore, snapshot
from tiny_vlms import EACH, WIDTH, tiny_text_model
from torch import Tensor

pytest.importorskip("transformers", reason="the package transformers is not installed")

from penstock.models.rolling_cache import RollingCache
from penstock.models.static_cache import StaticCache

torch.set_num_threads(1)
GRID, N, SINKS, ASK = (1, 2, 3), 6, 5, 4


def random(seed: int, tokens: int, rows: int = 1) -> Tensor:
    return torch.randn(rows, tokens, WIDTH, generator=torch.Generator().manual_seed(seed)) * 0.5


def run(model: Any, x: Tensor, positions: Tensor, cache: Any, mask: Any = None) -> Tensor:
    return model(
        inputs_embeds=x, position_ids=positions, cache=cache, use_cache=True, attention_mask=mask
    ).last_hidden_state


def rolling(model: Any, frames: range, tokens: int = SINKS + 4 * N, **options: Any) -> RollingCache:
    cache = RollingCache(model, Budget(tokens), **options)
    run(model, random(1, SINKS), cache.reserve("pinned", SINKS), cache)
    cache.pin()
    for i in frames:
        run(model, random(100 + i, N), cache.reserve("frame", GRID, tag=i), cache)
    return cache


def ask(model: Any, cache: RollingCache, **options: Any) -> Tensor:
    branch = cache.fork(**options)
    return run(model, random(2, ASK), branch.reserve(ASK), branch)


@pytest.mark.parametrize("family", EACH)
def test_a_restored_snapshot_goes_on_as_the_original_does(family: str) -> None:
    model = tiny_text_model(family)
    cache = rolling(model, range(9))
    data = snapshot(cache)
    other = RollingCache(model, Budget(SINKS + 4 * N))
    restore(other, data)
    for i in range(20, 26):
        x = random(100 + i, N)
        a, b = (run(model, x, c.reserve("frame", GRID, tag=i), c) for c in (cache, other))
        assert float((a - b).abs().max()) <= 1e-4
    assert len(snapshot(other)) <= len(data) + 200, "free slots are not in it"


def test_what_is_no_snapshot_is_refused_in_words() -> None:
    model = tiny_text_model("smolvlm", layers=1)
    cache = RollingCache(model, Budget(20))
    for data in (b"", b"nonsense", b"\xff" * 100):
        with pytest.raises(ValueError, match="no snapshot"):
            restore(cache, data)
    with pytest.raises(ValueError, match="for a budget of 20"):
        restore(cache, snapshot(rolling(model, range(9))))


def test_int8_blocks_keep_attention_within_a_percent() -> None:
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(3, 2, 1, 2, 16, 32, generator=generator)
    block[:, 0, :, :, :, :3] += 8  # channels that stand out, as keys have
    packed = pack(block)
    assert packed.data.size == block_bytes(3, 2, 16, 32)
    error = (unpack(packed) - block).norm() / block.norm()
    assert float(error) < 0.01
    constant = torch.full((1, 2, 1, 1, 4, 8), 3.0)
    assert torch.allclose(unpack(pack(constant)), constant, atol=1e-2)
    with pytest.raises(ValueError, match=r"it is \(layers, 2, 1, heads, tokens, dim\)"):
        pack(torch.zeros(3, 2))


def test_evicted_pictures_come_back_from_the_store() -> None:
    model = tiny_text_model("qwen2_5_vl")
    all_of_it = ask(model, rolling(model, range(8), tokens=400))
    with RetrievalStore(layers=3, heads=2, tokens=N, dim=16, slots=8, scorer=Recent()) as store:
        cache = rolling(model, range(8), tokens=SINKS + 5 * N, on_evict=store.keep_evicted)
        entries = store.find(torch.zeros(3, 4, 16), k=8)
        assert [e.tag for e in entries] == [0, 1, 2]
        with_them = ask(model, cache, retrieved=store.get(entries))
        without = ask(model, cache)
    # layers above the first have seen less when later pictures came in: near, not equal
    assert float((with_them - all_of_it).norm()) < 0.5 * float((without - all_of_it).norm())


def test_a_full_store_overwrites_its_oldest_and_says_so() -> None:
    with RetrievalStore(layers=1, heads=1, tokens=2, dim=4, slots=3) as store:
        entries = [store.put(torch.full((1, 2, 1, 1, 2, 4), float(i)), 2, tag=i) for i in range(5)]
        assert len(store) == 3
        with pytest.raises(KeyError, match="block 1 was overwritten"):
            store.get(entries[1:2])
        ((block, advance),) = store.get(entries[3:4])
        assert advance == 2
        assert torch.allclose(block, torch.full_like(block, 3.0), atol=1e-2)
        with pytest.raises(ValueError, match="up to 2"):
            store.put(torch.zeros(1, 2, 1, 1, 9, 4), 9)


def test_scorers_choose_what_they_say() -> None:
    query = torch.zeros(1, 2, 4)
    query[0, :, 1] = 1  # two query heads share one key head
    for scorer, expected in ((MeanKey(), [0]), (Recent(), [3])):
        with RetrievalStore(layers=1, heads=1, tokens=2, dim=4, slots=4, scorer=scorer) as store:
            for i in range(4):
                block = torch.zeros(1, 2, 1, 1, 2, 4)
                block[0, 0, ..., 1] = 4 - i
                store.put(block, 2, tag=i)
            assert [e.tag for e in store.find(query, 1)] == expected
            assert store.find(query, 0) == []
            store.scorer = AtRandom(1)
            assert len({e.number for e in store.find(query, 3)}) == 3


@pytest.mark.parametrize("family", EACH)
def test_the_tap_sees_the_query_of_every_layer(family: str) -> None:
    model = tiny_text_model(family)
    with QueryTap(model) as tap:
        rolling(model, range(2))
    assert tap.query.shape == (3, 4, 16)


@pytest.mark.parametrize("family", EACH)
def test_static_ring_equals_rolling_and_answers_leave_no_trace(family: str) -> None:
    """Two rows: one is fed in every step, the other in every second one; both as if alone."""
    model = tiny_text_model(family)
    frames = 4
    static = StaticCache(model, rows=2, sinks=SINKS, frame=(GRID,), frames=frames, scratch=8, rebase_at=128)
    alone = [rolling(model, range(0), tokens=SINKS + frames * N) for _ in range(2)]
    positions, mask = static.reserve_sinks()
    run(model, random(1, SINKS).expand(2, -1, -1), positions, static, static.model_mask(mask))
    static.seal()
    for i in range(40):
        x = random(100 + i, N, rows=2)
        rows = (0, 1) if i % 2 else (0,)
        positions, mask = static.reserve_frame(rows)
        got = run(model, x, positions, static, static.model_mask(mask))
        for row in rows:
            want = run(model, x[row : row + 1], alone[row].reserve("frame", GRID), alone[row])
            assert float((got[row] - want[0]).abs().max()) <= 1e-4
        if i % 7 == 6:
            question = random(2, ASK)
            positions, mask = static.reserve_words([1], ASK)
            got = run(model, question.expand(2, -1, -1), positions, static, static.model_mask(mask))
            assert float((got[1] - ask(model, alone[1])[0]).abs().max()) <= 1e-4
            static.drop_words(1)


def test_a_cleared_row_starts_anew() -> None:
    model = tiny_text_model("qwen2_5_vl")
    static = StaticCache(model, rows=2, sinks=SINKS, frame=(GRID,), frames=3, scratch=8)
    positions, mask = static.reserve_sinks()
    run(model, random(1, SINKS).expand(2, -1, -1), positions, static, static.model_mask(mask))
    static.seal()
    outs: list[Tensor] = []
    for life in range(2):
        for i in range(5):
            positions, mask = static.reserve_frame([0])
            outs.append(run(model, random(i, N, rows=2), positions, static, static.model_mask(mask))[0])
        static.clear(0)
        assert len(outs) == 5 * (life + 1)
    for a, b in zip(outs[:5], outs[5:], strict=True):
        assert float((a - b).abs().max()) <= 1e-5
    with pytest.raises(ValueError, match="row 1: 9 more words do not fit its scratch of 8"):
        static.reserve_words([1], 9)


def test_three_thousand_pictures_take_no_more_memory_than_a_hundred() -> None:
    cache = RollingKv(Rope(8), [RingLayer(24)], Budget(16, slack=8, rebase_at=64))
    cache.reserve("pinned", 2)
    cache.update(torch.ones(1, 1, 2, 8), torch.ones(1, 1, 2, 8), 0)
    cache.pin()
    kv = torch.randn(1, 1, 3, 8, generator=torch.Generator().manual_seed(0))
    sizes: list[int] = []
    for i in range(3_000):
        cache.reserve("frame", 3, tag=i)
        keys, _ = cache.update(kv, kv, 0)
        assert keys.shape[2] <= 16
        sizes.append(cache.nbytes)
    assert sizes[99] == sizes[-1]
    assert len(cache.window) == 4
    assert cache.next_position <= 64
    # pinned keys have turned three thousand times, always from the pristine copy
    first = cache.layers[0].visible()[0][0, 0, :2].norm(dim=-1)
    assert torch.allclose(first, torch.full((2,), 8**0.5), atol=1e-5)
