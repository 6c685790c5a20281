"""One output, many viewers: what is encoded, and who gets what."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import av
import numpy as np
import pytest
from penstock.pipeline.clock import MS, LoopClock
from penstock.pipeline.frame import VideoFrame
from penstock.pipeline.virtual_loop import run_virtual
from penstock.transport import broadcast
from penstock.transport.broadcast import KEYFRAME_APART, Broadcast
from penstock.transport.shared_tracks import PICTURES, SharedVideo

FRAME = 33 * MS


class Fake:
    """An encoder that makes no picture but tells what it was asked for. fails_at: number of the call that raises."""

    made: list[Fake]

    def __init__(self, codec: str, bitrate_bps: int) -> None:
        if codec not in ("VP8", "H264"):
            raise ValueError(codec)
        self.bitrate_bps = bitrate_bps
        self.keys: list[bool] = []
        self.fails_at = -1
        Fake.made.append(self)

    def encode(self, picture: av.VideoFrame, keyframe: bool, now: int) -> tuple[bytes, bool]:
        if len(self.keys) == self.fails_at:
            raise RuntimeError("broken")
        self.keys.append(keyframe)
        return b"%d" % len(self.keys), keyframe


class Inline:
    def __call__(self, _: object, work: Callable[..., Any], *args: object) -> Awaitable[Any]:
        done = asyncio.get_running_loop().create_future()
        try:
            done.set_result(work(*args))
        except RuntimeError as e:
            done.set_exception(e)
        return done


class Rig:
    """A broadcast on the virtual clock. `paths`: bits/s of each viewer's."""

    def __init__(self) -> None:
        self.cast = Broadcast(LoopClock(asyncio.get_running_loop()))
        self.paths: dict[SharedVideo, int] = {}
        self.frames = 0

    def watch(self, bps: int, codec: str = "VP8") -> SharedVideo:
        track = self.cast.video()
        self.paths[track] = bps
        track.join(codec, lambda: self.paths[track])
        return track

    async def run(self, seconds: float, *readers: SharedVideo) -> None:
        """Frames at 30/s; `readers` send at once what they are given."""
        for _ in range(round(seconds * 30)):
            image = np.zeros((72, 64), np.uint8)
            self.cast.show(VideoFrame(pts=self.frames * FRAME, image=image, format="i420"))
            self.frames += 1
            await asyncio.sleep(FRAME / 1e9)
            for track in readers:
                while track.take() is not None:
                    pass

    def rows(self) -> dict[tuple[str, int], int]:
        return {(row["codec"], row["kbps"]): row["viewers"] for row in self.cast.stats()}


def play(scenario: Callable[[Rig], Awaitable[None]], monkeypatch: pytest.MonkeyPatch) -> None:
    Fake.made = []
    monkeypatch.setattr(broadcast, "make_video_encoder", Fake)

    async def main() -> None:
        monkeypatch.setattr(asyncio.get_running_loop(), "run_in_executor", Inline())
        rig = Rig()
        await scenario(rig)
        rig.cast.close()
        await asyncio.sleep(0)

    run_virtual(main())


def encodes() -> int:
    return sum(len(encoder.keys) for encoder in Fake.made)


def test_five_viewers_of_like_paths_cost_one_encode(monkeypatch: pytest.MonkeyPatch):
    async def scenario(rig: Rig) -> None:
        viewers = [rig.watch(2_000_000) for _ in range(5)]
        await rig.run(2, *viewers)
        assert 59 <= encodes() <= 60
        assert len(Fake.made) == 1
        assert sum(Fake.made[0].keys) == 1, "keyframes that all ask for are one"
        assert [v.sent for v in viewers] == [encodes()] * 5
        assert rig.rows() == {("VP8", 2000): 5}

    play(scenario, monkeypatch)


def test_nothing_is_encoded_while_nobody_watches(monkeypatch: pytest.MonkeyPatch):
    async def scenario(rig: Rig) -> None:
        await rig.run(1)
        assert encodes() == 0
        viewer = rig.watch(300_000)
        await rig.run(1, viewer)
        viewer.stop()
        before = encodes()
        await rig.run(1)
        assert encodes() == before
        assert rig.cast.stats() == []

    play(scenario, monkeypatch)


def test_a_late_joiner_gets_a_keyframe_at_once_even_of_a_picture_that_stands_still(
    monkeypatch: pytest.MonkeyPatch,
):
    async def scenario(rig: Rig) -> None:
        first = rig.watch(2_000_000)
        await rig.run(1, first)
        late = rig.watch(2_000_000)  # nothing is shown any more
        await asyncio.sleep(0.2)
        taken = late.take()
        assert taken is not None
        assert taken[0].keyframe
        elsewhere = rig.watch(200_000)  # a rung that nobody was on
        await asyncio.sleep(0.2)
        taken = elsewhere.take()
        assert taken is not None
        assert taken[0].keyframe

    play(scenario, monkeypatch)


def test_keyframes_of_one_rung_are_apart_and_none_is_forgotten(monkeypatch: pytest.MonkeyPatch):
    async def scenario(rig: Rig) -> None:
        viewers = [rig.watch(2_000_000) for _ in range(3)]
        await rig.run(1, *viewers)
        for _ in range(3):
            for viewer in viewers:
                viewer.wake()
            await rig.run(0.1, *viewers)
        await rig.run(1, *viewers)
        at = [k * FRAME for k, key in enumerate(Fake.made[0].keys) if key]
        assert len(at) == 3
        assert min(b - a for a, b in itertools.pairwise(at)) >= KEYFRAME_APART - FRAME

    play(scenario, monkeypatch)


def test_a_slow_viewer_falls_and_the_others_keep_their_rate(monkeypatch: pytest.MonkeyPatch):
    async def scenario(rig: Rig) -> None:
        fast, slow = rig.watch(2_500_000), rig.watch(2_500_000)
        await rig.run(1, fast, slow)
        rig.paths[slow] = 100_000
        await rig.run(1, fast, slow)
        assert rig.rows() == {("VP8", 2500): 1, ("VP8", 100): 1}
        assert Fake.made[0].bitrate_bps == 2_500_000
        rig.paths[slow] = 2_500_000
        await rig.run(8, fast, slow)
        assert rig.rows() == {("VP8", 2500): 2}
        assert fast.sent >= rig.frames - 1
        assert fast.lost == 0

    play(scenario, monkeypatch)


def test_a_viewer_who_reads_nothing_is_bounded_and_moved_down(monkeypatch: pytest.MonkeyPatch):
    async def scenario(rig: Rig) -> None:
        fast, stuck = rig.watch(2_500_000), rig.watch(2_500_000)
        await rig.run(2, fast)
        assert stuck.lost > 0
        waiting = 0
        while stuck.take() is not None:
            waiting += 1
        assert waiting <= PICTURES
        assert stuck.choice is not None
        assert stuck.choice.rung < 3
        assert fast.lost == 0

    play(scenario, monkeypatch)


def test_what_follows_a_lost_picture_waits_for_a_keyframe(monkeypatch: pytest.MonkeyPatch):
    async def scenario(rig: Rig) -> None:
        viewer = rig.watch(2_000_000)
        await rig.run(1, viewer)
        viewer.skip()  # as while its track is disabled
        rig.cast.show(VideoFrame(pts=rig.frames * FRAME, image=np.zeros((72, 64), np.uint8), format="i420"))
        rig.frames += 1
        await asyncio.sleep(0.01)
        assert viewer.take() is None
        got: list[bool] = []
        for _ in range(30):
            await rig.run(1 / 30)
            while (taken := viewer.take()) is not None:
                got.append(taken[0].keyframe)
        assert got[0]
        assert len(got) > 10

    play(scenario, monkeypatch)


def test_codecs_have_rungs_of_their_own_and_an_unknown_one_is_refused(monkeypatch: pytest.MonkeyPatch):
    async def scenario(rig: Rig) -> None:
        await rig.run(1, rig.watch(2_000_000), rig.watch(2_000_000, "h264"))
        assert rig.rows() == {("VP8", 2000): 1, ("H264", 2000): 1}
        with pytest.raises(ValueError, match="AV1"):
            rig.watch(1, "AV1")

    play(scenario, monkeypatch)


def test_an_encoder_that_fails_while_a_viewer_only_tries_it_leaves_the_viewer_what_it_has(
    monkeypatch: pytest.MonkeyPatch,
):
    async def scenario(rig: Rig) -> None:
        low = rig.watch(150_000)
        await rig.run(2, low)
        real = Fake.encode

        def encode(self: Fake, picture: av.VideoFrame, keyframe: bool, now: int) -> tuple[bytes, bool]:
            if self is not Fake.made[0] and len(Fake.made) == 2:
                raise RuntimeError("broken")
            return real(self, picture, keyframe, now)

        monkeypatch.setattr(Fake, "encode", encode)
        rig.paths[low] = 3_000_000
        await rig.run(8, low)
        assert len(Fake.made) > 1, "another rung was tried"
        assert low.readyState == "live"
        before = low.sent
        await rig.run(1, low)
        assert low.sent > before

    play(scenario, monkeypatch)


def test_an_encoder_that_fails_ends_its_viewers_only(monkeypatch: pytest.MonkeyPatch):
    async def scenario(rig: Rig) -> None:
        one, other = rig.watch(2_000_000), rig.watch(2_000_000, "H264")
        await rig.run(0.5, one, other)
        Fake.made[0].fails_at = len(Fake.made[0].keys)
        await rig.run(0.5, one, other)
        assert one.readyState == "ended"
        assert other.readyState == "live"
        assert rig.rows() == {("H264", 2000): 1}

    play(scenario, monkeypatch)
