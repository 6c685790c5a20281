"""What a hop costs: fused, queued, over asyncio.Queue and as plain calls, paired in one process."""

from __future__ import annotations

import asyncio
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import numpy as np
from penstock.pipeline.clock import SECOND, MonotonicClock
from penstock.pipeline.edge import Bound
from penstock.pipeline.frame import AudioFrame, Frame
from penstock.pipeline.graph import EdgePlan, NodePlan, Plan
from penstock.pipeline.session import Session
from penstock.pipeline.stage import In, NoFields, Out, Outputs, Ports, Stage
from report import line

PCM = np.zeros((320, 1), np.int16)  # 20 ms at 16 kHz
BURST = (8, 1)  # frames in flight: as a busy stream has them, and one at a time as an idle one


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
