"""One output, many viewers: what is encoded, and who gets what."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import av
import numpy as np
import pytest
from aiortc import RTCSessionDescription
from client import Client, Colour, Tone, serving, until, within
from graphs import compile_test
from penstock.pipeline.clock import MS, SECOND, LoopClock
from penstock.pipeline.frame import VideoFrame
from penstock.pipeline.virtual_loop import run_virtual
from penstock.transport import broadcast, encoded_audio
from penstock.transport.broadcast import KEYFRAME_APART, Broadcast, SharedRung
from penstock.transport.opus_encoder import OpusEncoder
from penstock.transport.shared_tracks import PICTURES, SharedVideo

SDP = {"Content-Type": "application/sdp"}
FRAME = 33 * MS
CAMERA = """
penstock: 1
graph: camera
nodes:
  cam: {use: synthetic.in, video: 320x240@20}
  out: {use: webrtc.out, in: {video: cam.video, audio: cam.audio}}
"""


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


# ---------------------------------------------------------------- over real connections


async def watch(url: str, path: str) -> tuple[Client, str]:
    client = Client()
    for kind in ("audio", "video"):
        client.pc.addTransceiver(kind, direction="recvonly")
    offer = await client.offer()
    async with aiohttp.ClientSession(url) as http, http.post(path, data=offer, headers=SDP) as r:
        assert r.status == 201, await r.text()
        location, answer = r.headers["Location"], await r.text()
    await client.pc.setRemoteDescription(RTCSessionDescription(answer, "answer"))
    return client, location


@pytest.mark.net
def test_viewers_of_a_started_graph_share_its_encoders_and_its_sound(monkeypatch: pytest.MonkeyPatch):
    sounds: list[OpusEncoder] = []
    rungs: list[SharedRung] = []

    class Counted(OpusEncoder):
        def __init__(self) -> None:
            super().__init__()
            sounds.append(self)

    class Kept(SharedRung):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            rungs.append(self)

    monkeypatch.setattr(broadcast, "OpusEncoder", Counted)
    monkeypatch.setattr(encoded_audio, "OpusEncoder", Counted)
    monkeypatch.setattr(broadcast, "SharedRung", Kept)

    async def main() -> None:
        async with serving({"camera": compile_test(CAMERA)}) as server:
            live = await server.desk.start("camera")
            clients = [await watch(server.url, "/whep/camera") for _ in range(3)]
            assert len(server.viewers.live) == 3
            assert not server.sessions.live, "no copy of the graph was started"
            for client, _ in clients:
                for kind in ("video", "audio"):
                    frame = await within(client.tracks[kind].recv())
                    if kind == "video":
                        assert frame.height <= 240
                        bars = frame.to_ndarray(format="rgb24")[20, :, :]
                        assert bars.std() > 30, "a picture of the graph's"
            assert len(sounds) == 1
            shared = live.stats()["transport"]["shared"]
            assert sum(row["viewers"] for row in shared) == 3
            before = sum(rung.encoded for rung in rungs), live.line.broadcast.sounds_encoded
            shown = clients[0][0].pc.getReceivers()
            assert shown
            began = asyncio.get_running_loop().time()
            await asyncio.sleep(1.5)
            took = asyncio.get_running_loop().time() - began
            made = sum(rung.encoded for rung in rungs) - before[0]
            # at most one encode of each picture for each rung in use, whatever the number of viewers
            in_use = max(1, len({rung.number for rung in rungs if rung.encoded}))
            assert 0 < made <= took * 20 * in_use * 1.5
            assert (live.line.broadcast.sounds_encoded - before[1]) <= took * 50 * 1.5
            # one of them ends; the others go on
            async with aiohttp.ClientSession(server.url) as http:
                async with http.delete(clients[0][1]) as r:
                    assert r.status == 200
                await until(lambda: len(server.viewers.live) == 2)
                async with http.delete(clients[0][1]) as r:
                    assert r.status == 404
            await within(clients[1][0].tracks["video"].recv())
            await live.close("over")
            await until(lambda: not server.viewers.live)
            again = server.desk.sessions.clock.now() + 30 * SECOND
            server.desk.headless.kept = {"camera": again}  # as one that starts again by itself
            offer = clients[0][0].pc.localDescription.sdp
            async with (
                aiohttp.ClientSession(server.url) as http,
                http.post("/whep/camera", data=offer, headers=SDP) as r,
            ):
                assert r.status == 503
                assert 20 <= int(r.headers["Retry-After"]) <= 30
            for client, _ in clients:
                await client.pc.close()

    asyncio.run(main())


@pytest.mark.net
def test_a_graph_that_sends_nothing_is_not_to_be_tried_again():
    async def main() -> None:
        nodes = "  cam: {use: test.audio, frames: 100000}\n  out: {use: test.sink, in: cam.audio}\n"
        graph = "penstock: 1\ngraph: nout\nnodes:\n" + nodes
        async with (
            serving({"nout": compile_test(graph)}) as server,
            aiohttp.ClientSession(server.url) as http,
        ):
            server.desk.headless.kept = {"nout": 0}
            await server.desk.start("nout")
            client = Client()
            client.pc.addTransceiver("video", direction="recvonly")
            async with http.post("/whep/nout", data=await client.offer(), headers=SDP) as r:
                assert r.status == 400
                assert "the graph has no webrtc.out" in await r.text()
            await client.pc.close()

    asyncio.run(main())


@pytest.mark.net
def test_a_clients_session_can_be_watched():
    async def main() -> None:
        async with serving(viewers=1) as server, aiohttp.ClientSession(server.url) as http:
            owner = Client()
            owner.pc.addTrack(Tone())
            owner.pc.addTrack(Colour())
            await owner.connect(server.url)
            await within(owner.tracks["video"].recv())
            viewer, location = await watch(server.url, f"/whep/loopback/{owner.session}")
            assert location.startswith("/whep/loopback/v-")
            red = await within(viewer.tracks["video"].recv())
            assert red.to_ndarray(format="rgb24").mean(axis=(0, 1))[0] > 120
            async with asyncio.timeout(10):
                while np.abs((await viewer.tracks["audio"].recv()).to_ndarray()).max() < 1000:
                    pass
            # limits and faults, in words
            other = Client()
            offer = await other.offer()
            for path, status in (
                (f"/whep/loopback/{owner.session}", 503),  # viewers=1
                ("/whep/loopback/s-none", 404),
                (f"/whep/other/{owner.session}", 404),
            ):
                async with http.post(path, data=offer, headers=SDP) as r:
                    assert r.status == status, await r.text()
            async with http.post(f"/whep/loopback/{owner.session}", data="v=0", headers=SDP) as r:
                assert r.status == 400
            await server.sessions.close(owner.session, "over")
            await until(lambda: not server.viewers.live)
            await owner.pc.close()
            await viewer.pc.close()
            await other.pc.close()

    asyncio.run(main())
