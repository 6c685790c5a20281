from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from penstock.models.decider import Probe, Threshold, p_silence
from penstock.models.ring_kv import Part
from penstock.models.rolling_kv import Budget
from penstock.models.vlm_engines import (
    Engine,
    Language,
    Picture,
    RollingEngine,
    StaticEngine,
    strongest,
    transformers_language,
)
from penstock.models.vlm_scheduler import Reply, Scheduler
from tiny_vlms import WIDTH, tiny_text_model
from torch import Tensor

torch.set_num_threads(1)
STOP = 7
GRID: tuple[Part, ...] = ((1, 2, 3),)
SYSTEM = torch.tensor([1, 11, 12, 13])
QUESTION = torch.tensor([20, 21, 22, 23, 24])


class Scripted:
    """Answers "1 2 3 … stop" and writes down the order of everything."""

    def __init__(self, words: int = 5) -> None:
        self.words, self.log = words, list[str]()
        self._said: dict[str, int] = {}

    def open(self, session: str) -> None:
        self.log.append(f"open {session}")

    def close(self, session: str) -> None:
        self.log.append(f"close {session}")

    def watch(self, pictures: Mapping[str, Picture]) -> None:
        self.log += [f"see {s}{p.at}" for s, p in pictures.items()]

    def say(self, words: Mapping[str, Tensor]) -> dict[str, Tensor]:
        out: dict[str, Tensor] = {}
        for session, ids in words.items():
            self.log.append(f"say {session}{len(ids)}")
            n = self._said[session] = self._said.get(session, 0) + 1
            out[session] = torch.nn.functional.one_hot(
                torch.tensor(STOP if n > self.words else 9), 16
            ).float()
        return out

    def drop(self, session: str) -> None:
        self._said.pop(session, None)
        self.log.append(f"drop {session}")


def picture(at: int, seed: int = 0) -> Picture:
    tokens = torch.randn(1, 6, WIDTH, generator=torch.Generator().manual_seed(1000 * seed + at)) * 0.5
    return Picture(at, tokens, GRID, tokens[0].norm(dim=-1))


def test_pictures_and_words_take_turns() -> None:
    engine = Scripted()
    scheduler = Scheduler(engine, tokens=6, chunk=4)
    scheduler.open("a")
    reply = scheduler.ask("a", QUESTION, limit=20, stop=STOP, now=0)
    for t in range(4):
        scheduler.show("a", picture(t))
        assert scheduler.step(t)
    assert engine.log[1:] == ["say a4", "see a0", "say a1", "see a1", "say a1", "see a2", "say a1", "see a3"]
    while scheduler.step(9):
        pass
    assert reply.done
    assert reply.words == [9] * 4
    assert reply.first == 1


def test_run_to_completion_makes_pictures_wait() -> None:
    engine = Scripted()
    scheduler = Scheduler(engine, interleave=False, waiting=2)
    scheduler.open("a")
    scheduler.ask("a", QUESTION[:1], limit=20, stop=STOP, now=0)
    for t in range(5):
        scheduler.show("a", picture(t))
        scheduler.step(t)
    assert not [line for line in engine.log if line.startswith("see")]
    assert scheduler.counts.dropped == 3


@pytest.mark.parametrize("late", ["drop", "merge"])
def test_a_session_that_falls_behind_keeps_its_newest_pictures(late: Any) -> None:
    engine = Scripted()
    scheduler = Scheduler(engine, waiting=2, late=late)
    scheduler.open("a")
    for t in range(6):
        scheduler.show("a", picture(t))
    scheduler.step(6)
    assert engine.log[1:] == ["see a4", "see a5"]
    assert (scheduler.counts.dropped, scheduler.counts.merged) == ((4, 0) if late == "drop" else (0, 4))
    assert list(scheduler.lags) == [2, 1]


def test_an_interrupted_answer_ends_within_one_word() -> None:
    engine = Scripted(words=100)
    scheduler = Scheduler(engine)
    scheduler.open("a")
    reply = scheduler.ask("a", QUESTION[:1], limit=100, stop=STOP, now=0)
    for t in range(3):
        scheduler.step(t)
    said = len(reply.words)
    reply.cancel()
    scheduler.step(3)
    assert reply.done
    assert len(reply.words) == said
    assert engine.log[-1] == "drop a"
    assert not scheduler.step(4)


def test_questions_are_bounded_and_a_closed_session_leaves_nothing() -> None:
    engine = Scripted()
    scheduler = Scheduler(engine, questions=3)
    scheduler.open("a")
    scheduler.open("b")
    replies = [scheduler.ask("a", QUESTION, limit=9, stop=STOP, now=0) for _ in range(5)]
    assert [r.done for r in replies] == [False, False, False, True, True]
    assert scheduler.counts.refused == 2
    scheduler.step(0)
    scheduler.close("a")
    assert all(r.done for r in replies)
    assert not scheduler.step(1)
    with pytest.raises(KeyError):
        scheduler.show("a", picture(0))


# ---------------------------------------------------------------- with a true architecture


def language() -> tuple[Any, Language]:
    model = tiny_text_model("qwen2_5_vl")
    head = torch.nn.Linear(WIDTH, 200, bias=False)
    torch.nn.init.normal_(head.weight, 0, 0.3, generator=torch.Generator().manual_seed(5))
    return model, transformers_language(model, head.requires_grad_(False))


def rolling(**options: Any) -> RollingEngine:
    from penstock.models.rolling_cache import RollingCache

    model, words = language()
    return RollingEngine(words, lambda: RollingCache(model, Budget(4 + 4 * 6)), SYSTEM, **options)


def static(rows: int) -> StaticEngine:
    from penstock.models.static_cache import StaticCache

    model, words = language()
    ring = StaticCache(model, rows=rows, sinks=4, frame=GRID, frames=4, scratch=24)
    return StaticEngine(words, ring, SYSTEM, ring.model_mask)


def play(engine: Engine, sessions: str) -> list[list[int]]:
    """Each session watches its own pictures; "b" is asked early, all are asked late."""
    scheduler = Scheduler(engine, tokens=6 * len(sessions), chunk=4)
    for s in sessions:
        scheduler.open(s)
    replies: list[Reply] = []
    for t in range(14):
        for s in sessions:
            scheduler.show(s, picture(t, ord(s)))
        if t == 2 and "b" in sessions:
            scheduler.ask("b", QUESTION, limit=3, stop=STOP, now=t)
        scheduler.step(t)
    replies = [scheduler.ask(s, QUESTION, limit=6, stop=STOP, now=20) for s in sessions]
    while scheduler.step(20):
        pass
    assert scheduler.counts.dropped == 0
    return [r.words for r in replies]


def test_batched_rows_say_what_each_session_says_alone() -> None:
    alone = [play(rolling(), s)[0] for s in "abc"]
    assert len({tuple(a) for a in alone}) > 1, "different pictures, different answers"
    assert play(rolling(), "abc") == alone
    assert play(static(3), "abc") == alone


def test_chunked_prefill_is_the_same_as_whole_pictures() -> None:
    assert play(rolling(chunk=2), "a") == play(rolling(), "a")


def test_dropping_no_token_changes_nothing_and_dropping_some_keeps_the_strongest() -> None:
    pytest.importorskip("transformers", reason="the package transformers is not installed")
    assert strongest(torch.tensor([0.1, 3.0, 2.0, 0.2, 5.0]), 0.6).tolist() == [1, 2, 4]
    assert strongest(torch.tensor([1.0, 2.0]), 0.01).tolist() == [1]
    engine = rolling()
    engine.keep = 0.5
    play(engine, "a")
    sizes = {s.tokens for s in engine.caches["a"].window}
    assert sizes == {3}
    advances = {s.advance for s in engine.caches["a"].window}
    assert advances == {3}, "places are those of the whole picture: as far as its longest side"


def test_a_static_engine_refuses_one_session_too_many() -> None:
    engine = static(2)
    engine.open("a")
    engine.open("b")
    with pytest.raises(ValueError, match="all 2 rows are taken"):
        engine.open("c")
    engine.close("a")
    engine.open("c")


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
    assert Probe(8)(torch.zeros(3, 8)).shape == (3,)
