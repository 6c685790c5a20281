"""Bits go where they are worth most, and no further than they help."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.transport.allocator import AUDIO_KBPS, LADDER, SHARE, Grant, Stream, allocate
from penstock.transport.budgets import DownlinkBudget, Pictures, UplinkBudget, fair
from penstock.transport.utility import Learner, accuracy


def knows(q50: float) -> Learner:
    learner = Learner()
    learner.posterior = np.zeros_like(learner.posterior)
    learner.posterior[int(np.argmin(np.abs(np.log(learner.grid) - math.log(q50)))), -1] = 1.0
    return learner


def stream(key: str = "a", q50: float = 20.0, fps: float = 2.0, **more: object) -> Stream:
    return replace(Stream(key, knows(q50), fps), **more)  # type: ignore[arg-type]


streams = st.lists(
    st.tuples(
        st.floats(2, 400),  # q50
        st.sampled_from([1.0, 2.0, 5.0, 30.0]),  # fps
        st.floats(0.1, 10),  # weight
        st.booleans(),  # active
        st.sampled_from([50.0, 300.0, math.inf]),  # path
        st.sampled_from([0.0, 12.0, 100.0]),  # least
    ),
    max_size=8,
)


@given(streams, st.floats(0, 5000), st.booleans())
@settings(max_examples=150, deadline=None)
def test_never_more_than_there_is(found: list[tuple[float, ...]], capacity: float, audio: bool) -> None:
    made = [
        stream(str(i), q, f, weight=w, active=bool(a), path_kbps=p, least_kbps=least, audio=audio)
        for i, (q, f, w, a, p, least) in enumerate(found)
    ]
    grants = allocate(made, capacity)
    assert set(grants) == {s.key for s in made}
    budget = max(0.0, capacity * SHARE - AUDIO_KBPS * audio * len(made))
    assert sum(g.kbps for g in grants.values()) <= budget + 0.1 * len(made) + 1e-6
    for s in made:
        grant = grants[s.key]
        assert grant.kbps <= max(s.path_kbps * SHARE, 0) + 0.1
        assert 0 <= grant.accuracy <= 1
        assert grant.why in ("enough", "budget", "path", "deadline", "limit", "least")


def test_bits_that_no_longer_help_are_given_back() -> None:
    grant = allocate([stream(q50=5)], math.inf)["a"]
    assert grant.why == "enough"
    assert grant.kbps < 100
    assert grant.accuracy > 0.9


def test_a_harder_question_gets_more_and_a_silent_one_less() -> None:
    grants = allocate([stream("easy", 5), stream("hard", 60), stream("idle", 60, active=False)], 500)
    assert grants["hard"].kbps > grants["easy"].kbps > 0
    assert grants["idle"].kbps < grants["hard"].kbps


def test_priority_wins_where_there_is_too_little() -> None:
    few = allocate([stream("a", 20, weight=1), stream("b", 20, weight=5)], 150)
    assert few["b"].kbps > few["a"].kbps
    assert few["a"].why == "budget"


def test_sound_comes_first() -> None:
    assert allocate([stream(audio=True)], 30)["a"].kbps == 0


def test_the_largest_picture_comes_within_the_deadline() -> None:
    slow = allocate([stream(q50=200, fps=1, path_kbps=400, deadline_s=0.3)], math.inf)["a"]
    assert slow.why == "deadline"
    assert slow.kbps * 3 / 1 / 400 <= 0.3  # its peak, in s over its path


def test_minimum_and_maximum_are_kept() -> None:
    assert allocate([stream(least_kbps=100, active=False, weight=0.1)], 500)["a"].kbps >= 100
    assert allocate([stream(q50=300, most_kbps=80)], math.inf)["a"].kbps <= 80


def test_a_hump_in_the_curve_does_not_stop_the_purchase() -> None:
    """The first steps of a hard stream win little, the next ones much: the hull sees over the hollow."""
    assert allocate([stream(q50=100, fps=2)], math.inf)["a"].kbps > 300


def test_answers_teach_what_is_needed() -> None:
    rng = np.random.default_rng(0)
    for truth in (8.0, 80.0):
        learner = Learner()
        for _ in range(12):
            kb = float(np.exp(rng.uniform(np.log(4), np.log(200))))
            learner.answered(kb, float(np.clip(accuracy(kb, truth) + rng.normal(0, 0.12), 0, 1)))
        assert truth / 1.6 < learner.q50 < truth * 1.6
        before = learner.q50
        learner.answered(truth * 3, 0.0)  # one that was wrong for reasons of its own
        assert learner.q50 < 1.5 * before
    before = learner.posterior.copy()
    learner.new_topic()
    assert abs(learner.posterior - before).sum() > 0.3


def test_bits_go_where_they_help_and_not_to_a_model_that_is_never_sure() -> None:
    """Two share a link that breathes: one says .6 of whatever it is sent, the other reads as well as it is sent bits."""
    rng, link, total = np.random.default_rng(1), 300.0, np.zeros(2)
    learners = Learner(), Learner()
    for second in range(80):
        link = float(np.clip(link * math.exp(rng.normal(0, 0.06)), 120, 420))
        grants = allocate([Stream(str(i), learner, fps=2.0) for i, learner in enumerate(learners)], link)
        kbps = np.array([grants["0"].kbps, grants["1"].kbps])
        learners[0].answered(kbps[0] / 2, 0.6)
        learners[1].answered(kbps[1] / 2, float(accuracy(kbps[1] / 2, 60.0)) + rng.normal(0, 0.1))
        total += kbps * (second >= 40)
    assert total[1] > 2 * total[0]


@given(st.lists(st.tuples(st.floats(-1e9, 1e9), st.floats(-5, 5)), max_size=20))
@settings(max_examples=50, deadline=None)
def test_no_answer_breaks_the_posterior(answers: list[tuple[float, float]]) -> None:
    learner = Learner()
    for kb, confidence in answers:
        learner.answered(kb, confidence)
    assert learner.posterior.sum() == pytest.approx(1)
    assert (np.diff(learner.curve(LADDER)) >= -1e-9).all()


@given(
    st.lists(st.tuples(st.floats(0, 1000), st.floats(0.1, 10)), min_size=1, max_size=8), st.floats(0, 5000)
)
@settings(max_examples=100, deadline=None)
def test_fair_shares_use_all_that_is_of_use(wants: list[tuple[float, float]], total: float) -> None:
    most, weights = [m for m, _ in wants], [w for _, w in wants]
    rates = fair(most, weights, total)
    assert all(-1e-9 <= r <= m + 1e-6 for r, m in zip(rates, most, strict=True))
    assert sum(rates) == pytest.approx(min(total, sum(most)), abs=1e-3)


def test_down_sound_and_text_are_set_aside_before_pictures() -> None:
    given: dict[str, int] = {}
    clients = [
        Pictures(math.inf, lambda bps: given.update(a=bps), audio=True),
        Pictures(200_000, lambda bps: given.update(b=bps)),
    ]
    DownlinkBudget(lambda: clients, lambda: 1, 1_000_000).step()
    # 900 without: one sound and text, two texts, one sound
    assert given["b"] == 200_000
    assert given["a"] == (1000 * (900 - 40 - 16 - 32 - 200))
    DownlinkBudget(lambda: clients, lambda: 0, 50_000).step()
    assert given["a"] == 20_000  # a picture now and then
    given.clear()
    DownlinkBudget(lambda: clients).step()
    assert not given


def test_clients_that_cannot_be_told_are_set_aside() -> None:
    given: list[float] = []

    class Told:
        is_new = False

        def streams(self, now: int) -> list[Stream]:
            return [stream(q50=60)]

        def grants(self, granted: Mapping[str, Grant]) -> None:
            given.append(granted["a"].kbps)

    class Deaf(Told):
        def streams(self, now: int) -> list[Stream]:
            return []

    budget = UplinkBudget(lambda: [Told(), Deaf()], 1_000_000)
    budget.step(0)
    assert budget.unsteered == 1
    assert (
        given[0] <= 500 * SHARE + 0.1
    )  # not more than their even share: the others would be left with nothing


def test_tracks_of_a_session_share_its_path_and_its_sound() -> None:
    crop = stream("s/crop", 60, session="s", audio=True, path_kbps=200, scale=0.25)
    context = stream("s/context", 5, fps=1, session="s", audio=True, path_kbps=200, weight=0.15, least_kbps=4)
    both = allocate([crop, context], math.inf)
    total = sum(g.kbps for g in both.values())
    assert total <= 200 * SHARE - AUDIO_KBPS + 0.1  # one path, one sound
    assert both["s/context"].kbps >= 4
    assert both["s/crop"].kbps > both["s/context"].kbps
    alone = allocate([crop], math.inf)["s/crop"]
    assert both["s/crop"].kbps <= alone.kbps
    narrow = allocate([replace(crop, path_kbps=60), replace(context, path_kbps=60)], math.inf)
    assert sum(g.kbps for g in narrow.values()) <= 60 * SHARE - AUDIO_KBPS + 0.1
    assert {g.why for g in narrow.values()} & {"path", "deadline"}
