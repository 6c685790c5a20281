"""Engine figures: cost of a hop beside asyncio.Queue and plain calls, recovery, barge-in, bounded memory.

Hops are paired: every round runs each engine once, in turn, in this process; the medians are printed.
Recovery, barge-in and memory are simulated on the virtual clock: exact, and the same on every machine.

    make bench AREA=engine [ARGS=--full]
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from engine_hops import PCM, hop_costs, node
from penstock.pipeline.clock import MS, SECOND, LoopClock
from penstock.pipeline.edge import Bound
from penstock.pipeline.frame import AudioFrame, Frame, TokenFrame, VideoFrame
from penstock.pipeline.graph import CancelRule, EdgePlan, Plan
from penstock.pipeline.session import Session
from penstock.pipeline.stage import Flush, In, Out, Outputs, Ports, SetParams, Stage
from penstock.pipeline.virtual_loop import run_virtual
from report import line, note, percentile, rss_mb

ROOT = Path(__file__).resolve().parent.parent
PEERS_S = 150


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
