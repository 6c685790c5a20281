"""Stills and maps at the side that sends pictures: rings, clocks, hostile requests."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest
from penstock.pipeline.clock import MS, SECOND, LoopClock
from penstock.pipeline.frame import VideoFrame
from penstock.transport.edge_sender import EdgeSender, fetch_of
from penstock.transport.focus import Focus
from penstock.transport.importance import grid_of
from penstock.transport.rt_messages import Imp, NoStill, Rate, Still, parse
from penstock.transport.stills import PictureRing, decode_still
from penstock.transport.uplink import PAYLOAD_SHARE
from test_focus import Wire, on_loop, plan


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
