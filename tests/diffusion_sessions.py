"""Several sessions of `diffusion.stream` on one pool, without the rest of the engine: for tests and measurements."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from penstock.models import stream_models
from penstock.models.stream_model import Entry, Finished, Settings
from penstock.pipeline.clock import MS, NEVER, SECOND, Clock, LoopClock
from penstock.pipeline.degrade import parse_ladder
from penstock.pipeline.frame import Frame, VideoFrame
from penstock.pipeline.node_pool import NodePool
from penstock.pipeline.pool_plan import BatchPlan, PoolPlan
from penstock.pipeline.pool_threads import SimulatedDriver
from penstock.pipeline.pools import DevicePool
from penstock.pipeline.virtual_loop import run_virtual
from penstock.stages.diffusion import DiffusionStream
from penstock.stages.diffusion_params import DiffusionOptions, DiffusionParams

T = TypeVar("T")


class InlineCalls(NodePool):
    """Blocking calls run at once: for the virtual clock, which must not wait for threads."""

    async def call(self, fn: Callable[..., T], *args: object, deadline: int = NEVER) -> T:
        return fn(*args)


@dataclass
class Session:
    """One camera and its stage; it is the stage's context and outputs too."""

    device: DevicePool
    clock: Clock
    session: str
    simulated: bool
    node: str = "restyle"
    realtime: bool = True
    epoch: int = 0
    source: str = "cam.video"
    connected: frozenset[str] = frozenset({"video"})
    sent: int = 0
    passed: int = 0  # pictures that came through as they were
    shown: list[VideoFrame] = field(default_factory=list[VideoFrame])
    ages_ms: list[float] = field(default_factory=list[float])
    events: list[tuple[str, dict[str, object]]] = field(default_factory=list[tuple[str, dict[str, object]]])

    def __post_init__(self) -> None:
        self._sending: VideoFrame | None = None
        self._view = (InlineCalls if self.simulated else NodePool)(
            self.device,
            session=self.session,
            node=self.node,
            scope="",
            epoch=lambda: 0,
            levels=parse_ladder(DiffusionStream.degrade),
            clock=self.clock,
            realtime=True,
            emit=self.emit,
        )

    def pool(self, name: str | None = None) -> NodePool:
        return self._view

    def emit(self, event: str, **fields: object) -> None:
        self.events.append((event, fields))

    def post(self, port: str, frame: Frame) -> None:
        assert isinstance(frame, VideoFrame)
        if frame is self._sending:
            self.passed += 1
            return
        self.shown.append(frame)
        self.ages_ms.append((self.clock.now() - frame.pts) / MS)

    async def send(self, port: str, frame: Frame) -> None:
        self.post(port, frame)

    async def run(
        self,
        options: DiffusionOptions,
        params: DiffusionParams,
        picture: Callable[[int], NDArray[np.uint8]],
        *,
        frames: int,
        fps: float,
        delay: Callable[[], int] = lambda: 0,
        budget: int = NEVER,
        phase: int = 0,
        ready: asyncio.Barrier | None = None,
    ) -> DiffusionStream:
        """Warm up, then show pictures at the camera's pace. delay: ns from capture to arrival; budget: from capture."""
        stage = DiffusionStream(options, params)
        context: Any = self
        stage.ctx = context
        await stage.setup()
        while not any(event == "diffusion.ready" for event, _ in self.events):
            await self.clock.sleep(5 * MS)
        if ready is not None:
            await ready.wait()
        start = self.clock.now() + phase
        for i in range(frames):
            captured = start + round(i * SECOND / fps)
            arrival = captured + delay()
            await self.clock.sleep(max(0, arrival - self.clock.now()))
            deadline = NEVER if budget == NEVER else captured + budget
            frame = VideoFrame(pts=captured, image=picture(i), deadline=deadline)
            self.sent, self._sending = self.sent + 1, frame
            done = stage.process("video", frame, self)
            assert done is None
        await stage.finish(self)
        await stage.close()
        return stage


class Fixed:
    """Draws a picture's mean colour; every step counts. As cheap as a model can be."""

    name, multiple, captures = "fixed", 16, False

    def warm(self, size: tuple[int, int], settings: Settings, most: int) -> dict[str, Any]:
        return self.init_state(size, settings)

    def init_state(self, size: tuple[int, int], settings: Settings) -> dict[str, Any]:
        return {"steps": settings.steps, "drawn": 0}

    def adjust(self, state: dict[str, Any], settings: Settings) -> None:
        state["steps"] = settings.steps

    def reset(self, state: dict[str, Any]) -> None:
        state["drawn"] = 0

    def chunk(self, entered: int) -> int:
        return 1

    def enter(self, state: dict[str, Any], entry: Entry) -> tuple[Entry, int]:
        return entry, state["steps"]

    def row(self, state: dict[str, Any], flight: tuple[Entry, int]) -> tuple[Entry, int]:
        return flight

    def forward(self, rows: Sequence[tuple[Entry, int]]) -> list[int]:
        return [left - 1 for _, left in rows]

    def advance(self, state: dict[str, Any], row: tuple[Entry, int], result: int) -> Any:
        if result:
            return row[0], result
        state["drawn"] += 1
        return [Finished(row[0].tags[0], row[0].pictures[0])]


def simulated(
    sessions: int, *, steps: int = 2, fps: float = 15, seconds: float = 12
) -> tuple[list[Session], DevicePool, list[int]]:
    """Sessions of `Fixed` on the virtual clock, L(rows) = 5 + 5.65·rows ms, 100 ms from capture.

    Returns: the sessions, their pool, and how many pictures of each came too late.
    """

    async def main() -> tuple[list[Session], DevicePool, list[int]]:
        clock = LoopClock(asyncio.get_running_loop())
        device = DevicePool(
            "gpu",
            PoolPlan(device="cuda", batch=BatchPlan(max=10)),
            clock,
            lambda _threads, n: SimulatedDriver(clock, lambda _model, rows: round((5 + 5.65 * rows) * MS), n),
        )
        all_of = [Session(device, clock, f"s{i}", simulated=True) for i in range(sessions)]
        rng = np.random.default_rng(0)
        params = DiffusionParams(steps=steps, skip_still=False, follow_motion=False)
        image = np.zeros((64, 64, 3), np.uint8)
        late: list[int] = []

        async def one(session: Session, phase: int) -> None:
            stage = await session.run(
                DiffusionOptions(side=64, device="cpu"),
                params,
                lambda _: image,
                frames=int(seconds * fps),
                fps=fps,
                delay=lambda: round(abs(rng.normal(0, 6.0)) * MS),
                budget=100 * MS,
                phase=phase,
            )
            late.append(stage.late)

        async with asyncio.TaskGroup() as group:
            for session in all_of:
                group.create_task(one(session, round(rng.uniform(0, SECOND / fps))))
        return all_of, device, late

    with mock.patch.object(stream_models, "load", return_value=Fixed()):
        return run_virtual(main())
