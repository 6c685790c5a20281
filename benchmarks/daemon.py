"""The daemon as its operator sees it: cold start to READY, drain, reload gap, events over broker restarts.

make bench AREA=daemon. Graphs: the embedded ones that this installation can start.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / ".typing")]

from graphs import compile_test, sink_of  # noqa: E402
from penstock.pipeline.clock import MS, SECOND, LoopClock  # noqa: E402
from penstock.pipeline.reload import apply, diff  # noqa: E402
from penstock.pipeline.session import Session  # noqa: E402
from report import line, note  # noqa: E402

CHAIN = """
penstock: 1
graph: chain
nodes:
  mic:   {use: test.audio, frames: 250}
  first: {use: test.work, in: mic.audio, takes_ms: %s}
  next:  {use: test.work, in: first.audio}
  out:   {use: test.sink, in: next.audio}
"""


def cpu_s(pid: int) -> float:
    """CPU time of a running process: what a start costs, however busy the machine is."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def start_and_stop(graphs: list[str]) -> tuple[float, float, bool, float]:
    """Seconds from exec to READY=1, from SIGTERM to exit without sessions, whether READY came, and the CPU
    seconds up to it."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/notify"
        manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        manager.bind(path)
        manager.settimeout(120)
        env = os.environ | {"NOTIFY_SOCKET": path, "PYTHONPATH": str(ROOT / ".typing")}
        begun = time.monotonic()
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "penstock.pipeline",
                "--log-level",
                "error",
                "serve",
                "--port",
                "0",
                *graphs,
            ],
            env=env,
            stderr=subprocess.DEVNULL,
        )
        try:
            ready = False
            while not ready and process.poll() is None:
                ready = b"READY=1" in manager.recv(4096)
            ready_s, used = time.monotonic() - begun, cpu_s(process.pid)
            process.send_signal(signal.SIGTERM)
            begun = time.monotonic()
            process.wait(30)
            return ready_s, time.monotonic() - begun, ready, used
        finally:
            process.kill()
            process.wait()
            manager.close()


async def drain(sessions: int) -> dict[str, object]:
    """SIGTERM with live sessions that leave when told: seconds to exit, and chat lines that never came back."""
    import soak
    from client import Client

    async def chat(client: Client) -> tuple[int, int]:
        sent = 0
        while not any(m["type"] == "event" and m["name"] == "draining" for m in client.messages):
            client.say({"v": 1, "type": "chat", "text": str(sent)})
            sent += 1
            await asyncio.sleep(0.1)
        for _ in range(5):  # the session is still served after it was told
            client.say({"v": 1, "type": "chat", "text": str(sent)})
            sent += 1
        await client.heard("text", lambda m: m["text"] == str(sent - 1))
        got = {m["text"] for m in client.messages if m["type"] == "text"}
        await client.pc.close()
        return sent, len(got)

    with tempfile.TemporaryDirectory() as folder:
        process, port, manager = soak.start(folder, ["loopback"])
        try:
            clients = [await soak.joined(f"http://127.0.0.1:{port}", "loopback") for _ in range(sessions)]
            chats = [asyncio.create_task(chat(client)) for client in clients]
            await asyncio.sleep(2)
            process.send_signal(signal.SIGTERM)
            begun = time.monotonic()
            counts = await asyncio.gather(*chats)
            status = await asyncio.to_thread(process.wait, 30)
            return {
                "sessions": sessions,
                "drain_s": round(time.monotonic() - begun, 2),
                "lines_sent": sum(c[0] for c in counts),
                "lines_lost": sum(c[0] - c[1] for c in counts),
                "exit_status": status,
            }
        finally:
            process.kill()
            manager.close()


async def longest_gap(*, reload: bool) -> float:
    """The longest time between two frames at the sink, ms; with `reload` one node of three is replaced."""
    session = Session(compile_test(CHAIN % 5), "s", LoopClock(asyncio.get_running_loop()))
    await session.start()
    await session.clock.sleep(2 * SECOND)
    if reload:
        new = compile_test(CHAIN % 1)
        apply(session, new, diff(session.plan, new))
    await session.wait()
    return max(b[0] - a[0] for a, b in pairwise(sink_of(session).got)) / MS


async def broker_restarts(times: int) -> dict[str, int]:
    """Messages published, and those that a persistent reader never got."""
    from broker import RealBroker
    from penstock.transport.mqtt import Message, MqttLink, parse_broker
    from test_mqtt import HastyClock

    with tempfile.TemporaryDirectory() as folder:
        broker = RealBroker(Path(folder))
        await broker.start()
        link = MqttLink(parse_broker(broker.url), HastyClock(), lambda verb, payload: None)
        link.start()
        sent, got = 0, set[int]()
        async with broker.client(identifier="reader", clean_session=False) as client:
            await client.subscribe("house/n", qos=1)
        for _ in range(times):
            for half in (broker.stop, broker.start):
                for _ in range(25):
                    link.publish(Message("house/n", str(sent).encode()))
                    sent += 1
                await half()
        while link.waiting:  # noqa: ASYNC110 - polled twice at most
            await asyncio.sleep(0.05)
        async with broker.client(identifier="reader", clean_session=False) as client:
            try:
                async with asyncio.timeout(20):
                    async for m in client.messages:
                        got.add(int(bytes(m.payload)))
                        if len(got) == sent:
                            break
            except TimeoutError:
                note("the reader did not get everything")
        await link.stop()
        await broker.stop()
        return {"restarts": times, "qos1_sent": sent, "qos1_lost": sent - len(got)}


def main() -> None:
    from penstock.pipeline import library
    from penstock.pipeline.stage import StageError

    usable: list[str] = []
    for name in library.embedded():
        try:
            library.load_all([name])
            usable.append(name)
        except StageError as e:
            note(f"{name} is left out: {e}")
    starts = [start_and_stop(usable) for _ in range(3)]
    for ready_s, stop_s, ready, used in starts:
        line(what="start", ready=ready, ready_s=round(ready_s, 2), cpu_s=used, stop_s=round(stop_s, 2))
    drained = asyncio.run(drain(4))
    line(what="drain", **drained)
    quiet = asyncio.run(longest_gap(reload=False))
    gap = asyncio.run(longest_gap(reload=True))
    line(what="reload", gap_ms=round(gap, 1), gap_without_ms=round(quiet, 1), frame_ms=20)
    try:
        mqtt = asyncio.run(broker_restarts(20))
    except BaseException as e:  # noqa: BLE001 - pytest's skip, where there is no Mosquitto
        note(f"mqtt is left out: {e}")
        mqtt = {}
    line(what="mqtt", **mqtt)
    line(
        area="daemon",
        ready_s=round(sorted(s[0] for s in starts)[1], 2),
        ready_cpu_s=sorted(s[3] for s in starts)[1],
        stop_idle_s=round(sorted(s[1] for s in starts)[1], 2),
        drain_4_s=drained["drain_s"],
        drain_4_lost=drained["lines_lost"],
        reload_gap_ms=round(gap, 1),
        gap_without_reload_ms=round(quiet, 1),
        graphs=usable,
        cpus=os.cpu_count(),
        load=round(os.getloadavg()[0], 1),
        **mqtt,
    )


if __name__ == "__main__":
    main()
