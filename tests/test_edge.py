from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.clock import MS, NEVER
from penstock.pipeline.edge import Bound, Edge, Waker
from penstock.pipeline.frame import Gap, TokenFrame
from penstock.pipeline.virtual_loop import SimulationDeadlock, run_virtual


class NoWaker(Waker):
    def __init__(self) -> None:
        pass

    def wake(self) -> None:
        pass


def edge(bound: Bound, thin: int = 0) -> Edge:
    return Edge("a.out", "b", "in", bound, NoWaker(), thin=thin)


def token(ms: int, *, deadline: int = NEVER, epoch: int = 0) -> TokenFrame:
    return TokenFrame(pts=ms * MS, deadline=deadline, epoch=epoch, text=str(ms))


LIVE = Bound("drop_oldest", span=40 * MS)


def test_live_edge_drops_its_oldest_and_tells_the_gap() -> None:
    e = edge(LIVE)
    for ms in (0, 20, 40, 60):
        e.put(token(ms))
    gap = e.take(60 * MS)
    assert isinstance(gap, Gap)
    assert (gap.pts, gap.until, gap.count, gap.reason) == (0, 40 * MS, 2, "overflow")
    assert [e.take(60 * MS), e.take(60 * MS), e.take(60 * MS)] == [token(40), token(60), None]
    assert e.lost == {"overflow": 2}


def test_one_frame_always_fits_however_long_it_is() -> None:
    e = edge(Bound("drop_oldest", span=1))
    e.put(token(0))
    assert e.take(0) == token(0)


def test_late_frame_is_dropped_at_take_and_counted() -> None:
    e = edge(LIVE)
    e.put(token(0, deadline=10 * MS))
    e.put(token(20, deadline=90 * MS))
    gap, frame = e.take(50 * MS), e.take(50 * MS)
    assert isinstance(gap, Gap)
    assert gap.reason == "late"
    assert frame == token(20, deadline=90 * MS)
    assert e.lost == {"late": 1}


def test_flush_voids_the_old_epoch_now_and_later() -> None:
    e = edge(Bound("block", count=8))
    e.put(token(0))
    e.put(token(1, epoch=1))
    e.flush(1)
    e.put(token(2))
    assert e.take(0) == token(1, epoch=1)
    assert e.take(0) is None
    assert e.lost == {"flushed": 2}


def test_latest_keeps_the_newest_only() -> None:
    e = edge(Bound("latest", count=1))
    for ms in range(5):
        e.put(token(ms))
    assert isinstance(e.take(0), Gap)
    assert e.take(0) == token(4)


def test_thinning_keeps_the_beat() -> None:
    e = edge(Bound("block", count=100), thin=100 * MS)
    for ms in range(0, 1000, 33):
        e.put(token(ms))
    kept: list[int] = []
    while (f := e.take(0)) is not None:
        kept.append(f.pts // MS)
    assert kept == [0, 132, 231, 330, 429, 528, 627, 726, 825, 924]


def test_closed_edge_still_delivers_what_it_holds() -> None:
    e = edge(Bound("block", count=8))
    e.put(token(0))
    e.close()
    e.put(token(1))
    assert e.take(0) == token(0)
    assert e.take(0) is None
    assert e.lost == {"closed": 1}


def test_producer_of_a_blocking_edge_waits_for_room() -> None:
    async def main() -> tuple[int, list[int]]:
        loop = asyncio.get_running_loop()
        e = Edge("a.out", "b", "in", Bound("block", count=4), Waker(loop))
        got: list[int] = []

        async def produce() -> None:
            for i in range(100):
                e.put(token(i))
                await e.room()
            e.close()

        async def consume() -> None:
            while True:
                frame = e.take(0)
                if frame is None:
                    if e.closed:
                        return
                    await e.waker.sleep()
                else:
                    got.append(frame.pts // MS)
                    await asyncio.sleep(0.001)

        await asyncio.gather(produce(), consume())
        return e.peak, got

    peak, got = run_virtual(main())
    assert got == list(range(100))
    assert peak <= 4


def test_virtual_loop_tells_a_deadlock() -> None:
    async def main() -> None:
        await asyncio.get_running_loop().create_future()

    with pytest.raises(SimulationDeadlock, match="no timer is set"):
        run_virtual(main())


BOUNDS = st.one_of(
    st.builds(Bound, full=st.just("drop_oldest"), span=st.integers(1, 100).map(lambda n: n * MS)),
    st.builds(Bound, full=st.just("drop_oldest"), count=st.integers(1, 10)),
    st.builds(Bound, full=st.just("drop_oldest"), nbytes=st.integers(1, 30)),
    st.just(Bound("latest", count=1)),
    st.builds(Bound, full=st.just("block"), count=st.integers(1, 10)),
)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(0, 60), st.integers(-1, 2)),
        st.tuples(st.just("take"), st.integers(0, 60), st.just(0)),
        st.tuples(st.just("flush"), st.just(0), st.just(0)),
    ),
    max_size=120,
)


@settings(max_examples=150, deadline=None)
@given(bound=BOUNDS, actions=ACTIONS)
def test_every_frame_is_delivered_or_lost_or_queued(
    bound: Bound, actions: list[tuple[str, int, int]]
) -> None:
    e = edge(bound)
    now, pts, epoch = 0, 0, 0
    lost_in_gaps = 0
    delivered: list[int] = []
    for action, a, b in actions:
        if action == "put":
            pts += a * MS
            e.put(TokenFrame(pts=pts, deadline=now + a * MS, epoch=max(0, epoch + b), text="x" * (a % 7)))
            if bound.full != "block":
                assert len(e.queue) <= max(1, bound.count)
                assert len(e.queue) <= 1 or e.queue[-1].pts - e.queue[0].pts < bound.span
        elif action == "take":
            now += a * MS
            frame = e.take(now)
            if isinstance(frame, Gap):
                lost_in_gaps += frame.count
            elif frame is not None:
                assert frame.deadline >= now
                assert frame.epoch >= epoch
                delivered.append(frame.pts)
        else:
            epoch += 1
            e.flush(epoch)
        assert e.puts == len(delivered) + sum(e.lost.values()) + len(e.queue)  # counted here, not there
        assert e.taken == e.delivered == len(delivered)
        assert e.full == (e.is_full and bound.full == "block")
    assert delivered == sorted(delivered)
    assert lost_in_gaps <= e.lost["overflow"] + e.lost["late"]
