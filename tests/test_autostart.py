"""Graphs that run all the time: tried before READY, started again, and no reason to keep READY or a drain waiting."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from client import GRAPHS, until, within
from graphs import STAGES, compile_test
from managers import Manager, daemon
from penstock.pipeline.clock import MS, SECOND
from penstock.pipeline.compiler import load
from penstock.pipeline.frame import AudioFrame
from penstock.pipeline.stage import Out, Ports, Stage, StageError
from penstock.transport.daemon import Daemon
from test_api import STEADY

pytestmark = pytest.mark.net

ENDLESS = """
penstock: 1
graph: door
nodes:
  cam: {use: test.audio, frames: %s}
  out: {use: test.sink, in: cam.audio}
"""
DOOR = """
penstock: 1
graph: door
nodes:
  cam: {use: test.door}
  out: {use: test.sink, in: cam.audio}
"""


def test_a_graph_that_runs_all_the_time_is_started_again_when_it_ends(manager: Manager):
    async def main() -> None:
        served = Daemon(
            {"door": compile_test(ENDLESS % 5)}, port=0, notifier=manager.notifier(), start=["door", "door"]
        )
        told = served.server.bus.subscribe()
        ready = asyncio.Event()
        task = asyncio.create_task(served.run(lambda url, broken: ready.set()))
        await within(ready.wait())
        seen: list[tuple[bool, str]] = []
        while len(seen) < 3:
            event = await within(told.get())
            if event.name == "autostart":
                seen.append((event.fields["running"], event.fields["reason"]))
        assert seen == [(True, ""), (False, "it ended"), (True, "")]
        served.stop()
        await within(task)

    asyncio.run(main())


def test_a_graph_that_runs_all_the_time_is_tried_before_it_is_announced(manager: Manager, tmp_path: Path):
    camera = f"""
penstock: 1
graph: door
nodes:
  cam: {{use: file.in, path: {tmp_path}/no-camera.mp4}}
  out: {{use: webrtc.out, in: {{video: cam.video}}}}
"""

    async def main() -> None:
        graphs = {"door": compile_test(camera), "steady": compile_test(STEADY)}
        served = Daemon(graphs, port=0, notifier=manager.notifier(), start=["door", "steady"])
        told: list[dict[str, str]] = []
        task = asyncio.create_task(served.run(lambda url, broken: told.append(dict(broken))))
        await until(lambda: bool(told))
        assert told == [{"door": f"node 'cam': no file '{tmp_path}/no-camera.mp4'"}]
        assert manager.read()[-1] == f"STATUS=1 session; {served.server.url}; cannot start: door"
        served.stop()
        await within(task)

    asyncio.run(main())


class Unwell(Stage):
    """Its library raises what it likes."""

    ports = Ports({}, {"audio": Out(AudioFrame, "live")})

    async def setup(self) -> None:
        raise RuntimeError("the library says no")


class Away(Unwell):
    """A camera that does not answer."""

    async def setup(self) -> None:
        await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("camera", "broken"), [(Unwell, {"door": "RuntimeError: the library says no"}), (Away, {})]
)
def test_ready_is_said_whatever_a_camera_does(
    manager: Manager, monkeypatch: pytest.MonkeyPatch, camera: type[Stage], broken: dict[str, str]
):
    monkeypatch.setitem(STAGES, "test.door", camera)
    if camera is Away:
        monkeypatch.setattr("penstock.transport.daemon.STARTING", 10 * MS)

    async def main() -> None:
        served = Daemon({"door": compile_test(DOOR)}, port=0, notifier=manager.notifier(), start=["door"])
        told: list[dict[str, str]] = []
        task = asyncio.create_task(served.run(lambda url, broken: told.append(dict(broken))))
        await until(lambda: bool(told))
        assert told == [broken]
        assert "READY=1" in manager.read()
        served.stop()
        await within(task)

    asyncio.run(main())


def test_one_told_to_stop_is_not_ready_any_more(manager: Manager):
    async def main() -> None:
        served = daemon(manager)
        served.stop()
        await within(served.run())
        assert "READY=1" not in manager.read()
        assert "STOPPING=1" in manager.lines

    asyncio.run(main())


def test_a_full_server_says_nothing_against_a_graph(manager: Manager):
    async def main() -> None:
        served = Daemon({"steady": compile_test(STEADY)}, notifier=manager.notifier(), start=["steady"])
        served.server.desk.headless.limit = 0
        served.autostart.start()
        await within(served.autostart.tried.wait())
        assert served.sessions.broken == {}
        served.autostart.stop()
        served.pools.close()

    asyncio.run(main())


def test_an_endless_graph_does_not_hold_up_a_drain(manager: Manager):
    async def main() -> None:
        served = Daemon(
            {"door": compile_test(ENDLESS % 100_000)},
            port=0,
            drain=60 * SECOND,
            notifier=manager.notifier(),
            start=["door"],
        )
        task = asyncio.create_task(served.run())
        await until(lambda: len(served.server.desk.running()) == 1)
        served.stop()
        await within(task)
        assert not served.server.desk.running()

    asyncio.run(main())


def test_a_graph_that_needs_a_client_cannot_run_all_the_time(manager: Manager):
    with pytest.raises(StageError, match="needs a client for its live ends"):
        Daemon({"loopback": load(GRAPHS / "loopback.yaml")}, start=["loopback"])
