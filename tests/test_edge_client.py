"""The edge client against a real server on loopback: regions, rate and stills, by WebRTC and data channels only."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from client import serving, until
from harness.fine import fine_camera, likeness
from penstock.pipeline import registry, service
from penstock.pipeline.clock import MS, MonotonicClock
from penstock.pipeline.compiler import load
from penstock.pipeline.frame import Frame, VideoFrame
from penstock.pipeline.stage import In, Outputs, Ports, Stage, StageError
from penstock.pipeline.units import VideoFormat
from penstock.transport.edge import Edge, EdgeEvents, EdgeOptions
from penstock.transport.importance import GRID_W
from penstock.transport.peer import Peer
from test_peer import go_silent

pytestmark = pytest.mark.net

GRAPH = """
penstock: 1
graph: gaze
nodes:
  cam: {use: webrtc.in, video: 320x240@30}
  eye: {use: test.eye, in: {video: 'cam.video|every(200ms)', still: cam.still}}
"""


class Eye(Stage):
    """Says that the upper left quarter matters, and wants one still of it."""

    ports = Ports({"video": In(VideoFrame), "still": In(VideoFrame)}, {})
    seen: list[VideoFrame]
    stills: list[VideoFrame]
    current: Eye | None = None
    tells = True

    async def setup(self) -> None:
        Eye.current = self
        self.seen, self.stills = [], []

    def process(self, port: str, frame: Frame, out: Outputs) -> None:
        assert isinstance(frame, VideoFrame)
        if port == "still":
            self.stills.append(frame)
            return
        self.seen.append(frame)
        confidence, ttl_ms = (0.9, 5000) if self.tells else (0.0, 0)
        self.ctx.emit(
            "importance", boxes=[[0, 0, 0.5, 0.5]], confidence=confidence, ttl_ms=ttl_ms, source="boxes"
        )
        if len(self.seen) == 5:
            self.ctx.emit("fetch", box=[0, 0, 0.25, 0.25], pts=self.seen[-1].pts)


@pytest.fixture
def gaze(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    Eye.current = None
    monkeypatch.setitem(registry.EXTRA, "test.eye", Eye)
    path = tmp_path / "gaze.yaml"
    path.write_text(GRAPH)
    return {"gaze": load(path)}


def options(url: str, **more: Any) -> EdgeOptions:
    return EdgeOptions(url=url, form=VideoFormat(320, 240, 20), **more)


@pytest.mark.parametrize("codec", ["h264", "vp8"])
def test_bits_follow_the_far_ends_gaze(gaze: dict[str, Any], codec: str) -> None:
    async def main() -> None:
        async with serving(gaze) as server:
            edge = Edge(options(server.url, codec=codec), MonotonicClock())
            running = asyncio.create_task(edge.run())
            try:
                await until(lambda: bool(Eye.current and Eye.current.stills), 20)
                eye, session = Eye.current, edge.session
                assert eye is not None
                assert session is not None
                sender = session.sender
                await until(lambda: sender.map is not None and sender.map.dqp(MonotonicClock.now()) == 24)
                await until(lambda: sender.out.encoder is not None and sender.out.encoder.dqp == 24)
                assert sender.map is not None
                assert sender.map.grid[0, 0] == 255
                assert sender.map.grid[8, GRID_W - 1] == 0
                assert sender.rate is not None
                assert sender.rate.fps == 5  # every(200ms) of a camera that makes 20
                assert sender.out.fps == 5
                (still,) = eye.stills
                assert (still.width, still.height) == (80, 60)  # cut out at full size
                assert abs(still.pts - eye.seen[4].pts) < 200 * MS  # of the moment that was asked for
                (live,) = server.sessions.live.values()
                focus = live.stats()["transport"]["focus"]
                assert (focus["source"], focus["dqp"], focus["stills"]) == ("boxes", 24.0, 1)
                assert focus["sender"] == {"h264": "x264", "vp8": "vp8"}[codec]
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


@pytest.mark.parametrize("codec", ["h264", "vp8"])
def test_a_crop_and_its_context_come_together_again(gaze: dict[str, Any], codec: str, tmp_path: Path) -> None:
    true = fine_camera(tmp_path / "camera.y4m")

    async def main() -> None:
        async with serving(gaze) as server:
            camera = str(tmp_path / "camera.y4m")
            edge = Edge(options(server.url, codec=codec, send="crop", camera=camera), MonotonicClock())
            running = asyncio.create_task(edge.run())

            def together() -> bool:
                frame = Eye.current.seen[-1] if Eye.current and Eye.current.seen else None
                if frame is None or frame.sharp is None:
                    return False
                inside, outside = (likeness(frame, true, box) for box in (frame.sharp, (0.6, 0.6, 0.4, 0.4)))
                return inside > 0.9 and outside < inside - 0.05  # in its place, to the pixel; half as wide

            try:
                await until(together, 20)
                eye, session = Eye.current, edge.session
                assert eye is not None
                assert session is not None
                assert eye.seen[0].sharp is None  # before the first map: the whole picture
                x, y, w, h = eye.seen[-1].sharp or (1, 1, 0, 0)
                assert (x, y) == (0, 0)
                assert w >= 0.5
                assert h >= 0.5
                sender = session.sender
                await until(lambda: sender.rate is not None and sender.rate.context_fps == 1)  # it was told
                assert (sender.out.fps, sender.crop_out.fps) == (1, 5)
                (live,) = server.sessions.live.values()
                assert live.stats()["transport"]["focus"]["cropping"]
                assert live.peer is not None
                misplaced = [track.counts["misplaced"] for track in live.peer.tracks.values()]
                assert misplaced == [0, 0]
                shown = len(eye.seen)
                eye.tells = False  # … and when nothing matters any more, whole pictures again
                await until(lambda: sender.cells is None, 20)
                await until(lambda: len(eye.seen) > shown + 5 and eye.seen[-1].sharp is None)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


def test_a_server_that_declines_the_crop_gets_regions(
    gaze: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = Peer._choose  # pyright: ignore[reportPrivateUsage]

    def as_before(peer: Peer, transceiver: Any) -> None:
        peer._receive = peer._receive - {"crop"}  # pyright: ignore[reportPrivateUsage]
        choose(peer, transceiver)

    monkeypatch.setattr(Peer, "_choose", as_before)

    async def main() -> None:
        async with serving(gaze) as server:
            edge = Edge(options(server.url, send="crop"), MonotonicClock())
            running = asyncio.create_task(edge.run())
            try:
                await until(lambda: bool(Eye.current and len(Eye.current.seen) > 5), 20)
                assert edge.session is not None
                sender = edge.session.sender
                await until(lambda: sender.out.encoder is not None and sender.out.encoder.dqp == 24)
                assert (sender.crops, sender.cells) == (False, None)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

    asyncio.run(main())


def test_it_comes_back_when_the_server_ends_the_session(gaze: dict[str, Any]) -> None:
    async def main() -> None:
        came: list[str] = []
        lost: list[str] = []
        async with serving(gaze) as server:
            events = EdgeEvents(came.append, lambda why, pause: lost.append(why))
            edge = Edge(options(server.url), MonotonicClock(), events)
            running = asyncio.create_task(edge.run())
            try:
                await until(lambda: len(came) == 1 and bool(server.sessions.live), 20)
                await server.sessions.close(next(iter(server.sessions.live)), "a test")
                await until(lambda: len(came) == 2, 20)
                assert len(lost) == 1
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
            await until(lambda: not server.sessions.live)  # it also says goodbye

    asyncio.run(main())


def test_it_comes_back_to_its_session_when_its_packets_are_lost(gaze: dict[str, Any]) -> None:
    async def main() -> None:
        came: list[str] = []
        async with serving(gaze) as server:
            edge = Edge(options(server.url), MonotonicClock(), EdgeEvents(came.append))
            running = asyncio.create_task(edge.run())
            try:
                await until(lambda: len(came) == 1 and bool(server.sessions.live), 20)
                (live,) = server.sessions.live.values()
                assert edge.session is not None
                go_silent(edge.session)
                await until(lambda: live.state == "parked", 20)
                await until(lambda: len(came) == 2, 30)
                assert list(server.sessions.live.values()) == [live]
                assert live.stats()["transport"]["resumes"] == 1
                await until(
                    lambda: live.peer is not None and live.peer.tracks["video"].counts["delivered"] > 3, 20
                )
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)
            await until(lambda: not server.sessions.live)  # stopped, it says goodbye

    asyncio.run(main())


def test_a_refusal_for_good_ends_it_in_the_servers_words(gaze: dict[str, Any]) -> None:
    async def main() -> None:
        async with serving(gaze) as server:
            with pytest.raises(StageError, match="unknown graph 'nope'"):
                await asyncio.wait_for(Edge(options(server.url, graph="nope"), MonotonicClock()).run(), 10)

    asyncio.run(main())


def test_a_camera_that_is_not_there_is_told() -> None:
    async def main() -> None:
        with pytest.raises(StageError, match="no file"):
            await Edge(options("http://127.0.0.1:1", camera="none.mp4"), MonotonicClock()).run()

    asyncio.run(main())


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://x", "http://"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(StageError, match="is not a server's URL"):
        Edge(options(url), MonotonicClock())


def test_the_unit_of_a_camera_starts_the_client_with_its_own_settings() -> None:
    text = service.unit_text("/opt/penstock/bin/penstock", user=False, template=service.EDGE_TEMPLATE)
    assert "ExecStart=/opt/penstock/bin/penstock --log-json edge $PENSTOCK_ARGS" in text
    assert "EnvironmentFile=/etc/penstock/edge-%i.env" in text
    assert "@" not in text.split("ExecStart=")[1].splitlines()[0]
    users = service.unit_text("/home/me/penstock", user=True, template=service.EDGE_TEMPLATE)
    assert "EnvironmentFile=%E/penstock/edge-%i.env" in users
    assert "DynamicUser" not in users
