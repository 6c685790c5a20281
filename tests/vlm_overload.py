"""A camera assistant on a device that is slowed down for a while: `vlm.stream` in a session, on virtual time.

What passes cost follows what is computed, token by token, so that fewer tokens of a picture are a faster picture.
Used by tests and by `make bench AREA=vlm`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from penstock.models.vlm_session import Say, Take
from penstock.pipeline import registry
from penstock.pipeline.clock import MS, NEVER, SECOND, Clock, LoopClock
from penstock.pipeline.compiler import compile_text
from penstock.pipeline.frame import EventFrame, TokenFrame, VideoFrame
from penstock.pipeline.pool_plan import PoolPlan
from penstock.pipeline.pool_seams import Batch, Turns
from penstock.pipeline.pool_threads import SimulatedDriver
from penstock.pipeline.pools import DevicePool, Pools
from penstock.pipeline.session import Session
from penstock.pipeline.stage import In, Out, Outputs, Ports, Stage
from penstock.pipeline.virtual_loop import run_virtual

T = TypeVar("T")
FPS = 10
PICTURE = 64  # tokens of a whole one


@dataclass(frozen=True, slots=True)
class Taken:
    """A picture that is in the cache. Times in s of the session."""

    at: float
    lag: float  # since it was captured
    tokens: int
    merged: bool


@dataclass(slots=True)
class Slow:
    """The device takes `times` as long in [start, end) s."""

    start: float
    end: float
    times: float


@dataclass(slots=True)
class Run:
    """What happened. rungs: (s, level)."""

    taken: list[Taken] = field(default_factory=list[Taken])
    rungs: list[tuple[float, int]] = field(default_factory=list[tuple[float, int]])
    answers: list[float] = field(default_factory=list[float])  # s from a question to the end of its answer
    waiting: int = 0  # rows, at most
    counts: Any = None

    def between(self, start: float, end: float) -> list[Taken]:
        return [t for t in self.taken if start <= t.at < end]


class TokenDriver(SimulatedDriver):
    """A pass takes `base` and `each` for every token in it, times how slow the device is now."""

    def __init__(self, clock: Clock, slow: Slow, run: Run, base: int = 4 * MS, each: int = MS // 2) -> None:
        super().__init__(clock, lambda _model, _rows: MS)
        self._now = clock.now
        self._slow, self._run, self._base, self._each = slow, run, base, each

    async def measure(self, model: str, forward: Callable[[], object], rows: int) -> int:
        forward()
        return self._base + self._each * PICTURE

    async def _turns(self, pool: Turns) -> None:
        try:
            while (batch := pool.take()) is not None:
                self._run.waiting = max(self._run.waiting, pool.waiting)
                times = self._slow.times if self._slow.start <= self._now() / SECOND < self._slow.end else 1
                tokens = sum(_tokens(row.payload) for row in batch.rows)
                await self._clock.sleep(round(times * (self._base + self._each * tokens)))
                pool.execute(batch)
                self._note(batch)
        finally:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.discard(task)

    def _note(self, batch: Batch) -> None:
        for row in batch.rows:
            job = row.payload
            if not isinstance(job, Take) or job.image is None or job.x is None:
                continue
            now, tokens = self._now(), job.x.shape[1]
            if job.done == tokens:
                lag = (now - job.at) / SECOND
                self._run.taken.append(Taken(now / SECOND, lag, tokens, job.merged is not None))


def _tokens(job: Take | Say) -> int:
    """Of the next pass."""
    if isinstance(job, Say):
        return len(job.ids)
    if job.ids is not None:
        return len(job.ids)
    return round(PICTURE * job.share) if job.x is None else job.x.shape[1] - job.done


class InlinePool(DevicePool):
    """Calls happen at once: there are no threads in a simulation."""

    async def call(self, fn: Callable[..., T], *args: object, deadline: int = NEVER) -> T:
        return fn(*args)


class Feed(Stage):
    """A camera at 10 fps that knows when to end, and a question every `ask` s."""

    ports = Ports(outputs={"video": Out(VideoFrame, "live"), "text": Out(TokenFrame, "token")})
    seconds, ask = 30.0, 3.0

    async def run(self, out: Outputs) -> None:
        clock, rng = self.ctx.clock, np.random.default_rng(0)
        asked = 0.0
        for i in range(int(type(self).seconds * FPS)):
            now = clock.now()
            image = rng.integers(0, 255, (112, 112, 3)).astype(np.uint8)
            await out.send("video", VideoFrame(pts=now, deadline=now + SECOND, image=image))
            if i / FPS - asked >= type(self).ask:
                asked = i / FPS
                await out.send("text", TokenFrame(pts=now, text="what do you see"))
            await clock.sleep(SECOND // FPS)


class Hear(Stage):
    ports = Ports(inputs={"text": In((TokenFrame, EventFrame), many=True)})

    async def setup(self) -> None:
        self.took: list[float] = []

    async def process(self, port: str, frame: Any, out: Outputs) -> None:
        if isinstance(frame, TokenFrame) and frame.end:
            self.took.append((self.ctx.clock.now() - frame.pts) / SECOND)


GRAPH = """
penstock: 1
graph: overload
nodes:
  cam:   {{use: test.feed}}
  watch: {{use: vlm.stream, in: {{video: cam.video, ask: cam.text}}, scope: reply, model: {folder!r}, fps: {fps},
          picture_tokens: {tokens}, chunk: 128, answer_tokens: 6, late: {late}, memory: {{tokens: 640, text: 64}}{ladder}}}
  out:   {{use: test.hear, in: {{text: watch.answer}}}}
"""


def overload(folder: str, late: str, slow: Slow, seconds: float, *, ladder: bool = True) -> Run:
    """10 pictures a second for that long, and a question every 3 s. ladder: the stage's own; False: none."""
    run, Feed.seconds = Run(), seconds
    stages: dict[str, type[Stage]] = {"test.feed": Feed, "test.hear": Hear}

    async def main() -> None:
        clock = LoopClock(asyncio.get_running_loop())
        pools = Pools(clock)
        pools.made["main"] = InlinePool(
            "main", PoolPlan(device="cpu"), clock, lambda _threads, _n: TokenDriver(clock, slow, run)
        )
        session = Session(plan, "s", clock, pools=pools)

        def on_event(event: Any) -> None:
            if event.name in ("degraded", "recovered"):
                run.rungs.append((clock.now() / SECOND, event.fields["level"]))

        session.listen(on_event)
        await session.start()
        stage: Any = session.runners["watch"].stage
        run.counts = stage._who.counts
        await session.wait()
        heard: Any = session.runners["out"].stage
        run.answers = heard.took
        assert not session.failure, session.failure
        assert session.runners["watch"].restarts == 0

    registry.EXTRA.update(stages)
    try:
        text = GRAPH.format(
            folder=folder, late=late, fps=FPS, tokens=PICTURE, ladder="" if ladder else ", degrade: []"
        )
        plan = compile_text(text, "overload.yaml")
        run_virtual(main())
    finally:
        for use in stages:
            registry.EXTRA.pop(use, None)
    return run
