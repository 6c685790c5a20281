"""Both ends of the talk about where bits belong, without sockets: what is told, how often, and what hostile ends do."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.clock import MS, SECOND, LoopClock
from penstock.pipeline.compiler import compile_text
from penstock.pipeline.graph import Plan
from penstock.pipeline.virtual_loop import run_virtual
from penstock.transport.allocator import allocate
from penstock.transport.attention import Attention, changed
from penstock.transport.consumers import consumed_fps
from penstock.transport.edge_sender import EdgeSender
from penstock.transport.focus import Focus
from penstock.transport.importance import CELLS, Source
from penstock.transport.rt_messages import Caps, Imp, Look, Rate, Roi, parse
from penstock.transport.worth import Worth, path_of

WATCH = """
penstock: 1
graph: watch
nodes:
  cam: {use: webrtc.in, video: 640x480@30}
  look: {use: video.look, in: 'cam.video|every(500ms)'}
  overlay: {use: video.overlay, in: {video: cam.video, text: cam.text}}
  out: {use: webrtc.out, in: {video: overlay.video, text: look.seen}}
"""


def plan() -> Plan:
    return compile_text(WATCH, "watch.yaml")


class Wire:
    """A data channel that keeps what is sent."""

    def __init__(self) -> None:
        self.readyState = "open"
        self.bufferedAmount = 0
        self.sent: list[Any] = []
        self.handlers: dict[str, Callable[..., object]] = {}

    def send(self, data: bytes) -> None:
        self.sent.append(parse(data))

    def on(self, event: str, f: Callable[..., object]) -> None:
        self.handlers[event] = f

    def kinds(self, kind: type[Any]) -> list[Any]:
        return [m for m in self.sent if isinstance(m, kind)]


def on_loop(main: Callable[[LoopClock], Coroutine[Any, Any, None]]) -> None:
    async def run() -> None:
        await main(LoopClock(asyncio.get_running_loop()))

    run_virtual(run())


def importance(source: str = "boxes", confidence: float = 0.9, **more: Any) -> dict[str, Any]:
    return {"boxes": [[0, 0, 0.5, 0.5]], "confidence": confidence, "ttl_ms": 1500, "source": source} | more


# ---------------------------------------------------------------- which source counts


def test_a_better_source_hides_the_others_while_it_is_fresh() -> None:
    attention = Attention()
    for name in ("reporter", "attention", "boxes"):
        attention.told(importance(name), 0)
    attention.look((0.5, 0.5, 0.2, 0.2), 5 * SECOND, 0)

    def source(now: int) -> Source | None:
        found = attention.current(now)
        return found.source if found is not None else None

    assert source(0) == Source.user
    attention.look(None, 0, 0)
    assert source(SECOND) == Source.boxes
    attention.told(importance("attention"), 3 * SECOND)
    assert source(3 * SECOND) == Source.attention  # fresh attention before stale boxes
    assert source(600 * SECOND) is None


def test_detectors_are_trusted_little() -> None:
    attention = Attention()
    attention.told(importance("detector", 1.0), 0)
    found = attention.current(0)
    assert found is not None
    assert found.dqp(0) == 6
    attention.told(importance("detector", 1.0, found=True), 10 * SECOND)
    found = attention.current(10 * SECOND)
    assert found is not None
    assert found.dqp(10 * SECOND) == 12


@pytest.mark.parametrize(
    "fields",
    [
        {},
        importance(source="oracle"),
        importance(confidence=1.5),
        importance(confidence=float("nan")),
        importance(grid=[1] * (CELLS - 1)),
        importance(grid=["x"] * CELLS),
        importance(boxes=[[2, 2, 1, 1]]),
        importance(boxes=[[0, 0, 1]]),
        importance(boxes=[]),
        importance(ttl_ms=10**9),
    ],
)
def test_an_event_that_is_wrong_is_refused_and_changes_nothing(fields: dict[str, Any]) -> None:
    attention = Attention()
    with pytest.raises(ValueError, match="importance"):
        attention.told(fields, 0)
    assert attention.current(0) is None


def test_small_changes_are_not_worth_a_message() -> None:
    attention = Attention()
    attention.told(importance(), 0)
    old = attention.current(0)
    attention.told(importance(confidence=0.85), 100)
    assert not changed(old, attention.current(100))
    attention.told(importance(boxes=[[0.5, 0.5, 0.4, 0.4]]), 200)
    assert changed(old, attention.current(200))


# ---------------------------------------------------------------- the server's end


def test_the_rate_is_what_the_graph_looks_at() -> None:
    assert consumed_fps(plan(), watched=False) == 2
    assert consumed_fps(plan(), watched=True) == 30


def test_maps_go_out_at_once_then_once_a_second_and_again_before_they_die() -> None:
    async def main(clock: LoopClock) -> None:
        focus, wire = Focus("s", plan(), clock, lambda *a, **k: None, lambda: False), Wire()
        focus.opened(wire)
        for n in range(40):  # 4 s of boxes that move ten times a second
            focus.told("importance", importance(boxes=[[n / 50, 0, 0.2, 0.2]]))
            await asyncio.sleep(0.1)
        assert 4 <= len(wire.kinds(Imp)) <= 6
        focus.told("importance", importance(ttl_ms=10_000))
        await asyncio.sleep(30)
        assert wire.kinds(Imp)[-1].confidence == 0  # at the end it is told to be uniform
        assert [r.fps for r in wire.kinds(Rate)][:1] == [2.0]
        assert len(wire.kinds(Rate)) > 10  # repeated: the channel may lose it
        focus.close()

    on_loop(main)


def test_what_the_user_draws_goes_out_at_once() -> None:
    async def main(clock: LoopClock) -> None:
        focus, wire = Focus("s", plan(), clock, lambda *a, **k: None), Wire()
        focus.opened(wire)
        focus.told("importance", importance())
        await asyncio.sleep(0.3)
        focus.receive(Look((0.9, 0.9, 0.1, 0.1)).pack())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert wire.kinds(Imp)[-1].source == Source.user
        focus.receive(Look(None).pack())
        await asyncio.sleep(0.01)
        assert wire.kinds(Imp)[-1].source == Source.boxes
        focus.close()

    on_loop(main)


def test_thousands_of_messages_a_second_are_not_read() -> None:
    async def main(clock: LoopClock) -> None:
        focus = Focus("s", plan(), clock, lambda *a, **k: None)
        for n in range(5000):
            focus.receive(Look((n % 100 / 200, 0, 0.1, 0.1)).pack())
        assert focus.figures.refused >= 4900
        await asyncio.sleep(2)
        focus.receive(Look((0.5, 0, 0.1, 0.1)).pack())  # and then it listens again
        assert focus.attention.current(clock.now()) is not None
        focus.close()

    on_loop(main)


@given(st.lists(st.binary(max_size=200), max_size=20))
@settings(max_examples=50, deadline=None)
def test_any_bytes_leave_both_ends_alive(messages: list[bytes]) -> None:
    async def main(clock: LoopClock) -> None:
        focus = Focus("s", plan(), clock, lambda *a, **k: None)
        sender = EdgeSender("h264", 30, clock, lambda data: None)
        for data in messages:
            assert focus.receive(data)
            sender.receive(data)
            sender.receive(b"\1\1" + data)
            focus.receive(b"\1\4" + data)
        focus.stats()
        focus.close()
        sender.close()

    on_loop(main)


def test_fetch_of_a_sender_that_keeps_nothing_fails_at_once() -> None:
    async def main(clock: LoopClock) -> None:
        focus = Focus("s", plan(), clock, lambda *a, **k: None)
        with pytest.raises(ValueError, match="keeps no pictures"):
            await focus.fetch((0, 0, 1, 1))
        focus.receive(Caps(Roi.none, 1, 5, fetch=True).pack())
        start = clock.now()
        with pytest.raises(TimeoutError):  # it said that it would, and does not
            await focus.fetch((0, 0, 1, 1), deadline_ms=500)
        assert clock.now() - start == 500 * MS
        assert focus.told("fetch", {"box": [7, 7, 1, 1]})  # logged, nothing else
        focus.close()

    on_loop(main)


# ---------------------------------------------------------------- the edge's end


def test_sound_is_set_aside_for_who_sends_some() -> None:
    async def main(clock: LoopClock) -> None:
        hears = compile_text(
            "penstock: 1\ngraph: g\nnodes:\n  cam: {use: webrtc.in, video: 640x480@30, audio: 16k/mono/20ms}\n"
            "  out: {use: webrtc.out, in: {video: cam.video, audio: cam.audio}}\n"
        )
        for sends in (True, False):
            focus = Focus("s", hears, clock, lambda *a, **k: None, sounds=lambda sends=sends: sends)
            focus.opened(Wire())
            focus.receive(Caps(Roi.canvas, 1, sent_kbps=120).pack())
            (stream,) = focus.streams(clock.now())
            assert stream.audio == sends
            focus.close()

    on_loop(main)


def test_a_client_that_crops_is_told_the_rates_of_both_tracks_and_taught_by_its_answers() -> None:
    async def main(clock: LoopClock) -> None:
        focus, wire = Focus("s", plan(), clock, lambda *a, **k: None, lambda: False), Wire()
        focus.opened(wire)
        whole = Caps(Roi.canvas, 1, crop=True, fetch=True, sent_kbps=120)
        focus.receive(whole.pack())
        (alone,) = focus.streams(clock.now())
        assert (alone.key, alone.scale) == ("s/video", 1.0)
        focus.receive(replace(whole, seq=2, cropping=True, dqp=24, sent_kbps=60, path_kbps=300).pack())
        crop, context = focus.streams(clock.now())
        assert (crop.key, context.key) == ("s/crop", "s/context")
        assert crop.scale < alone.scale  # the same for fewer bits
        assert context.fps == 1
        focus.grants(allocate([crop, context], 150))
        await asyncio.sleep(3)
        rate = wire.kinds(Rate)[-1]
        assert rate.kbps > rate.context_kbps > 0
        assert rate.context_fps == 1
        before = focus.worth.learner.q50
        for _ in range(10):  # sure of what it reads, at 60 kb/s: less would do
            focus.told("answered", {"kind": "text", "confidence": 0.97})
        assert focus.worth.learner.answers == 10
        assert focus.worth.learner.q50 < before
        for wrong in (True, "sure", None, float("nan")):
            focus.told("answered", {"kind": "text", "confidence": wrong})
        assert focus.worth.learner.answers == 10
        told = focus.stats()
        assert [t["track"] for t in told["tracks"]] == ["crop", "context"]
        assert told["cropping"]
        json.dumps(told)
        focus.receive(replace(whole, seq=3).pack())
        focus.grants(allocate(focus.streams(clock.now()), 150))
        await asyncio.sleep(3)
        assert wire.kinds(Rate)[-1].context_fps == 0
        focus.close()

    on_loop(main)


def test_one_that_watches_or_whose_path_is_the_limit_is_not_held_back() -> None:
    async def main(clock: LoopClock) -> None:
        focus, wire = Focus("s", plan(), clock, lambda *a, **k: None, lambda: True), Wire()
        focus.opened(wire)
        focus.receive(Caps(Roi.canvas, 1, path_kbps=100).pack())
        focus.grants(allocate(focus.streams(clock.now()), math.inf))
        assert focus.worth.grant is not None
        assert focus.worth.grant.why == "path"
        assert focus.worth.kbps == 0  # its own estimate knows better
        focus.close()

    on_loop(main)


def test_an_estimate_is_not_taken_at_its_word_by_one_that_uses_little_of_it() -> None:
    assert path_of(Caps(path_kbps=100, sent_kbps=90)) == pytest.approx(111, abs=1)
    assert path_of(Caps(path_kbps=100, sent_kbps=60)) == pytest.approx(167, abs=1)
    assert path_of(Caps(path_kbps=100, sent_kbps=0)) == 200
    assert path_of(Caps()) == math.inf


def test_answers_to_one_torn_picture_count_as_about_one() -> None:
    """Eight that could not be read: within a second, or a minute apart."""
    caps, worths = Caps(Roi.x264, 1, sent_kbps=60), [Worth("s", plan()) for _ in range(3)]
    for worth, answers, apart in zip(worths, (1, 8, 8), (0, SECOND // 8, 60 * SECOND), strict=True):
        for i in range(answers):
            worth.answered({"kind": "text", "confidence": 0.0}, caps, 2.0, i * apart)
    one, burst, many = (worth.learner.q50 for worth in worths)
    assert burst < 1.3 * one
    assert many > 1.5 * one
