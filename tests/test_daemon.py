from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from client import GRAPHS, Client, until, within
from diffusion_rig import random_weights, restyle_graph
from graphs import compile_test
from managers import Manager, daemon
from penstock.pipeline.clock import MS, SECOND, ManualClock
from penstock.pipeline.compiler import load
from penstock.pipeline.notify import Notifier, listen_sockets
from penstock.transport.daemon import WEDGED, Daemon
from test_api import STEADY

pytestmark = pytest.mark.net


def test_ready_is_said_when_the_server_listens_and_the_graphs_are_warm(manager: Manager):
    async def main() -> None:
        served = daemon(manager)
        ready = asyncio.Event()
        task = asyncio.create_task(served.run(lambda url, broken: ready.set()))
        await within(ready.wait())
        lines = manager.read()
        assert lines[0] == "STATUS=warming up"
        assert lines[1] == "STATUS=warming up loopback"
        assert lines[2] == "READY=1"
        assert lines[3].startswith("STATUS=0 sessions; http://127.0.0.1:")
        async with aiohttp.ClientSession(served.server.url) as session, session.get("/health/ready") as r:
            assert r.status == 200
        served.pools.get("main")
        assert b'penstock_pool{figure="done",pool="main",work="calls"} 0.0' in served.server.metrics.text()
        served.stop()
        await within(task)
        assert "STOPPING=1" in manager.read()

    asyncio.run(main())


def test_a_drain_tells_clients_gives_them_their_time_and_takes_no_new_ones(manager: Manager):
    async def main() -> None:
        served = daemon(manager, drain=30 * SECOND)
        ready = asyncio.Event()
        task = asyncio.create_task(served.run(lambda url, broken: ready.set()))
        await within(ready.wait())
        client = Client()
        await client.connect(served.server.url)
        served.stop()
        event = await client.heard("event", lambda m: m["name"] == "draining")
        assert event["from"] == "server"
        assert event["fields"]["within_ms"] == 30_000
        async with aiohttp.ClientSession(served.server.url) as session:
            async with session.post("/session", json={"sdp": await client.offer()}) as r:
                assert r.status == 503
                assert "shutting down" in (await r.json())["error"]
            async with session.get("/health/ready") as r:
                assert r.status == 503
            client.say({"v": 1, "type": "chat", "text": "still served"})
            assert (await client.heard("text"))["text"] == "still served"
            assert not task.done()
            async with session.delete(f"/session/{client.session}") as r:
                assert r.status == 200
        await within(task)  # the last session has left: no need to wait for the budget
        assert any(line.startswith("EXTEND_TIMEOUT_USEC=") for line in manager.read())
        await client.pc.close()

    asyncio.run(main())


def test_a_drain_ends_what_stays_over_its_time(manager: Manager):
    async def main() -> None:
        served = daemon(manager, {"steady": compile_test(STEADY)}, drain=100 * MS)
        ready = asyncio.Event()
        task = asyncio.create_task(served.run(lambda url, broken: ready.set()))
        await within(ready.wait())
        await served.server.desk.start("steady")
        served.stop()
        await within(task)
        assert not served.server.desk.running()

    asyncio.run(main())


def test_a_graph_that_cannot_start_is_told_as_such_until_it_can(manager: Manager, tmp_path: Path):
    weights = tmp_path / "mine.safetensors"
    weights.write_bytes(b"\x08")
    broken = compile_test(restyle_graph(weights))
    path = tmp_path / "restyle.yaml"
    why = f"node 'restyle': {weights} is no readable safetensors file"

    async def main() -> None:
        served = daemon(manager, {"loopback": load(GRAPHS / "loopback.yaml"), "restyle": broken})
        told: list[tuple[str, list[str]]] = []
        task = asyncio.create_task(served.run(lambda url, broken: told.append((url, list(broken)))))
        await until(lambda: bool(told))
        assert told == [(served.server.url, ["restyle"])]
        assert manager.read()[-1] == f"STATUS=0 sessions; {served.server.url}; cannot start: restyle"
        async with aiohttp.ClientSession(served.server.url) as session:

            async def get(path: str) -> tuple[int, dict[str, Any]]:
                async with session.get(path) as r:
                    return r.status, await r.json()

            status, health = await get("/health/ready")
            assert (status, health["status"]) == (200, "ready"), "the other graph can be had"
            assert health["broken"]["restyle"].startswith(why)
            rows = {row["name"]: row["error"] for row in (await get("/graphs"))[1]["graphs"]}
            assert rows["loopback"] == ""
            assert rows["restyle"].startswith(why)
            loopback = served.graphs.pop("loopback")
            status, health = await get("/health/ready")
            assert status == 503
            assert health["error"].startswith(f"no graph can start: restyle: {why}")
            served.graphs["loopback"] = loopback
            for content, left in ((b"\x08", ["restyle"]), (random_weights(tmp_path).read_bytes(), [])):
                weights.write_bytes(content)  # it starts, and loads in the background
                client = Client()
                await client.connect(served.server.url, "restyle")
                await until(lambda: not served._tasks, 60)  # pyright: ignore[reportPrivateUsage]
                assert list(served.sessions.broken) == left
                await client.pc.close()
            served.sessions.broken["restyle"] = why
            path.write_text(
                (GRAPHS / "loopback.yaml").read_text().replace("graph: loopback", "graph: restyle")
            )
            served.graphs["restyle"] = replace(broken, path=str(path))
            served.reload()
            await until(lambda: not served.sessions.broken)
            assert (await get("/health/ready"))[1]["broken"] == {}
        served.stop()
        await within(task)

    asyncio.run(main())


def test_the_watchdog_is_fed_only_while_there_is_progress(manager: Manager):
    async def main() -> None:
        clock = ManualClock()
        notifier = manager.notifier(WATCHDOG_USEC="10000000")
        assert notifier.watchdog == 10 * SECOND
        stuck = ""
        feeding = asyncio.create_task(notifier.feed(clock, lambda: stuck, lambda: "fine"))
        await until(lambda: manager.read().count("WATCHDOG=1") > 3)
        assert clock.time >= 3 * 5 * SECOND
        stuck = "s-1/asr has not returned for 30 s"
        await until(lambda: f"STATUS={stuck}" in manager.read())
        fed = manager.read().count("WATCHDOG=1")
        for _ in range(50):
            await asyncio.sleep(0)
        assert manager.read().count("WATCHDOG=1") == fed
        feeding.cancel()

    asyncio.run(main())


def test_a_wedged_stage_is_named(manager: Manager):
    async def main() -> None:
        served = daemon(manager, {"steady": compile_test(STEADY)})
        live = await served.server.desk.start("steady")
        assert served.stuck() == ""
        live.session.runners["work"]._since = served.clock.now() - WEDGED - 1  # pyright: ignore[reportPrivateUsage]
        assert f"{live.id}/work" in served.stuck()
        await served.server.desk.close_all()
        served.pools.close()

    asyncio.run(main())


def test_without_a_manager_nothing_is_sent_and_nothing_fails():
    notifier = Notifier({})
    assert not notifier.wanted
    notifier.ready("x")
    Notifier({"NOTIFY_SOCKET": "/nowhere/at/all"}).ready("x")
    assert Notifier({"WATCHDOG_USEC": "5", "WATCHDOG_PID": "1"}).watchdog == 0


def test_sockets_of_another_process_are_left_alone():
    assert listen_sockets({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == []
    with pytest.raises(ValueError, match="LISTEN_FDS is 'x'"):
        listen_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "x"})


ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3, inheritable=True)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1"}
os.execv(sys.executable, [sys.executable, "-m", "penstock.pipeline", "--log-json", "serve", "--drain", "1s", sys.argv[2]])
"""


def test_a_real_process_serves_the_managers_socket_reloads_and_stops(manager: Manager, tmp_path: Path):
    graph = tmp_path / "mine.yaml"
    graph.write_text((GRAPHS / "loopback.yaml").read_text())
    env = os.environ | {
        "NOTIFY_SOCKET": manager.path,
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        process = subprocess.Popen(
            [sys.executable, "-c", ACTIVATE, str(listening.fileno()), str(graph)],
            env=env,
            pass_fds=[listening.fileno()],
            stderr=subprocess.PIPE,
        )

    async def main() -> None:
        await until(lambda: "READY=1" in manager.read(), 60)
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
            session.get("/graphs/loopback") as r,
        ):
            assert r.status == 200
        graph.write_text("penstock: 1\ngraph: loopback\nnodes: {cam: {use: webrtc.inn}}\n")
        process.send_signal(signal.SIGHUP)
        await until(lambda: any("reload refused" in line for line in manager.read()))
        assert any(":3:" in line for line in manager.lines if "reload refused" in line)  # with its place
        assert "RELOADING=1" in manager.lines
        assert any(line.startswith("MONOTONIC_USEC=") for line in manager.lines)
        process.send_signal(signal.SIGTERM)
        await until(lambda: process.poll() is not None, 20)
        assert process.returncode == 0
        assert "STOPPING=1" in manager.read()

    try:
        asyncio.run(main())
    finally:
        process.kill()
        process.communicate()


def test_a_reload_while_it_warms_up_comes_after_ready(manager: Manager):
    async def main() -> None:
        served = daemon(manager)
        served.reload()
        task = asyncio.create_task(served.run())
        await until(lambda: manager.read().count("READY=1") == 2)
        said = [line for line in manager.lines if line in ("READY=1", "RELOADING=1")]
        assert said == ["READY=1", "RELOADING=1", "READY=1"]
        served.stop()
        await within(task)

    asyncio.run(main())


def test_a_graph_is_whole_when_all_has_loaded_in_a_session_that_runs(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
):
    found: list[bool] = []
    gone = False

    async def loaded(session: object) -> bool:
        if gone:
            await served.server.desk.close_all()
        return found.pop(0)

    async def look() -> list[str]:
        served.sessions.broken["steady"] = "its weights are damaged"
        await served.server.desk.start("steady")
        await until(lambda: not served._tasks)  # pyright: ignore[reportPrivateUsage]
        return list(served.sessions.broken)

    async def main() -> None:
        nonlocal gone
        found[:] = [False, True]
        assert await look() == []
        assert not found, "it looks on while it loads"
        gone = True
        for found[:] in ([True], [False]):
            served.server.desk.headless.stopping = False
            assert await look() == ["steady"]
        served.pools.close()

    monkeypatch.setattr("penstock.transport.daemon.loaded", loaded)
    served = Daemon({"steady": compile_test(STEADY)}, notifier=manager.notifier())
    asyncio.run(main())


def test_a_graph_is_tried_once_at_a_time(manager: Manager, monkeypatch: pytest.MonkeyPatch):
    running: list[int] = [0, 0]

    async def warm(*_: object) -> str:
        running[0] += 1
        running[1] = max(running)
        await asyncio.sleep(0)
        running[0] -= 1
        return "no"

    async def main() -> None:
        served = daemon(manager)
        await asyncio.gather(*(served._try("loopback") for _ in range(3)))  # pyright: ignore[reportPrivateUsage]
        served.pools.close()

    monkeypatch.setattr("penstock.transport.daemon.warm", warm)
    asyncio.run(main())
    assert running == [0, 1]
