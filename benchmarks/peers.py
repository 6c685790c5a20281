"""The cost of a hop in pipecat and LiveKit's channels beside ours, in one process, in their own environment.

    make bench-peers     installs them into .venv-peers and runs this

CPU time a 20 ms frame of audio and hop: source, hops - 1 stages that pass it on, sink. pipecat's frames go as
`OutputAudioRawFrame`, as in a pipeline that speaks; LiveKit's channels are those its agents are built from.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Coroutine
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / ".typing"))  # the folders by their import name

from engine_hops import PCM, Fused, FusedSink, Queued, Sink, ours, queues
from report import line

IN_FLIGHT = 8
AUDIO = PCM.tobytes()


async def pipecat(hops: int, frames: int) -> float:
    from pipecat.frames.frames import EndFrame, Frame, OutputAudioRawFrame
    from pipecat.pipeline.pipeline import Pipeline
    from pipecat.pipeline.runner import PipelineRunner
    from pipecat.pipeline.task import PipelineParams, PipelineTask
    from pipecat.processors.frame_processor import FrameDirection, FrameProcessor

    class Pass(FrameProcessor):
        async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
            await super().process_frame(frame, direction)
            await self.push_frame(frame, direction)

    seen = 0
    began = ended = 0.0

    class Last(FrameProcessor):
        async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
            nonlocal seen, ended
            await super().process_frame(frame, direction)
            if isinstance(frame, OutputAudioRawFrame):
                seen += 1
                ended = time.process_time()
            await self.push_frame(frame, direction)

    task = PipelineTask(
        Pipeline([*(Pass() for _ in range(hops - 1)), Last()]),
        params=PipelineParams(enable_heartbeats=False),
        idle_timeout_secs=None,
        enable_turn_tracking=False,
    )

    async def feed() -> None:
        nonlocal began
        await asyncio.sleep(0.2)  # StartFrame has gone through
        began = time.process_time()
        for i in range(frames):
            await task.queue_frame(OutputAudioRawFrame(audio=AUDIO, sample_rate=16_000, num_channels=1))
            if i % IN_FLIGHT == IN_FLIGHT - 1:  # it has no bound: what it queues it queues
                await asyncio.sleep(0)
        await task.queue_frame(EndFrame())

    await asyncio.gather(PipelineRunner(handle_sigint=False).run(task), feed())
    assert seen == frames, f"pipecat delivered {seen} of {frames}"
    return ended - began


async def livekit(hops: int, frames: int) -> float:
    from livekit.agents.utils.aio import Chan

    chans: list[Any] = [Chan(16) for _ in range(hops)]

    async def work(a: Any, b: Any) -> None:
        async for frame in a:
            await b.send(frame)
        b.close()

    async def feed() -> None:
        for i in range(frames):
            await chans[0].send((time.monotonic_ns(), PCM))
            if i % IN_FLIGHT == IN_FLIGHT - 1:
                await asyncio.sleep(0)
        chans[0].close()

    seen = 0
    async with asyncio.TaskGroup() as group:
        for a, b in pairwise(chans):
            group.create_task(work(a, b))
        start = time.process_time()
        group.create_task(feed())
        async for _ in chans[-1]:
            seen += 1
        spent = time.process_time() - start
    assert seen == frames, f"livekit delivered {seen} of {frames}"
    return spent


def main() -> None:
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")  # its deprecations
    try:
        from loguru import logger

        logger.remove()
    except ImportError:
        pass
    frames, rounds = (5_000, 7) if "--full" in sys.argv else (500, 3)
    result: dict[str, float | None] = {}
    for hops in (1, 4, 16):
        engines: dict[str, Callable[[], Coroutine[Any, Any, float]]] = {
            "fused": partial(ours, hops, frames, IN_FLIGHT, Fused, FusedSink),
            "queued": partial(ours, hops, frames, IN_FLIGHT, Queued, Sink),
            "asyncio_queue": partial(queues, hops, frames, IN_FLIGHT),
            "pipecat": partial(pipecat, hops, frames),
            "livekit": partial(livekit, hops, frames),
        }
        spent: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(rounds):
            for name, engine in engines.items():
                gc.collect()
                spent[name].append(asyncio.run(engine()) / frames / hops * 1e6)
        medians = {name: round(statistics.median(values), 3) for name, values in spent.items()}
        over = {
            name: round(
                statistics.median(p / o for p, o in zip(spent["pipecat"], spent[name], strict=True)), 1
            )
            for name in ("fused", "queued")
        }
        line(
            bench="hop_peers",
            hops=hops,
            frames=frames,
            in_flight=IN_FLIGHT,
            **{f"{name}_us": value for name, value in medians.items()},
            pipecat_over_fused=over["fused"],
            pipecat_over_queued=over["queued"],
        )
        result |= {
            f"us_per_hop_{hops}_pipecat": medians["pipecat"],
            f"us_per_hop_{hops}_livekit": medians["livekit"],
            f"over_pipecat_{hops}": over["fused"],
            f"over_pipecat_{hops}_queued": over["queued"],
        }
    line(area="peers", **result)


if __name__ == "__main__":
    main()
