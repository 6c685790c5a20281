"""The row pool as a whole, at random: what it promises holds for every row."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.clock import MS, NEVER, SECOND
from penstock.pipeline.pool_seams import Rejected
from penstock.pipeline.row_pool import error_words
from penstock.pipeline.rows import DeadlineMissed, Flushed, PoolFailed, Row
from penstock.pipeline.virtual_loop import run_virtual
from row_models import Counting, loaded, row, virtual_pool


@dataclass
class Trace:
    ends: list[tuple[float, str, str]] = field(default_factory=list[tuple[float, str, str]])
    batches: list[list[str]] = field(default_factory=list[list[str]])


class Witness(Counting):
    """Checks at each forward what the pool has promised."""

    def __init__(self, clock: Any, log: list[list[Row]]) -> None:
        super().__init__(log)
        self.clock = clock
        self.begun: list[int] = []

    def forward(self, rows: Sequence[Row]) -> list[Any]:
        before = [dict(r.state) for r in rows]
        lanes = [(r.session, r.node, r.lane) for r in rows]
        assert len(set(lanes)) == len(lanes), "two rows of one lane in a forward"
        try:
            return super().forward(rows)
        finally:
            assert [dict(r.state) for r in rows] == before


frames = st.lists(
    st.fixed_dictionaries(
        {
            "at": st.integers(0, 400),
            "session": st.sampled_from("abc"),
            "lane": st.integers(0, 1),
            "budget": st.sampled_from([0, 15, 40, 120, None]),
            "steps": st.integers(1, 3),
            "bad": st.sampled_from([False, False, False, True]),
            "cancel": st.sampled_from([None, None, None, 12]),
        }
    ),
    min_size=1,
    max_size=25,
)
flushes = st.lists(st.tuples(st.integers(0, 400), st.sampled_from("abc")), max_size=3)


async def scenario(plan: list[dict[str, Any]], flush: list[tuple[int, str]], workers: int) -> Trace:
    starts: list[tuple[int, list[Row]]] = []
    pool, clock = virtual_pool(workers=workers)
    log: list[list[Row]] = []
    await loaded(pool, Witness(clock, log))
    trace = Trace()
    states = {(s, lane): {"sum": 0} for s in "abc" for lane in range(5)}
    committed: Counter[str] = Counter()
    take = pool.take

    def watched() -> Any:
        batch = take()
        if batch is not None:
            starts.append((batch.start, batch.rows))
            assert all(r.deadline >= batch.start for r in batch.rows), "a row ran that was late already"
            trace.batches.append([f"{r.session}{r.lane}" for r in batch.rows])
        return batch

    pool.take = watched  # type: ignore[method-assign]

    async def frame(i: int, spec: dict[str, Any]) -> None:
        await clock.sleep(spec["at"] * MS)
        deadline = NEVER if spec["budget"] is None else clock.now() + spec["budget"] * MS
        mine = row(
            spec["session"],
            1,
            states[spec["session"], spec["lane"]],
            lane=spec["lane"],
            deadline=deadline,
            steps=spec["steps"],
            further=spec["steps"] - 1,
            bad=spec["bad"],
            scope="reply",
        )
        mine.epoch = epochs[spec["session"]]
        work = asyncio.ensure_future(pool.run("m", mine))
        if spec["cancel"] is not None:
            asyncio.get_running_loop().call_later(spec["cancel"] / 1000, work.cancel)
        try:
            await work
            end = "done"
            committed[spec["session"]] += 1
        except DeadlineMissed:
            end = "missed"
        except Flushed:
            end = "flushed"
        except PoolFailed:
            end = "failed"
        except asyncio.CancelledError:
            end = "cancelled"
        trace.ends.append((clock.now() / MS, f"{i}{spec['session']}", end))

    epochs = Counter[str]()

    async def barge(at: int, session: str) -> None:
        await clock.sleep(at * MS)
        epochs[session] += 1
        pool.flush(session, "reply", epochs[session])

    await asyncio.gather(*(frame(i, f) for i, f in enumerate(plan)), *(barge(*f) for f in flush))
    await clock.sleep(2 * SECOND)
    assert len(trace.ends) == len(plan)
    assert pool.waiting == 0
    stats = pool.stats
    told = Counter(end for _, _, end in trace.ends)
    assert stats.ended == len(plan), "every row ended exactly once"
    assert told["done"] <= stats.done
    assert told["failed"] <= stats.failed
    if not any(f["cancel"] for f in plan):
        assert told == Counter(
            {k: v for k in ("done", "missed", "flushed", "failed") if (v := getattr(stats, k))}
        )
    # a state counts the steps that were committed, and nothing of what failed
    assert sum(s["sum"] for s in states.values()) >= sum(committed.values())
    return trace


@given(frames, flushes, st.integers(1, 2))
@settings(max_examples=60, deadline=None)
def test_every_row_ends_once_and_none_runs_late(
    plan: list[dict[str, Any]], flush: list[tuple[int, str]], workers: int
) -> None:
    run_virtual(scenario(plan, flush, workers))


@given(frames, flushes)
@settings(max_examples=15, deadline=None)
def test_the_same_rows_give_the_same_trace(plan: list[dict[str, Any]], flush: list[tuple[int, str]]) -> None:
    one, two = (run_virtual(scenario(plan, flush, 1)) for _ in range(2))
    assert one == two


def test_an_error_without_words_has_a_name() -> None:
    assert error_words(Rejected("")) == "Rejected"
    assert error_words(Rejected("told\nmore")) == "told"
    assert error_words(ValueError()) == "ValueError"
