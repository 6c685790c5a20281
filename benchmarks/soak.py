"""A server that runs for long: does its memory grow, does a session fail, does a thread stay?

python benchmarks/soak.py --minutes 120. One session of each graph stays the whole time, others come and go, every other
one without saying goodbye. Growth is the slope of a straight line through the resident memory after the warm-up
(the first fifth). `make soak` runs ten minutes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / ".typing")]

import aiohttp  # noqa: E402
import numpy as np  # noqa: E402
from client import Client, Colour, Tone  # noqa: E402
from report import line, note  # noqa: E402

HEADLESS = """
penstock: 1
graph: camera
nodes:
  cam:   {use: synthetic.in, video: 160x120@5}
  eye:   {use: vlm.stream, in: {video: cam.video}}
  out:   {use: file.out, in: {text: eye.answer}, path: %s/answers.jsonl}
"""


def memory(pid: int) -> tuple[float, int, int]:
    """Resident MB, threads and open files of a process."""
    fields = dict(
        row.split(":", 1) for row in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in row
    )
    return (
        int(fields["VmRSS"].split()[0]) / 1e3,
        int(fields["Threads"]),
        len(os.listdir(f"/proc/{pid}/fd")),
    )


def start(folder: str, graphs: list[str]) -> tuple[subprocess.Popen[bytes], int, socket.socket]:
    """The server as its own process, its port and the far end of its notify socket. Raises: RuntimeError when it does not get ready."""
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(f"{folder}/notify")
    manager.settimeout(5)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    env = os.environ | {"NOTIFY_SOCKET": f"{folder}/notify", "PYTHONPATH": str(ROOT / ".typing")}
    command = [sys.executable, "-m", "penstock.pipeline", "--log-level", "warning", "serve"]
    log = open(f"{folder}/log", "wb")  # noqa: SIM115 - the process keeps it
    process = subprocess.Popen([*command, "--port", str(port), *graphs], env=env, stderr=log)
    log.close()
    try:
        until = time.monotonic() + 120
        while time.monotonic() < until:
            with contextlib.suppress(TimeoutError):
                if b"READY=1" in manager.recv(4096):
                    return process, port, manager
            if process.poll() is not None:
                break
    except BaseException:
        process.kill()
        raise
    process.kill()
    raise RuntimeError(f"the server was not ready: {Path(folder, 'log').read_text(errors='replace')[-2000:]}")


class Slow(Colour):
    """Five pictures a second: the machine is left to others meanwhile."""

    async def recv(self) -> Any:
        await asyncio.sleep(1 / 6)
        return await super().recv()


async def joined(url: str, graph: str) -> Client:
    client = Client()
    client.pc.addTrack(Tone())
    if graph == "loopback":
        client.pc.addTrack(Slow(size=(160, 120)))
        client.pc.addTransceiver("video")
    await client.connect(url, graph)
    client.say({"v": 1, "type": "stats", "every_ms": 1000})
    return client


async def gone(client: Client, *, politely: bool) -> None:
    if not politely:  # the far end must notice by itself
        transport = client.pc.sctp.transport.transport if client.pc.sctp else None
        if transport is not None:
            await transport.stop()
    await client.pc.close()


async def come_and_go(url: str, until: float, counts: dict[str, int]) -> None:
    graphs = ("loopback", "voice")
    while time.monotonic() < until:
        number = counts["connects"]
        counts["connects"] += 1
        try:
            client = await joined(url, graphs[number % 2])
            if number % 2:
                client.say({"v": 1, "type": "chat", "text": "what time is it"})
            await asyncio.sleep(8)
            await gone(client, politely=bool(number // 2 % 2))
        except (OSError, TimeoutError, AssertionError, aiohttp.ClientError) as e:
            counts["connect_failures"] += 1
            note(f"connect {number}: {e!r}")
        await asyncio.sleep(12)


async def stay(url: str, graph: str, until: float, counts: dict[str, int]) -> None:
    """One session for the whole time; it must neither end nor fall silent."""
    client = await joined(url, graph)
    heard = 0
    while time.monotonic() < until:
        await asyncio.sleep(10)
        figures = [m for m in client.messages if m["type"] == "stats"]
        counts["silent_10s"] += not figures
        heard += len(figures)
        client.messages.clear()  # ours, not the server's, must not grow
        if graph == "voice":
            client.say({"v": 1, "type": "chat", "text": "what do you see"})
        if client.pc.connectionState != "connected":
            counts["ended_early"] += 1
            note(f"the session of {graph} is {client.pc.connectionState}; joining again")
            client = await joined(url, graph)
    await client.pc.close()


async def requests(url: str, until: float, counts: dict[str, int]) -> None:
    async with aiohttp.ClientSession(url) as http:
        while time.monotonic() < until:
            for path in ("/metrics", "/sessions", "/graphs", "/health/ready", "/nothing"):
                async with http.get(path) as response:
                    await response.read()
                    counts["requests"] += 1
                    counts["server_errors"] += response.status >= 500
            await asyncio.sleep(5)


async def soak(url: str, pid: int, minutes: float, manager: socket.socket) -> dict[str, Any]:
    counts = dict.fromkeys(
        ("connects", "connect_failures", "silent_10s", "ended_early", "requests", "server_errors"), 0
    )
    manager.setblocking(False)
    begun = time.monotonic()
    until = begun + minutes * 60
    async with (
        aiohttp.ClientSession(url) as http,
        http.post("/sessions", json={"graph": "camera"}) as response,
    ):
        response.raise_for_status()
    samples: list[tuple[float, float]] = []
    warm = minutes * 60 / 5
    threads = files = 0
    async with asyncio.TaskGroup() as group:
        for graph in ("loopback", "voice"):
            group.create_task(stay(url, graph, until, counts))
        group.create_task(come_and_go(url, until, counts))
        group.create_task(requests(url, until, counts))
        at_minute = 0
        while time.monotonic() < until:
            await asyncio.sleep(5)
            with contextlib.suppress(BlockingIOError):  # the service manager reads what it is told
                while manager.recv(4096):
                    pass
            at = time.monotonic() - begun
            rss, threads, files = memory(pid)
            if at > warm:
                samples.append((at / 3600, rss))
            if at // 60 > at_minute:
                at_minute = int(at // 60)
                line(
                    what="minute",
                    minute=at_minute,
                    rss_mb=round(rss, 1),
                    threads=threads,
                    files=files,
                    **counts,
                )
    hours, resident = np.array(samples).T
    slope = float(np.polyfit(hours, resident, 1)[0])
    return {"growth_mb_per_h": round(slope, 2), "rss_mb": round(float(resident[-1]), 1), **counts}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--limit", type=float, help="MB an hour; more growth is exit status 1")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server ends with it
    with tempfile.TemporaryDirectory() as folder:
        own = Path(folder) / "camera.yaml"
        own.write_text(HEADLESS % folder)
        process, port, manager = start(folder, ["loopback", "voice", str(own)])
        try:
            summary = asyncio.run(soak(f"http://127.0.0.1:{port}", process.pid, options.minutes, manager))
            _, threads, files = memory(process.pid)
            process.send_signal(signal.SIGTERM)
            begun = time.monotonic()
            status = process.wait(30)
            summary |= {"exit_status": status, "drain_s": round(time.monotonic() - begun, 1)}
            warnings = Path(f"{folder}/log").read_text(errors="replace").splitlines()
        finally:
            process.kill()
            manager.close()
    for text in warnings[-5:]:
        note(text)
    line(
        area="soak",
        minutes=options.minutes,
        **summary,
        threads=threads,
        files=files,
        log_lines=len(warnings),
        load=round(os.getloadavg()[0], 1),
    )
    failed = (summary["connect_failures"], summary["ended_early"], summary["server_errors"], status)
    if any(failed) or (options.limit is not None and summary["growth_mb_per_h"] > options.limit):
        sys.exit(1)


if __name__ == "__main__":
    main()
