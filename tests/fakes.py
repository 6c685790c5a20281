"""Stand-ins for the engine, so that a stage is tested without queues, tasks or sockets."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from penstock.pipeline.clock import NEVER, SECOND, Clock, ManualClock
from penstock.pipeline.degrade import Quality
from penstock.pipeline.frame import AudioFrame, Frame
from penstock.pipeline.playback import Playback
from penstock.pipeline.pool_threads import make_model
from penstock.pipeline.rows import Admission, Again, Demand, ModelSpec, Row, RowModel
from penstock.pipeline.session import SessionEvent
from penstock.pipeline.stage import Stage

T = TypeVar("T")


class InlinePool:
    """Runs at once, on the caller's thread."""

    device = "cpu"
    max_rows = 8
    quality = Quality()

    def __init__(self) -> None:
        self.models: dict[str, RowModel] = {}

    async def load(
        self, name: str, factory: str | Callable[..., RowModel], args: Mapping[str, Any] | None = None
    ) -> None:
        self.models[name] = make_model(ModelSpec(name, factory, args or {}))

    async def warm(self, model: str, example: Callable[[], Row]) -> None:
        self.models[model].forward([example()])

    def admit(self, demand: Demand) -> Admission:
        return Admission("granted")

    async def run(self, model: str | RowModel, row: Row) -> Any:
        its = self.models[model] if isinstance(model, str) else model
        while isinstance(output := its.commit(row, its.forward([row])[0]), Again):
            row.payload = output.payload
            row.lane = row.lane + 1 if output.lane is None else output.lane
            row.further = max(0, row.further - 1)
        return output

    async def call(self, fn: Callable[..., T], *args: object, deadline: int = NEVER) -> T:
        return fn(*args)


class FakeContext:
    """Records what a stage tells its session."""

    def __init__(self, clock: Clock | None = None, *, realtime: bool = True, epoch: int = 0) -> None:
        self.session = "s-test"
        self.node = "node"
        self.clock: Clock = clock or ManualClock()
        self.realtime = realtime
        self.connected = frozenset({"video", "audio", "text"})
        self.epoch = epoch
        self.events: list[tuple[str, dict[str, object]]] = []
        self.params: list[tuple[str, dict[str, object]]] = []
        self.interrupts: list[str] = []
        self.listeners: list[Callable[[SessionEvent], None]] = []
        self.pools = InlinePool()
        self.playback = Playback(self.clock)

    def pool(self, name: str | None = None) -> InlinePool:
        return self.pools

    def emit(self, event: str, **fields: object) -> None:
        self.events.append((event, fields))

    def listen(self, callback: Callable[[SessionEvent], None]) -> Callable[[], None]:
        self.listeners.append(callback)
        return lambda: self.listeners.remove(callback)

    def set_params(self, node: str, values: Mapping[str, object]) -> None:
        self.params.append((node, dict(values)))

    def interrupt(self, scope: str) -> None:
        self.interrupts.append(scope)
        self.epoch += 1


class Collected:
    """Outputs that keep every frame, by port."""

    def __init__(self, *, epoch: int = 0, source: str = "test.out") -> None:
        self.epoch = epoch
        self.source = source
        self.frames: list[tuple[str, Frame]] = []

    def post(self, port: str, frame: Frame) -> None:
        self.frames.append((port, frame))

    async def send(self, port: str, frame: Frame) -> None:
        self.frames.append((port, frame))

    def of(self, port: str) -> list[Any]:
        return [frame for name, frame in self.frames if name == port]


async def feed(stage: Stage, port: str, frame: Frame, out: Collected) -> None:
    """Call `process` as the engine does, whether it is a coroutine or a plain function."""
    result = stage.process(port, frame, out)
    if inspect.isawaitable(result):
        await result


def audio_frames(pcm: NDArray[np.int16], rate_hz: int = 16_000, frame_ms: int = 20) -> list[AudioFrame]:
    """Cut (T,) or (T, C) int16 PCM into frames with true pts; the last may be short."""
    if pcm.ndim == 1:
        pcm = pcm[:, None]
    step = rate_hz * frame_ms // 1000
    return [
        AudioFrame(pts=i * SECOND // rate_hz, pcm=pcm[i : i + step], rate_hz=rate_hz)
        for i in range(0, len(pcm), step)
    ]
