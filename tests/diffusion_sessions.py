"""Several sessions of `diffusion.stream` on one pool, without the rest of the engine: for tests and measurements."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from penstock.pipeline.clock import MS, NEVER, SECOND, Clock
from penstock.pipeline.degrade import parse_ladder
from penstock.pipeline.frame import Frame, VideoFrame
from penstock.pipeline.node_pool import NodePool
from penstock.pipeline.pools import DevicePool
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
    shown: list[VideoFrame] = field(default_factory=list[VideoFrame])
    ages_ms: list[float] = field(default_factory=list[float])
    events: list[tuple[str, dict[str, object]]] = field(default_factory=list[tuple[str, dict[str, object]]])

    def __post_init__(self) -> None:
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
            self.sent += 1
            done = stage.process("video", frame, self)
            assert done is None
        await stage.finish(self)
        await stage.close()
        return stage
