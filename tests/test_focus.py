"""Both ends of the talk about where bits belong, without sockets: what is told, how often, and what hostile ends do."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.clock import MS, SECOND, LoopClock
from penstock.pipeline.compiler import compile_text
from penstock.pipeline.frame import VideoFrame
from penstock.pipeline.graph import Plan
from penstock.pipeline.virtual_loop import run_virtual
from penstock.transport.allocator import allocate
from penstock.transport.attention import Attention, changed
from penstock.transport.consumers import consumed_fps
from penstock.transport.edge_sender import EdgeSender, fetch_of
from penstock.transport.focus import Focus
from penstock.transport.importance import CELLS, Source, grid_of
from penstock.transport.rt_messages import Caps, Imp, Look, NoStill, Rate, Roi, Still, parse
from penstock.transport.stills import PictureRing, decode_still
from penstock.transport.uplink import PAYLOAD_SHARE
from penstock.transport.worth import path_of

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


def picture(pts: int, value: int = 90) -> VideoFrame:
    image = np.full((240, 320, 3), value, np.uint8)
    image[:60, :80] = np.random.default_rng(value).integers(0, 255, (60, 80, 3))
    return VideoFrame(pts=pts, image=image)


def assert_ours(taken: bool) -> None:
    assert taken


class Joined:
    """A focus and an edge sender, joined without a network. skew: of the sender's clock, ns."""

    def __init__(self, clock: LoopClock, skew: int = 0) -> None:
        class Skewed(LoopClock):
            def now(self) -> int:
                return super().now() + skew

        self.theirs = Skewed(asyncio.get_running_loop())
        self.focus = Focus("s", plan(), clock, self.send, lambda: False)
        self.sender = EdgeSender("h264", 30, self.theirs, lambda data: assert_ours(self.focus.receive(data)))
        self.wire = Wire()
        self.wire.send = self.sender.receive  # type: ignore[method-assign]
        self.focus.opened(self.wire)

    def send(self, kind: str, **fields: Any) -> None:
        assert kind == "fetch"
        self.sender.fetch(fields)

    def close(self) -> None:
        self.focus.close()
        self.sender.close()


@pytest.mark.parametrize("skew", [0, 3600 * SECOND, 50 * 86_400 * SECOND])
def test_stills_are_of_the_moment_asked_for_though_clocks_disagree(skew: int) -> None:
    async def main() -> None:
        # executor threads: a real loop
        clock = LoopClock(asyncio.get_running_loop())
        both = Joined(clock, skew)
        both.focus.receive(both.sender.caps().pack())
        now = both.theirs.now()
        for n in range(20):
            both.sender.picture(picture(now - (19 - n) * 100 * MS, 50 + n))
        wanted = clock.now() - 900 * MS
        still = await both.focus.fetch((0, 0, 0.25, 0.25), wanted, deadline_ms=10_000)
        assert (still.width, still.height) == (80, 60)
        assert abs(still.pts - wanted) <= 60 * MS
        whole = await both.focus.fetch((0, 0, 1, 1), deadline_ms=10_000)
        assert (whole.width, whole.height) == (320, 240)
        both.close()

    asyncio.run(main())


def test_a_still_keeps_within_the_bytes_allowed() -> None:
    async def main() -> None:
        both = Joined(LoopClock(asyncio.get_running_loop()))
        both.focus.receive(both.sender.caps().pack())
        noise = np.random.default_rng(0).integers(0, 255, (240, 320, 3)).astype(np.uint8)
        both.sender.picture(VideoFrame(pts=both.theirs.now(), image=noise))
        small = await both.focus.fetch((0, 0, 1, 1), max_bytes=2000, deadline_ms=10_000)
        assert small.width < 320
        assert both.focus.figures.still_bytes <= 2000
        both.close()

    asyncio.run(main())


def test_hostile_fetches_are_answered_in_words_and_bounded() -> None:
    async def main() -> None:
        said: list[Any] = []
        sender = EdgeSender("vp8", 30, LoopClock(asyncio.get_running_loop()), lambda d: said.append(parse(d)))
        for n in range(3000):
            sender.fetch({"id": n, "box": [0, 0, 1, 1]})
        assert sender.errors >= 2990
        assert sum("too many" in m.why for m in said if isinstance(m, NoStill)) >= 2990
        await asyncio.sleep(0.1)
        sender.fetch({"id": 9999, "box": [5, 5, 1, 1]})
        assert isinstance(said[-1], NoStill)
        assert "nothing of the picture" in said[-1].why
        sender.close()

    asyncio.run(main())


def test_old_and_doubled_maps_change_nothing() -> None:
    async def main(clock: LoopClock) -> None:
        sender = EdgeSender("h264", 30, clock, lambda data: None)
        top, bottom = grid_of([(0, 0, 0.1, 0.1)]), grid_of([(0.9, 0.9, 0.1, 0.1)])
        sender.receive(Imp(top, 0.9, seq=65535).pack())
        sender.receive(Imp(bottom, 0.9, seq=65530).pack())  # late
        assert sender.map is not None
        assert sender.map.grid[0, 0] == 255
        sender.receive(Imp(bottom, 0.9, seq=3).pack())  # the numbers have wrapped
        assert sender.map.grid[0, 0] == 0
        sender.close()

    on_loop(main)


def test_a_map_with_a_time_from_nowhere_counts_from_its_arrival() -> None:
    async def main(clock: LoopClock) -> None:
        sender = EdgeSender("h264", 30, clock, lambda data: None)
        sender.receive(Imp(grid_of([(0, 0, 0.1, 0.1)]), 0.9, 1, capture_ms=3_000_000_000).pack())
        assert sender.map is not None
        assert sender.map.at == clock.now()
        sender.close()

    on_loop(main)


def test_the_camera_is_thinned_to_what_is_looked_at() -> None:
    async def main(clock: LoopClock) -> None:
        sender = EdgeSender("h264", 30, clock, lambda data: None, most_bps=500_000)
        sender.receive(Rate(1, 300, 2.0).pack())
        shown = 0
        for n in range(90):  # 3 s of 30 a second
            sender.picture(picture(n * SECOND // 30))
            if sender.out._frame is not None:  # pyright: ignore[reportPrivateUsage]
                sender.out.take()
                shown += 1
        assert 6 <= shown <= 7
        assert sender.out.limit_bps == 300_000 * PAYLOAD_SHARE  # headers and repeats are of the grant
        sender.receive(Rate(2, 0, 30.0).pack())
        assert sender.out.limit_bps == 500_000  # its own limit stays
        sender.close()

    on_loop(main)


def test_the_ring_is_bounded_in_time_and_bytes() -> None:
    ring = PictureRing(most_bytes=10 * 230_400)
    for n in range(200):
        ring.add(picture(n * 33 * MS))
    assert len(ring) == 10
    assert ring.bytes <= 10 * 230_400
    newest = ring.at(None)
    assert newest is not None
    assert ring.at(10**15) is newest
    roomy = PictureRing()
    for n in range(200):
        roomy.add(picture(n * 33 * MS))
    oldest = roomy.at(0)
    assert oldest is not None
    assert 2800 * MS <= newest.pts - oldest.pts <= 3100 * MS


def test_a_still_that_is_no_picture_or_claims_another_size_is_refused() -> None:
    for data in (b"", b"RIFF", b"RIFF\0\0\0\0WEBPVP8X" + b"\xff" * 14):
        with pytest.raises(ValueError, match="still"):
            decode_still(Still(1, 0, (0, 0, 1, 1), 64, 64, data))


def test_only_fetch_is_ours_of_the_text_messages() -> None:
    assert fetch_of('{"v":1,"type":"fetch","id":1}') is not None
    for other in ("", "[", '{"type":"text"}', "[1]", "[" * 5000):
        assert fetch_of(other) is None


# ---------------------------------------------------------------- crop and context


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
