"""The rolling cache against the same models without it: numbers must agree, whatever has left the window."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from penstock.models.ring_kv import Part, lay_out
from penstock.models.rolling_kv import Budget
from tiny_vlms import EACH, WIDTH, tiny_text_model
from torch import Tensor

pytest.importorskip("transformers", reason="the package transformers is not installed")

from penstock.models.rolling_cache import RollingCache
from transformers.cache_utils import DynamicCache

torch.set_num_threads(1)
GRID = (1, 2, 3)
FRAME: tuple[Part, ...] = (1, GRID, 1)  # a marker, the picture, a marker
N, SINKS, ASK = 8, 5, 4
CLOSE = 1e-4


def random(seed: int, tokens: int) -> Tensor:
    return torch.randn(1, tokens, WIDTH, generator=torch.Generator().manual_seed(seed)) * 0.5


SINK, QUESTION = random(1, SINKS), random(2, ASK)


def frame(i: int) -> Tensor:
    return random(100 + i, N)


def run(model: Any, x: Tensor, positions: Tensor, cache: Any) -> Tensor:
    return model(inputs_embeds=x, position_ids=positions, cache=cache, use_cache=True).last_hidden_state


def start(model: Any, budget: Budget, **options: Any) -> RollingCache:
    cache = RollingCache(model, budget, **options)
    run(model, SINK, cache.reserve("pinned", SINKS), cache)
    cache.pin()
    return cache


def stream(model: Any, cache: RollingCache, frames: range) -> list[Tensor]:
    return [run(model, frame(i), cache.reserve("frame", *FRAME, tag=i), cache) for i in frames]


def ask(model: Any, cache: RollingCache, **options: Any) -> Tensor:
    branch = cache.fork(**options)
    return run(model, QUESTION, branch.reserve(ASK), branch)


def scratch(model: Any, axes: int, pieces: list[tuple[Tensor, tuple[Part, ...]]]) -> Tensor:
    """All at once, from position 0, in the model's own cache."""
    parts = tuple(p for _, ps in pieces for p in ps)
    positions, _ = lay_out(parts, axes, 0)
    return run(model, torch.cat([x for x, _ in pieces], 1), positions, DynamicCache())


def kept(cache: RollingCache) -> list[int]:
    return [int(s.tag) for s in cache.window if s.tag is not None]


def far(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@pytest.mark.parametrize("family", EACH)
def test_without_eviction_it_is_the_models_own_cache(family: str) -> None:
    model = tiny_text_model(family)
    cache = start(model, Budget(tokens=400))
    outs = stream(model, cache, range(7))
    answer = ask(model, cache)
    pieces: list[Any] = [(SINK, (SINKS,)), *[(frame(i), FRAME) for i in range(7)], (QUESTION, (ASK,))]
    whole = scratch(model, cache.rope.axes, pieces)
    assert far(torch.cat([*outs, answer], 1), whole[:, SINKS:]) <= CLOSE


@pytest.mark.parametrize("family", EACH)
def test_one_layer_after_eviction_equals_scratch_on_what_is_kept(family: str) -> None:
    """With one layer, cached keys depend on nothing that was evicted: the result must be exact."""
    model = tiny_text_model(family, layers=1)
    cache = start(model, Budget(tokens=SINKS + 4 * N))
    stream(model, cache, range(23))
    assert kept(cache) == [19, 20, 21, 22]
    pieces: list[Any] = [(SINK, (SINKS,)), *[(frame(i), FRAME) for i in kept(cache)], (QUESTION, (ASK,))]
    whole = scratch(model, cache.rope.axes, pieces)
    assert far(ask(model, cache), whole[:, -ASK:]) <= CLOSE


@pytest.mark.parametrize("family", EACH)
def test_text_graduates_to_the_prefix_and_the_oldest_of_it_is_trimmed(family: str) -> None:
    model = tiny_text_model(family, layers=1)
    cache = start(model, Budget(tokens=SINKS + 3 * N + 6, text=6))
    for i in range(12):
        stream(model, cache, range(i, i + 1))
        run(model, random(200 + i, 3), cache.reserve("text", 3, tag=f"t{i}"), cache)
    texts = [str(s.tag) for s in cache.prefix if s.kind == "text"]
    assert texts, "some text has graduated"
    assert len(texts) <= 2, "the text tier holds six tokens"
    order = [*texts, *[s.tag for s in cache.window if s.tag is not None]]
    pieces: list[Any] = [(SINK, (SINKS,))]
    for tag in order:
        is_text = isinstance(tag, str)
        pieces.append((random(200 + int(tag[1:]), 3), (3,)) if is_text else (frame(int(tag)), FRAME))
    whole = scratch(model, cache.rope.axes, [*pieces, (QUESTION, (ASK,))])
    assert far(ask(model, cache), whole[:, -ASK:]) <= CLOSE


@pytest.mark.parametrize("family", EACH)
def test_rebasing_changes_nothing(family: str) -> None:
    model = tiny_text_model(family)
    budget = SINKS + 4 * N
    plain, rebased = (start(model, Budget(budget, rebase_at=at)) for at in (1 << 15, 2 * budget))
    a, b = stream(model, plain, range(36)), stream(model, rebased, range(36))
    assert rebased.rebases >= 2
    assert plain.rebases == 0
    assert far(torch.cat(a, 1), torch.cat(b, 1)) <= CLOSE


@pytest.mark.parametrize("family", EACH)
def test_evicted_pictures_that_are_retrieved_answer_as_if_never_evicted(family: str) -> None:
    model = tiny_text_model(family)
    cache = start(model, Budget(tokens=400))
    stream(model, cache, range(7))
    before = ask(model, cache)
    blocks: list[tuple[Tensor, int]] = []
    for _ in range(3):
        oldest = cache.window[0]
        blocks.append((cache.export(oldest), oldest.advance))
        cache.evict_oldest()
    assert far(ask(model, cache, retrieved=blocks), before) <= CLOSE
    assert far(ask(model, cache), before) > CLOSE, "they mattered"


def test_an_answer_does_not_change_the_stream() -> None:
    model = tiny_text_model("qwen2_5_vl")
    asked, quiet = (start(model, Budget(tokens=60)) for _ in range(2))
    for i in range(10):
        ask(model, asked)
        assert torch.equal(stream(model, asked, range(i, i + 1))[0], stream(model, quiet, range(i, i + 1))[0])


def test_a_forward_pass_that_breaks_off_can_be_abandoned() -> None:
    model = tiny_text_model("smolvlm")
    cache, whole = (start(model, Budget(tokens=60)) for _ in range(2))
    stream(model, cache, range(4))
    cache.reserve("frame", *FRAME, tag=9)
    cache.update(torch.zeros(1, 2, N, 16), torch.zeros(1, 2, N, 16), 0)  # the first of three layers only
    with pytest.raises(RuntimeError, match="abandon"):
        cache.reserve("frame", *FRAME)
    cache.abandon()
    stream(model, whole, range(4))
    assert torch.equal(stream(model, cache, range(4, 5))[0], stream(model, whole, range(4, 5))[0])


def test_a_standing_question_stays_before_all_pictures() -> None:
    model = tiny_text_model("qwen3_vl", layers=1)
    cache = start(model, Budget(tokens=SINKS + ASK + 3 * N))
    plain = start(model, Budget(tokens=SINKS + 3 * N))
    run(model, QUESTION, cache.reserve("pinned", ASK, tag="standing"), cache)
    for one in (cache, plain):
        stream(model, one, range(10))
    assert [s.tag for s in cache.prefix] == [None, "standing"]
    assert kept(cache) == kept(plain)
    assert far(ask(model, cache), ask(model, plain)) > CLOSE


def test_what_cannot_fit_is_refused_in_words_and_harms_nothing() -> None:
    model = tiny_text_model("smolvlm", layers=1)
    cache = start(model, Budget(tokens=40))
    stream(model, cache, range(3))
    with pytest.raises(ValueError, match="36 tokens does not fit: budget 40, of it 5 pinned"):
        cache.reserve("frame", (1, 6, 6))
    assert kept(cache) == [0, 1, 2]
    with pytest.raises(ValueError, match="text must be less"):
        Budget(10, text=10)


def test_memory_is_bounded_by_the_byte_budget() -> None:
    model = tiny_text_model("qwen2_5_vl")
    token_bytes = 2 * 3 * 2 * 16 * 4
    budget = Budget.from_bytes(100_000, token_bytes, text=20)
    cache = start(model, budget)
    sizes: set[int] = set()
    for i in range(60):
        stream(model, cache, range(i, i + 1))
        run(model, random(i, 3), cache.reserve("text", 3), cache)
        sizes.add(cache.nbytes)
        assert cache.visible <= budget.tokens
    # the pinned sinks are pristine beside the text tier
    assert max(sizes) <= 100_000 + SINKS * token_bytes
    assert cache.moves >= 2
