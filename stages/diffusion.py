"""`diffusion.stream`: live video in, generated video out.

A picture waits in a mailbox of one: a newer one takes its place. Each tick runs the next step of every picture on its
way in one forward. All parameters are live: the next picture is drawn by the new ones, those on their way keep theirs.
While the model warms up, or cannot keep its deadlines, the camera's pictures pass through unchanged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from ..models import stream_models
from ..models.motion_noise import MotionNoise
from ..models.similarity import SimilarityFilter, Thumbnail, thumbnail
from ..models.stream_model import Finished, Settings, StreamModel, fitted
from ..pipeline.clock import NEVER, SECOND
from ..pipeline.frame import Frame, Gap, VideoFrame
from ..pipeline.pixels import to_rgb, with_rgb
from ..pipeline.stage import (
    Control,
    DeadlineMissed,
    In,
    NoFields,
    Out,
    Outputs,
    Ports,
    SetParams,
    Stage,
    StageError,
)

LATE = SECOND  # after capture, for pictures without a deadline
MISSES = 3  # late pictures in a row before the stage does less
RELIEF = 2 * SECOND  # how long it does less before it tries again
CUT = 3 * SECOND  # between two pictures: the scene before is forgotten

Image = NDArray[np.uint8]


class DiffusionOptions(NoFields):
    """Fixed at start."""

    model: str = "tiny-restyle"
    weights: Path | None = None
    side: Annotated[
        int, Field(ge=64, le=2048, description="The model draws about side² pixels a picture")
    ] = 256
    engine: stream_models.Engine = "auto"
    device: str = "auto"
    precision: stream_models.Precision = "auto"


class DiffusionParams(BaseModel):
    """Live parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Annotated[str, Field(title="Prompt", max_length=20_000)] = ""
    negative_prompt: Annotated[
        str, Field(title="Negative prompt", max_length=20_000, description="Counts when guidance is not 1")
    ] = ""
    blend_prompt: Annotated[str, Field(title="Second prompt", max_length=20_000)] = ""
    blend: Annotated[float, Field(title="Blend", ge=0, le=1, description="Share of the second prompt")] = 0.0
    strength: Annotated[float, Field(title="Strength", ge=0, le=1)] = 1.0
    steps: Annotated[int, Field(title="Steps", ge=1, le=4)] = 1
    guidance: Annotated[float, Field(title="Guidance", ge=0, le=4)] = 1.0
    seed: Annotated[int, Field(title="Seed", ge=0, le=2**31 - 1)] = 0
    skip_still: Annotated[bool, Field(title="Rest when nothing moves")] = True
    follow_motion: Annotated[bool, Field(title="Less noise while things move")] = True
    paused: Annotated[bool, Field(title="Pause")] = False

    def settings(self, at_most: int) -> Settings:
        """As the model takes them, with no more than `at_most` steps."""
        return Settings(
            self.prompt,
            self.negative_prompt,
            self.blend_prompt,
            self.blend,
            self.strength,
            min(self.steps, at_most),
            self.guidance,
            self.seed,
        )


@dataclass(slots=True)
class Row:
    """One unit of device work of one stream: the next step of each of its pictures and the first of a new one."""

    session: str
    epoch: int
    deadline: int
    state: Any  # the stream's; the model reads it, only commit changes it
    payload: Payload


@dataclass(frozen=True, slots=True)
class Payload:
    """What enters with a row; no picture drains those on their way."""

    picture: Image | None
    frame: VideoFrame | None
    noise: float


class DiffusionRows:
    """A StreamModel as a pool sees it: rows of many streams, one forward, a commit each."""

    def __init__(self, model: StreamModel[Any, Any]) -> None:
        self.model = model

    def batch_key(self, row: Row) -> Hashable:
        """Equal keys may share one forward."""
        return self.model.name, row.state.size

    def forward(self, rows: Sequence[Row]) -> list[tuple[list[Any], list[Any]]]:
        """The model's steps and their results, for each row. Changes no state."""
        plans = [self.model.rows(r.state, r.payload.picture, r.payload.frame, r.payload.noise) for r in rows]
        results = self.model.forward([step for plan in plans for step in plan])
        done: list[tuple[list[Any], list[Any]]] = []
        for plan in plans:
            done.append((plan, results[: len(plan)]))
            results = results[len(plan) :]
        return done

    def commit(self, row: Row, result: tuple[list[Any], list[Any]]) -> list[Finished]:
        """After success: the pictures that are finished."""
        return self.model.commit(row.state, *result)


def _look(frame: VideoFrame) -> tuple[Image, Thumbnail]:
    rgb = to_rgb(frame)
    return rgb, thumbnail(rgb)


def _prepare(model: StreamModel[Any, Any], state: Any, size: tuple[int, int], settings: Settings) -> Any:
    """The stream's state for a size and settings: the same one with other settings, or a new one."""
    if state is None or state.size != size:
        return model.init_state(size, settings)
    model.adjust(state, settings)
    return state


def _warm(options: DiffusionOptions) -> DiffusionRows:
    """Load the weights and run once: the first forward of a process is many times slower."""
    model = stream_models.load(
        options.model,
        options.weights,
        engine=options.engine,
        device=options.device,
        precision=options.precision,
    )
    side = max(model.multiple, options.side // model.multiple * model.multiple)
    state = model.init_state((side, side), Settings(steps=1))
    model.forward(model.rows(state, np.zeros((side, side, 3), np.uint8)))
    return DiffusionRows(model)


class DiffusionStream(Stage):
    """Draws each picture anew by a prompt, in the pool."""

    ports = Ports({"video": In(VideoFrame)}, {"video": Out(VideoFrame)})
    Options = DiffusionOptions
    Params = DiffusionParams

    async def setup(self) -> None:
        self.skipped = self.replaced = self.late = self.passed = 0  # pictures
        self._mail: tuple[VideoFrame, Outputs] | None = None  # the newest picture that waits
        self._wake, self._idle = asyncio.Event(), asyncio.Event()
        self._rows: DiffusionRows | None = None  # None while warming
        self._state: Any = None
        self._used: tuple[tuple[int, int], Settings] | None = None  # what _state was prepared for
        self._filter, self._motion = SimilarityFilter(), MotionNoise()
        self._shown: Image | None = None  # the last picture that was drawn
        self._forget = False  # before the next picture
        self._seen = NEVER  # pts of the last picture that was drawn
        self._misses = 0
        self._relief = 0  # 1: one step only; 2: pass through
        self._until = 0
        if self.ctx.realtime:
            self._worker = asyncio.create_task(self._work(), name=f"{self.ctx.session}/{self.ctx.node}/draw")
        else:
            await self._load()

    async def _load(self) -> None:
        try:
            self._rows = await self.ctx.pool().call(_warm, self.options)
        except ValueError as e:
            raise StageError(f"{self.ctx.node}: {e}") from e
        self.ctx.emit("diffusion.ready", model=self.options.model)

    @property
    def busy(self) -> bool:
        return self._mail is not None or bool(self._state and self._state.flights)

    # ------------------------------------------------------------ pictures in

    def process(self, port: str, frame: Frame, out: Outputs) -> Awaitable[None] | None:
        assert isinstance(frame, VideoFrame)
        if self.params.paused:
            return None
        if not self.ctx.realtime:
            return self._draw(frame, out)
        if self._worker.done():
            self._worker.result()  # raises what ended it: the supervisor restarts this stage
        if self._rows is None or self._resting():
            self.passed += 1
            self._mail = None  # it would come after this one
            out.post("video", frame)
            return None
        self.replaced += self._mail is not None
        self._mail = frame, out
        self._idle.clear()
        self._wake.set()
        return None

    def gap(self, port: str, gap: Gap, out: Outputs) -> None:
        if gap.duration > CUT:  # a few lost frames are no other scene
            self._forget = True

    async def finish(self, out: Outputs) -> None:
        if self.ctx.realtime:
            await self._idle.wait()  # the worker draws what is on its way
        while not self.ctx.realtime and self._state is not None and self._state.flights:
            self._post(await self._tick(None, None), out)

    async def control(self, message: Control) -> None:
        await super().control(message)
        if isinstance(message, SetParams):
            self._filter.reset()
            if self.params.paused:
                self._mail = None
                self._forget = True  # what was on its way is out of date when it goes on

    async def close(self) -> None:
        worker: asyncio.Task[None] | None = getattr(self, "_worker", None)  # none after a failed setup
        if worker is not None:
            worker.cancel()
            await asyncio.wait([worker])
            if not worker.cancelled():
                worker.exception()  # told by process(), if anybody still asks

    # ------------------------------------------------------------ pictures out

    async def _work(self) -> None:
        """Until cancelled. Nobody who waits for its idleness is left waiting when it fails."""
        try:
            await self._load()
            await self._draw_mail()
        finally:
            self._idle.set()

    async def _draw_mail(self) -> None:
        """Live: draw what is in the mailbox; meanwhile and after, go on with pictures on their way."""
        out: Outputs | None = None
        while True:
            if not self.busy:
                self._wake.clear()
                self._idle.set()
                await self._wake.wait()
                self._idle.clear()
            mail, self._mail = self._mail, None
            try:
                if mail is not None:
                    frame, out = mail
                    await self._draw(frame, out)
                elif out is not None and self._state is not None:
                    self._post(await self._tick(None, None), out)
            except DeadlineMissed:
                self._missed()

    async def _draw(self, frame: VideoFrame, out: Outputs) -> None:
        """Let a picture enter, unless nothing has moved."""
        assert self._rows is not None
        pool, deadline = self.ctx.pool(), frame.deadline
        rgb, thumb = await pool.call(_look, frame, deadline=deadline)
        if self._seen != NEVER and frame.pts - self._seen > CUT:
            self._forget = True
        self._seen = frame.pts
        size = fitted(frame.height, frame.width, self.options.side, self._rows.model.multiple)
        settings = self.params.settings(at_most=1 if self._relief else 4)
        if self._forget or (self._used is not None and self._used[0] != size):
            self._clear()
        if self._used != (size, settings):
            self._state = await pool.call(_prepare, self._rows.model, self._state, size, settings)
            self._used = size, settings
            self._filter.reset()
        noise = self._motion.update(thumb) if self.params.follow_motion else 0.5
        if self.params.skip_still and self._filter.skip(thumb):
            shown = self._shown
            if shown is not None and shown.shape == rgb.shape and not self._state.flights:
                self.skipped += 1
                out.post("video", with_rgb(frame, shown))
                return
        try:
            self._post(await self._tick(rgb, frame, noise), out)
        except DeadlineMissed:
            self._filter.reset()  # it was not drawn: nothing may be taken for it
            raise

    def _clear(self) -> None:
        self._forget = False
        self._filter.reset()
        self._motion.reset()
        self._shown = None
        if self._state is not None and self._rows is not None:
            self._rows.model.reset(self._state)

    async def _tick(self, rgb: Image | None, frame: VideoFrame | None, noise: float = 0.5) -> list[Finished]:
        """One row: a step of each picture on its way. Raises: DeadlineMissed, and then nothing has changed."""
        assert self._rows is not None
        deadline = NEVER
        if self.ctx.realtime:
            waiting = [f.tag.deadline for f in self._state.flights]
            deadline = min([*waiting, frame.deadline if frame is not None else NEVER])
        row = Row(self.ctx.session, self.ctx.epoch, deadline, self._state, Payload(rgb, frame, noise))
        try:
            # a row pool will batch `forward` over sessions here; `commit` is pointers only
            results = await self.ctx.pool().call(self._rows.forward, [row], deadline=deadline)
        except DeadlineMissed:
            self._rows.model.reset(self._state)  # pictures on their way are late too
            raise
        return self._rows.commit(row, results[0])

    def _post(self, finished: Sequence[Finished], out: Outputs) -> None:
        for done in finished:
            frame: VideoFrame = done.tag
            age = self.ctx.clock.now() - frame.pts
            if self.params.paused or self._forget:
                continue
            if self.ctx.realtime and (
                self.ctx.clock.now() > frame.deadline or (frame.deadline == NEVER and age > LATE)
            ):
                self._missed()
                continue
            self._misses = 0
            self._shown = done.picture
            out.post("video", with_rgb(frame, done.picture))

    # ------------------------------------------------------------ when it cannot keep up

    def _missed(self) -> None:
        """A picture came too late: after some in a row take one step only, then pass pictures through."""
        self.late += 1
        self._misses += 1
        if self._misses < MISSES:
            return
        self._misses = 0
        self._relief = 1 if self._relief == 0 and self.params.steps > 1 else 2
        self._until = self.ctx.clock.now() + RELIEF
        if self._relief == 2 and self._state is not None:
            self._forget = True
        self.ctx.emit("diffusion.overloaded", now="passthrough" if self._relief == 2 else "one step")

    def _resting(self) -> bool:
        """Whether pictures pass through for now; the way back is one rung at a time."""
        if self._relief and self.ctx.clock.now() >= self._until:
            self._relief = 1 if self._relief == 2 and self.params.steps > 1 else 0
            self._until = self.ctx.clock.now() + RELIEF
        return self._relief == 2
