"""Sessions that come, are lost, come back and go: how fast, and what is left over.

    make bench AREA=session                 # about two minutes; ARGS="--cycles 20" for a look

cycles: connect, see a picture, leave; every fourth is lost first and comes back. Counted after a warm-up, in one process that
is client and server. resume: from the new offer to the first message of the session's data channel. noticed: from the
last datagram of a client to its session being parked. exit: a process whose loop ends with a live session that nobody closed.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / ".typing")]

from client import Client, Colour, Tone, serving, until, within  # noqa: E402
from penstock.transport import memory  # noqa: E402
from report import line, note, percentile, rss_mb  # noqa: E402
from test_peer import go_silent  # noqa: E402
from test_resume import come_back  # noqa: E402


def threads() -> int:
    """The loop's own executor keeps its few."""
    return sum(not t.name.startswith("asyncio_") for t in threading.enumerate())


async def cycle(url: str, back: bool) -> tuple[float, float]:
    """One session with media. Returns the ms to connect, and to come back (0 when it was not lost)."""
    client, resumed = Client(), 0.0
    client.pc.addTrack(Colour(size=(160, 120)))
    client.pc.addTrack(Tone())
    start = time.perf_counter()
    await client.connect(url)
    connected = (time.perf_counter() - start) * 1000
    await within(client.tracks["video"].recv())
    if back:
        start = time.perf_counter()
        again, _ = await come_back(url, client)
        await again.heard("hello")
        resumed = (time.perf_counter() - start) * 1000
        await again.pc.close()
    await client.pc.close()
    return connected, resumed


async def cycles(count: int, warm_up: int) -> dict[str, Any]:
    connects: list[float] = []
    resumes: list[float] = []
    async with serving() as server:
        idle = len(asyncio.all_tasks())  # the server's own

        async def settled() -> tuple[int, int, int, float]:
            await until(lambda: not server.sessions.live)
            await until(lambda: len(asyncio.all_tasks()) == idle)
            gc.collect()
            memory.give_back()
            return len(asyncio.all_tasks()), threads(), len(os.listdir("/proc/self/fd")), rss_mb()

        for _ in range(warm_up):  # codecs, executor threads, allocator
            await cycle(server.url, True)
        before = await settled()
        for number in range(count):
            connected, resumed = await cycle(server.url, number % 4 == 3)
            connects.append(connected)
            if resumed:
                resumes.append(resumed)
            if number % 50 == 49:
                note(f"{number + 1} of {count} cycles")
        after = await settled()
    return {
        "cycles": count,
        "connect_ms_p50": round(percentile(connects, 0.5)),
        "connect_ms_p99": round(percentile(connects, 0.99)),
        "resumes": len(resumes),
        "resume_ms_p50": round(percentile(resumes, 0.5)) if resumes else None,
        "resume_ms_p99": round(percentile(resumes, 0.99)) if resumes else None,
        "left_tasks": after[0] - before[0],
        "left_threads": after[1] - before[1],
        "left_files": after[2] - before[2],
        "growth_mb": round(after[3] - before[3], 2),
    }


async def noticed(count: int) -> dict[str, Any]:
    times: list[float] = []
    async with serving() as server:
        for _ in range(count):
            client = Client()
            client.pc.addTrack(Tone())
            await client.connect(server.url)
            await within(client.tracks["audio"].recv())
            live = server.sessions.live[client.session]
            start = time.perf_counter()
            go_silent(client)
            await until(lambda live=live: live.state == "parked")
            times.append(time.perf_counter() - start)
            await live.close("measured")
            await client.pc.close()
    return {"noticed_s_p50": round(percentile(times, 0.5), 2), "noticed_s_max": round(max(times), 2)}


LEAVES = "import asyncio, test_peer; asyncio.run(test_peer.walk_away()); print('left')"


def leave() -> dict[str, Any]:
    """How long a process takes, begin to end, that opens a session and closes nothing."""
    path = os.pathsep.join([str(ROOT / "tests"), str(ROOT / ".typing")])
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", LEAVES],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    start = time.perf_counter()
    try:
        said, _ = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.kill()
        said, _ = process.communicate()
    took = round(time.perf_counter() - start, 2)
    done = said.strip() == b"left" and process.returncode == 0
    # imports and the session's own beginning are in it
    return {"exit_without_close_s": took if done else None, "exit_status": process.returncode}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    options.add_argument("--cycles", type=int, default=200)
    options.add_argument("--warm-up", type=int, default=40)
    args = options.parse_args()
    summary: dict[str, Any] = {"area": "session"}
    for name, measured in (
        ("exit", leave()),
        ("noticed", asyncio.run(noticed(5))),
        ("cycles", asyncio.run(cycles(args.cycles, args.warm_up))),
    ):
        line(name=name, **measured)
        summary |= measured
    line(name="summary", **summary)


if __name__ == "__main__":
    main()
