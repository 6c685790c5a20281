"""An echo server in a process of its own, for `transport_echo.py` and `transport_uplink.py`.

    python benchmarks/transport_server.py {aiortc,penstock}

aiortc: as aiortc has it, each track given straight back. penstock: the loopback graph in a session, as `penstock serve` runs it.
One JSON object a line on stdin: {"offer": sdp} is answered with {"answer": sdp}, {"cpu": true} with {"cpu_s": …} since the
start, {"close": true} with {"stats": …}, then it ends.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription
from aiortc.contrib.media import MediaBlackhole
from penstock.pipeline.clock import MonotonicClock

LOOPBACK = Path(__file__).parent.parent / "deploy/graphs/loopback.yaml"


def use_loopback() -> None:
    """aioice never offers 127.0.0.1; where the machine has no other address, both variants need it."""
    import aioice.ice

    found = aioice.ice.get_host_addresses(use_ipv4=True, use_ipv6=False)
    aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: found or ["127.0.0.1"]


async def serve(variant: str, offer: str) -> tuple[str, Any, Any]:
    """Answer the offer with an echo, or only take what is offered where nothing is asked for. Returns the answer, what to
    close, and what tells the figures."""
    if variant == "aiortc":
        pc = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        sink = MediaBlackhole()
        echo = "a=sendonly" not in offer
        pc.on("track", lambda track: (pc.addTrack(track) if echo else sink.addTrack(track)) and None)
        await pc.setRemoteDescription(RTCSessionDescription(offer, "offer"))
        await pc.setLocalDescription(await pc.createAnswer())
        await sink.start()
        return pc.localDescription.sdp, pc.close, dict
    # imported only here: it puts Penstock's classes in aiortc's places
    live_session = importlib.import_module("penstock.transport.live_session")
    compiler = importlib.import_module("penstock.pipeline.compiler")
    session = importlib.import_module("penstock.pipeline.session")
    live = live_session.LiveSession(compiler.load(LOOPBACK), "s-bench", MonotonicClock(), session.Session)
    answer = await live.open(offer)
    task = asyncio.create_task(live.run())

    async def close() -> None:
        await live.close("done")
        await task

    return answer, close, lambda: live.stats()["transport"]


def cpu_s() -> float:
    spent = resource.getrusage(resource.RUSAGE_SELF)
    return spent.ru_utime + spent.ru_stime


async def main(variant: str) -> None:
    use_loopback()
    loop = asyncio.get_running_loop()
    close: Any = None
    stats: Any = dict
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        asked = json.loads(line)
        if "offer" in asked:
            answer, close, stats = await serve(variant, asked["offer"])
            reply: dict[str, Any] = {"answer": answer}
        elif "cpu" in asked:
            reply = {"cpu_s": cpu_s()}
        else:
            reply = {"stats": stats()}
            print(json.dumps(reply), flush=True)
            break
        print(json.dumps(reply), flush=True)
    if close is not None:
        await close()


class Server:
    """The other end of such a process."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, **what: Any) -> dict[str, Any]:
        """Raises: RuntimeError when it has ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps(what), file=self._process.stdin, flush=True)
        if not (line := self._process.stdout.readline()):
            raise RuntimeError("the server has ended")
        return json.loads(line)


@contextmanager
def started(variant: str, script: str = __file__) -> Iterator[Server]:
    with subprocess.Popen(
        [sys.executable, script, variant], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Server(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
