"""Engine figures: cost of a hop beside asyncio.Queue and plain calls, recovery, barge-in, bounded memory.

Hops are paired: every round runs each engine once, in turn, in this process; the medians are printed.
Recovery, barge-in and memory are simulated on the virtual clock: exact, and the same on every machine.

    make bench AREA=engine [ARGS=--full]
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from penstock.pipeline.clock import MS, SECOND, LoopClock, MonotonicClock
from penstock.pipeline.edge import Bound
from penstock.pipeline.frame import AudioFrame, Frame, TokenFrame, VideoFrame
from penstock.pipeline.graph import CancelRule, EdgePlan, NodePlan, Plan
from penstock.pipeline.session import Session
from penstock.pipeline.stage import Flush, In, NoFields, Out, Outputs, Ports, SetParams, Stage
from penstock.pipeline.virtual_loop import run_virtual
from report import line, note, percentile, rss_mb

ROOT = Path(__file__).resolve().parent.parent
PEERS_S = 150
PCM = np.zeros((320, 1), np.int16)  # 20 ms at 16 kHz
BURST = (8, 1)  # frames in flight: as a busy stream has them, and one at a time as an idle one


# ---------------------------------------------------------------- cost of a hop


class Source(Stage):
    ports = Ports(outputs={"audio": Out(AudioFrame)})
    frames, in_flight = 0, 1

    async def run(self, out: Outputs) -> None:
        now, in_flight = self.ctx.clock.now, self.in_flight
        for i in range(self.frames):
            pts = now()
            await out.send("audio", AudioFrame(pts=pts, deadline=pts + SECOND, pcm=PCM, rate_hz=16_000))
            if i % in_flight == in_flight - 1:
                await asyncio.sleep(0)


class Queued(Stage):
    ports = Ports(inputs={"audio": In(AudioFrame)}, outputs={"audio": Out(AudioFrame)})

    def process(self, port: str, frame: Frame, out: Outputs) -> None:
        out.post("audio", frame)


class Fused(Queued):
    inline = True


class Sink(Stage):
    ports = Ports(inputs={"audio": In(AudioFrame)})

    def process(self, port: str, frame: Frame, out: Outputs) -> None:
        pass


class FusedSink(Sink):
    inline = True


def node(name: str, cls: type[Stage], *inputs: EdgePlan, scope: str = "") -> NodePlan:
    return NodePlan(name, name, cls, NoFields(), NoFields(), inputs, scope=scope)


def chain(hops: int, middle: type[Stage], sink: type[Stage]) -> Plan:
    """`hops` edges: source, hops - 1 stages, sink."""
    bound = Bound("block", count=16)
    nodes = {"source": node("source", Source)}
    before = "source"
    for i in range(hops):
        name, cls = (f"n{i}", middle) if i < hops - 1 else ("sink", sink)
        nodes[name] = node(name, cls, EdgePlan(before, "audio", name, "audio", bound))
        before = name
    return Plan("chain", nodes)


async def ours(
    hops: int, frames: int, in_flight: int, middle: type[Stage], sink: type[Stage], record: bool = False
) -> float:
    Source.frames, Source.in_flight = frames, in_flight
    session = Session(chain(hops, middle, sink), "bench", MonotonicClock(), record=record)
    await session.start()
    start = time.process_time()
    await session.wait()
    spent = time.process_time() - start
    assert session.runners["sink"].processed == frames
    return spent


async def queues(hops: int, frames: int, in_flight: int) -> float:
    """asyncio.Queue(16) and a worker task a hop; the frame is made as ours is."""
    line_of: list[asyncio.Queue[AudioFrame | None]] = [asyncio.Queue(16) for _ in range(hops)]

    async def work(a: asyncio.Queue[AudioFrame | None], b: asyncio.Queue[AudioFrame | None]) -> None:
        while True:
            frame = await a.get()
            await b.put(frame)
            if frame is None:
                return

    async def feed() -> None:
        for i in range(frames):
            pts = time.monotonic_ns()
            await line_of[0].put(AudioFrame(pts=pts, deadline=pts + SECOND, pcm=PCM, rate_hz=16_000))
            if i % in_flight == in_flight - 1:
                await asyncio.sleep(0)
        await line_of[0].put(None)

    async with asyncio.TaskGroup() as group:
        for a, b in itertools.pairwise(line_of):
            group.create_task(work(a, b))
        start = time.process_time()
        group.create_task(feed())
        while await line_of[-1].get() is not None:
            pass
        return time.process_time() - start


async def calls(hops: int, frames: int) -> float:
    """The floor: a plain function call a hop, nothing bounded, nothing checked."""

    def through(frame: AudioFrame) -> AudioFrame:
        return frame

    start = time.process_time()
    for _ in range(frames):
        pts = time.monotonic_ns()
        frame = AudioFrame(pts=pts, deadline=pts + SECOND, pcm=PCM, rate_hz=16_000)
        for _ in range(hops):
            frame = through(frame)
    return time.process_time() - start


def hop_costs(frames: int, rounds: int) -> dict[str, float]:
    """Median us of CPU a frame and hop, as engine_hops (and engine_hops_one with one frame in flight), and
    the median of the paired ratios to asyncio.Queue, as ratio_engine_hops."""
    result: dict[str, float] = {}
    for in_flight, hops in itertools.product(BURST, (1, 4, 16)):
        engines: dict[str, Callable[[], Coroutine[Any, Any, float]]] = {
            "fused": partial(ours, hops, frames, in_flight, Fused, FusedSink),
            "queued": partial(ours, hops, frames, in_flight, Queued, Sink),
            "fused_recorded": partial(ours, hops, frames, in_flight, Fused, FusedSink, record=True),
            "queued_recorded": partial(ours, hops, frames, in_flight, Queued, Sink, record=True),
            "asyncio_queue": partial(queues, hops, frames, in_flight),
            "calls": partial(calls, hops, frames),
        }
        spent: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(rounds):
            for name, engine in engines.items():
                gc.collect()
                spent[name].append(asyncio.run(engine()) / frames / hops * 1e6)
        tail = f"{hops}" if in_flight > 1 else f"{hops}_one"
        figures: dict[str, float] = {}
        for name, values in spent.items():
            figures[f"{name}_us"] = result[f"{name}_{tail}"] = round(statistics.median(values), 3)
        for name in ("fused", "queued"):
            ratio = _paired(spent[name], spent["asyncio_queue"])
            figures[f"{name}_over_asyncio_queue"] = result[f"ratio_{name}_{tail}"] = ratio
            figures[f"{name}_recorder_ratio"] = _paired(spent[f"{name}_recorded"], spent[name])
        line(bench="hop", hops=hops, frames=frames, in_flight=in_flight, **figures)
    return result


def _paired(a: list[float], b: list[float]) -> float:
    """Median of the ratios, round by round."""
    return round(statistics.median(x / y for x, y in zip(a, b, strict=True)), 3)


# ---------------------------------------------------------------- a slow and a stalled sink


class Camera(Stage):
    ports = Ports(outputs={"video": Out(VideoFrame)})
    fps, seconds = 30, 6
    image = np.zeros((480, 640, 3), np.uint8)

    async def run(self, out: Outputs) -> None:
        for _ in range(self.fps * self.seconds):
            out.post("video", VideoFrame(pts=self.ctx.clock.now(), image=self.image.copy()))
            await self.ctx.clock.sleep(SECOND // self.fps)


class Screen(Stage):
    """Takes `takes` ns a frame, and once `stall` ns at second 2."""

    ports = Ports(inputs={"video": In(VideoFrame)})
    takes, stall = 0, 0

    async def setup(self) -> None:
        self.ages: list[tuple[int, int]] = []
        self.stalled = False

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        now = self.ctx.clock.now()
        self.ages.append((now, now - frame.pts))
        if self.stall and not self.stalled and now >= 2 * SECOND:
            self.stalled = True
            await self.ctx.clock.sleep(self.stall)
        if self.takes:
            await self.ctx.clock.sleep(self.takes)


def video_run(takes: int, stall: int) -> Session:
    Screen.takes, Screen.stall = takes, stall
    live = Bound("drop_oldest", span=40 * MS)
    nodes = {
        "camera": node("camera", Camera),
        "screen": node("screen", Screen, EdgePlan("camera", "video", "screen", "video", live)),
    }

    async def main() -> Session:
        session = Session(Plan("video", nodes), "bench", LoopClock(asyncio.get_running_loop()))
        await session.start()
        await session.wait()
        return session

    return run_virtual(main())


def stall_recovery_ms() -> float:
    """After a sink's 0.5 s stall: until a frame is as young again as before."""
    session = video_run(takes=5 * MS, stall=SECOND // 2)
    ages: list[tuple[int, int]] = session.runners["screen"].stage.ages  # pyright: ignore[reportAttributeAccessIssue]
    usual = percentile([age for at, age in ages if at < 2 * SECOND], 0.99)
    stall_end = 2 * SECOND + SECOND // 2
    return min(at - stall_end for at, age in ages if at >= stall_end and age <= usual + 5 * MS) / MS


def slow_sink() -> dict[str, float]:
    """30 fps of 640x480 into a sink that takes 10 a second, for 6 s."""
    gc.collect()
    before = rss_mb()
    session = video_run(takes=100 * MS, stall=0)
    grown = rss_mb() - before
    edge = session.runners["screen"].inputs[0]
    ages: list[tuple[int, int]] = session.runners["screen"].stage.ages  # pyright: ignore[reportAttributeAccessIssue]
    return {
        "slow_sink_mb": round(max(0.0, grown), 1),
        "slow_sink_peak_frames": edge.peak,
        "slow_sink_oldest_ms": max(age for _, age in ages) / MS,
        # what the camera put and what the screen got, counted by themselves, not by the edge
        "lost_accounted": (len(ages) + sum(edge.lost.values())) / (Camera.fps * Camera.seconds),
    }


# ---------------------------------------------------------------- barge-in under load


class Talk(Stage):
    """Endless tokens: a language model that never stops."""

    ports = Ports(inputs={"heard": In(TokenFrame)}, outputs={"say": Out(TokenFrame, "token")})

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        epoch = out.epoch
        for i in range(200):
            await out.send("say", TokenFrame(pts=self.ctx.clock.now(), text=str(i), epoch=epoch, end=False))
            if self.ctx.epoch != epoch:
                return


class Voice(Stage):
    ports = Ports(inputs={"text": In(TokenFrame)}, outputs={"audio": Out(AudioFrame, "generated")})

    async def setup(self) -> None:
        self.void = -1

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        epoch = out.epoch
        for i in range(20):
            if epoch <= self.void:
                return
            await self.ctx.clock.sleep(2 * MS)  # synthesis
            await out.send(
                "audio", AudioFrame(pts=frame.pts + i * 20 * MS, epoch=epoch, pcm=PCM, rate_hz=16_000)
            )

    async def control(self, message: Flush | SetParams) -> None:
        if isinstance(message, Flush):
            self.void = message.epoch - 1


class Ear(Stage):
    """A paced sink: plays 20 ms in 20 ms; remembers when it played what."""

    ports = Ports(inputs={"audio": In(AudioFrame)})

    async def setup(self) -> None:
        self.played: list[tuple[int, int]] = []

    async def process(self, port: str, frame: Frame, out: Outputs) -> None:
        self.played.append((self.ctx.clock.now(), frame.epoch))
        await self.ctx.clock.sleep(20 * MS)


class Turns(Stage):
    ports = Ports(outputs={"text": Out(TokenFrame, "token")})

    async def run(self, out: Outputs) -> None:
        for i in range(200):
            out.post("text", TokenFrame(pts=self.ctx.clock.now(), text=str(i)))
            await self.ctx.clock.sleep((1_100 + i * 37 % 97) * MS)  # every phase of a played frame
            self.ctx.emit("speech_start")
            await self.ctx.clock.sleep(40 * MS)


def barge_in_ms() -> list[float]:
    """From the interruption until the last frame of the voided reply has been played, 200 times."""
    token, speech = Bound("block", count=256), Bound("block", span=200 * MS)
    nodes = {
        "turns": node("turns", Turns),
        "talk": node("talk", Talk, EdgePlan("turns", "text", "talk", "heard", token), scope="reply"),
        "voice": node("voice", Voice, EdgePlan("talk", "say", "voice", "text", token), scope="reply"),
        "ear": node("ear", Ear, EdgePlan("voice", "audio", "ear", "audio", speech)),
    }
    plan = Plan("talk", nodes, cancel=(CancelRule("reply", "turns", "speech_start"),))
    interrupts: list[int] = []

    async def main() -> Session:
        session = Session(plan, "bench", LoopClock(asyncio.get_running_loop()))
        session.listen(lambda e: interrupts.append(e.pts) if e.name == "speech_start" else None)
        await session.start()
        await session.wait()
        return session

    session = run_virtual(main())
    played: list[tuple[int, int]] = session.runners["ear"].stage.played  # pyright: ignore[reportAttributeAccessIssue]
    times: list[float] = []
    for epoch, at in enumerate(interrupts):
        last = max((t for t, e in played if e == epoch), default=at - 20 * MS)
        times.append(max(0, last + 20 * MS - at) / MS)
        assert not any(t > at and e < epoch for t, e in played)
    return times


# ---------------------------------------------------------------- an hour of dialogue


def hour() -> dict[str, object]:
    """An hour of simulated talk with interruptions at random, twice with one seed; tests/dialogue.py."""
    sys.path.insert(0, str(ROOT / "tests"))
    from dialogue import HOUR, dialogue

    digests: list[str] = []
    spent = 0.0
    for _ in range(2):
        start = time.process_time()
        told = dialogue(HOUR, 1)
        spent = time.process_time() - start
        digests.append(told.digest)
    return {
        "hour_events": told.events,
        "hour_cpu_s": round(spent, 2),
        "hour_same_trace": digests[0] == digests[1],
        "hour_interruptions": told.interruptions,
        "hour_old_epoch_played": told.stale,
        "hour_unaccounted": told.unaccounted,
    }


# ---------------------------------------------------------------- peers


def peers() -> dict[str, object]:
    """Figures of pipecat and livekit beside ours, from their own environment; null where that is missing."""
    python = ROOT / ".venv-peers" / "bin" / "python"
    nothing: dict[str, object] = {
        "us_per_hop_16_pipecat": None,
        "us_per_hop_16_livekit": None,
        "over_pipecat_16": None,
    }
    if not python.exists():
        return nothing | {"peers_reason": "not installed here: make bench-peers installs and runs them"}
    note("peers: pipecat and livekit, paired with ours in their environment")
    try:
        done = subprocess.run(
            [python, ROOT / "benchmarks" / "peers.py"],
            capture_output=True,
            text=True,
            check=False,
            timeout=PEERS_S,
        )
    except subprocess.TimeoutExpired:
        return nothing | {"peers_reason": f"not done within {PEERS_S} s: see make bench-peers"}
    if done.returncode:
        return nothing | {"peers_reason": (done.stderr.strip().splitlines() or ["failed"])[-1][:300]}
    *rows, summary = [json.loads(row) for row in done.stdout.splitlines()]
    for row in rows:
        line(**row)
    return {key: value for key, value in summary.items() if key != "area"}


def main() -> None:
    full = "--full" in sys.argv
    note("hops: ours (fused, queued), asyncio.Queue, plain calls, paired in one process")
    hops = hop_costs(20_000 if full else 5_000, 9 if full else 5)
    sink = slow_sink()
    line(bench="slow_sink", fps_in=30, fps_out=10, seconds=6, picture="640x480 rgb24", **sink)
    barge = barge_in_ms()
    line(
        bench="barge_in",
        interruptions=len(barge),
        p50_ms=percentile(barge, 0.5),
        p99_ms=percentile(barge, 0.99),
    )
    line(
        area="engine",
        us_per_hop_1=hops["fused_1"],
        us_per_hop_4=hops["fused_4"],
        us_per_hop_16=hops["fused_16"],
        us_per_hop_16_recorded=hops["fused_recorded_16"],
        us_per_hop_16_queued=hops["queued_16"],
        us_per_hop_16_queued_recorded=hops["queued_recorded_16"],
        us_per_hop_16_asyncio_queue=hops["asyncio_queue_16"],
        us_per_hop_16_calls=hops["calls_16"],
        fused_over_asyncio_queue_worst=max(v for k, v in hops.items() if k.startswith("ratio_fused")),
        queued_over_asyncio_queue_worst=max(v for k, v in hops.items() if k.startswith("ratio_queued")),
        stall_recovery_ms=round(stall_recovery_ms(), 1),
        barge_in_ms_p99=percentile(barge, 0.99),
        slow_sink_mb=sink["slow_sink_mb"],
        lost_accounted=sink["lost_accounted"],
        **hour(),
        **peers(),
    )


if __name__ == "__main__":
    main()
