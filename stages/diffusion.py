"""`diffusion.stream`: live video in, generated video out.

A picture waits in a mailbox of one: a newer one takes its place. Each denoising step of a picture is a row of the pool,
which runs rows of all pictures and sessions together. All parameters are live: the next picture is drawn by the new
ones, those on their way keep theirs. While the model warms up the camera's pictures pass through unchanged; when the
pool is short the stage does less by its ladder: fewer pictures, fewer steps, smaller ones, and at last none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence

import numpy as np
from numpy.typing import NDArray

from ..models.motion_noise import MotionNoise
from ..models.similarity import SimilarityFilter, Thumbnail, thumbnail
from ..models.stream_model import MAX_STEPS, Entry, Finished
from ..pipeline.clock import NEVER, SECOND
from ..pipeline.degrade import parse_ladder
from ..pipeline.frame import Frame, Gap, TokenFrame, VideoFrame
from ..pipeline.pixels import with_rgb
from ..pipeline.rows import Demand, Row
from ..pipeline.stage import (
    Control,
    DeadlineMissed,
    Flushed,
    In,
    Out,
    Outputs,
    Ports,
    SetParams,
    Stage,
    StageError,
)
from .diffusion_params import DiffusionOptions, DiffusionParams
from .diffusion_rows import DiffusionRows, Step, Stream, Work, load
from .told_prompt import PROMPT, ToldPrompt

LATE = SECOND  # after capture, for pictures without a deadline
CUT = 3 * SECOND  # between two pictures: the scene before is forgotten
RATE_FIRST, RATE_OVER = 15, 60  # pictures that it is measured over at first, and later
RATE_OFF = 0.2  # of the rate; a smaller change asks for no other share of the pool

Image = NDArray[np.uint8]


def _look(frame: VideoFrame) -> Thumbnail:
    return thumbnail(frame.image[: frame.height] if frame.format == "i420" else frame.image)


class DiffusionStream(Stage):
    """Draws each picture anew by a prompt, in the pool. A line on `prompt` becomes the prompt."""

    ports = Ports({"video": In(VideoFrame), "prompt": PROMPT}, {"video": Out(VideoFrame)})
    Options = DiffusionOptions
    Params = DiffusionParams
    # with a camera of 30 fps: 22 fps, fewer steps, three quarters of the side, 15 fps, half the side
    degrade = ("fps*0.75", "steps-1", "steps-1", "res*0.75", "fps*0.67", "res*0.67", "passthrough")
    rows_stay = True

    async def setup(self) -> None:
        self.skipped = self.replaced = self.late = self.dropped = 0  # pictures
        self._told = ToldPrompt(self.ctx, self.options.model)
        self._mail: list[VideoFrame] = []  # the newest that wait: one, or a chunk
        self._out: Outputs | None = None
        self._wake, self._idle, self._loaded = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._rows: DiffusionRows | None = None  # None while warming
        self._stream: Stream | None = None
        self._preparing: asyncio.Future[None] | None = None  # another size
        self._filter, self._motion = SimilarityFilter(), MotionNoise()
        self._shown: VideoFrame | None = None  # the last picture that was drawn
        self._forget = False  # before the next picture
        self._seen = NEVER  # pts of the last picture that was drawn
        self._entered = self._flying = 0  # entries of this scene, and on their way
        self._asked: tuple[float, int] = (0.0, 0)  # rate and steps that the pool was asked for
        self._arrivals: list[int] = []  # pts
        self._due = self._rate = 0.0  # pictures owed at a lower frame rate; Hz, 0 until it is measured
        if self.ctx.realtime:
            self._worker = asyncio.create_task(self._work(), name=f"{self.ctx.session}/{self.ctx.node}/draw")
        else:
            await self._load()

    async def loaded(self) -> None:
        await self._loaded.wait()
        if self.ctx.realtime and self._worker.done():
            self._worker.result()

    async def _load(self) -> None:
        """Load the weights, and run the shapes of a stream: the first forwards of a process are far slower."""
        o, pool = self.options, self.ctx.pool()
        args = o.loading(pool.device)
        self._name = "diffusion " + ",".join(str(v) for v in args.values() if v is not None)
        rows = await load(pool, self._name, args)
        self._loaded.set()
        try:
            settings = self.params.settings(MAX_STEPS)
            # where another size takes its time, all that the ladder may ask for
            scales = {q.scale for q in parse_ladder(self.degrade)} if rows.model.captures else {1.0}
            for size in o.sizes(scales, rows.model.multiple):
                await pool.call(rows.slots.prepare, size, settings, pool.max_rows, o.slots)
                stream = await pool.call(rows.stream, size, settings)
                entry = Entry((np.zeros((*size, 3), np.uint8),) * rows.model.chunk(0), (None,))
                await pool.warm(self._name, lambda e=entry, s=stream: Row(Step(e, 0), state=s))
                rows.leave(stream)
        except ValueError as e:
            raise StageError(str(e)) from e
        self._rows = rows
        self._ask()
        self.ctx.emit("diffusion.ready", model=o.model)

    def _ask(self) -> None:
        """Ask the pool for this stream's share, once the camera's rate is known and whenever it changes.

        A guess in its place would push others down their ladders, from which they come back slowly.
        """
        wish = self._rate, self.params.steps
        if self._rows is None or not self._rate:
            return
        if abs(wish[0] - self._asked[0]) <= RATE_OFF * wish[0] and wish[1] == self._asked[1]:
            return
        self._asked = wish
        try:
            entries = wish[0] / self._rows.model.chunk(1)  # a second: a row is a whole chunk
            self.ctx.pool().admit(Demand(self._name, rate_hz=entries, forwards=wish[1]))
        except StageError as e:  # with a ladder of its own that does not end in passthrough
            self.ctx.emit("diffusion.overloaded", why=str(e))

    @property
    def busy(self) -> bool:
        return bool(self._mail) or self._flying > 0

    # ------------------------------------------------------------ pictures in

    def process(self, port: str, frame: Frame, out: Outputs) -> Awaitable[None] | None:
        if isinstance(frame, TokenFrame):
            return self._told.hear(frame, out.source)
        assert isinstance(frame, VideoFrame)
        if self.params.paused:
            return None
        if not self.ctx.realtime:
            return self._draw_file(frame, out)
        if self._worker.done():
            self._worker.result()  # raises what ended it: the supervisor restarts this stage
        self._measure(frame)
        quality = self.ctx.pool().quality
        if self._rows is None or quality.passthrough:
            self._mail.clear()  # it would come after this one
            self._pass((frame,), out)
            return None
        self._due += quality.fps
        if self._due < 1:
            return None
        self._due = min(self._due - 1, 1.0)
        chunk = self._rows.model.chunk(self._entered)
        self._mail.append(frame)
        if over := len(self._mail) - chunk:
            del self._mail[: max(0, over)]
            self.replaced += max(0, over)
        self._out = out
        self._idle.clear()
        self._wake.set()
        return None

    def _measure(self, frame: VideoFrame) -> None:
        """The camera's rate, from its own times; what the pool was asked for follows it."""
        self._arrivals.append(frame.pts)
        pictures = len(self._arrivals) - 1
        if pictures < (RATE_OVER if self._rate else RATE_FIRST):
            return
        span = self._arrivals[-1] - self._arrivals[0]
        self._arrivals = []
        if span <= 0:
            return
        self._rate = min(240.0, pictures * SECOND / span)
        self._ask()

    def gap(self, port: str, gap: Gap, out: Outputs) -> None:
        if port == "video" and gap.duration > CUT:  # a few lost frames are no other scene
            self._forget = True

    async def finish(self, out: Outputs) -> None:
        if self.ctx.realtime:
            await self._idle.wait()  # what is on its way is drawn
        elif self._mail:
            await self._draw_chunk(out)

    async def control(self, message: Control) -> None:
        await super().control(message)
        if isinstance(message, SetParams):
            self._filter.reset()
            self._ask()
            if self.params.paused:
                self._mail.clear()
                self._forget = True  # what was on its way is out of date when it goes on

    def _leave(self) -> None:
        """Give the stream up: to whoever comes next, if nothing of it is on its way."""
        if self._stream is not None and self._rows is not None:
            self._stream.forget(self._rows.model)  # what is on its way has the old size
            if self._flying <= 1:  # the one that asks
                self._rows.leave(self._stream)
        self._stream = None

    async def close(self) -> None:
        worker: asyncio.Task[None] | None = getattr(self, "_worker", None)  # none after a failed setup
        if worker is not None:
            worker.cancel()
            await asyncio.wait([worker])
            if not worker.cancelled():
                worker.exception()  # told by process(), if anybody still asks
        if getattr(self, "_flying", 1) == 0:
            self._leave()
            if self._preparing is not None:
                self._preparing.cancel()

    # ------------------------------------------------------------ live

    async def _work(self) -> None:
        """Until cancelled. Nobody who waits for its idleness is left waiting when it fails."""
        try:
            await self._load()
            async with asyncio.TaskGroup() as flights:
                await self._take_mail(flights)
        except ExceptionGroup as e:
            raise e.exceptions[0] from e
        finally:
            self._idle.set()
            self._loaded.set()

    async def _take_mail(self, flights: asyncio.TaskGroup) -> None:
        """Begin with what waits as soon as there is room on the way; each goes its way in a task of its own."""
        assert self._rows is not None
        while True:
            self._wake.clear()
            chunk = self._rows.model.chunk(self._entered)
            if len(self._mail) < chunk or self._flying >= self._room:
                if not self._flying and len(self._mail) < chunk:
                    self._idle.set()
                await self._wake.wait()
                continue
            frames, self._mail = tuple(self._mail[:chunk]), self._mail[chunk:]
            assert self._out is not None
            self._flying += 1  # before it waits for anything: this picture is at work
            try:
                work = await self._begin(frames, self._out)
            except DeadlineMissed:
                self.late += len(frames)
                work = None
            if work is None:
                self._flying -= 1
            else:
                name = f"{self.ctx.session}/{self.ctx.node}/picture"
                flights.create_task(self._fly(work, self._out), name=name)

    @property
    def _room(self) -> int:
        """Entries on their way at most: one a step, and one that joins when the first has ended."""
        steps = self.params.steps
        return steps + 1 if steps > 1 else 1

    async def _fly(self, work: Work, out: Outputs) -> None:
        try:
            self._post(work, await self._run(work), out)
        except DeadlineMissed:
            self.late += len(work.frames)
            self._filter.reset()  # it was not drawn: nothing may be taken for it
        except Flushed:
            pass
        finally:
            self._flying -= 1
            self._wake.set()

    async def _run(self, work: Work) -> list[Finished]:
        """Through all steps. Raises: DeadlineMissed, Flushed, PoolFailed; no state has changed by the failed step."""
        row = Row(
            Step(work.entry, work.stream.scene),
            state=work.stream,
            deadline=work.deadline,
            further=work.steps - 1,
        )
        return await self.ctx.pool().run(self._name, row)

    # ------------------------------------------------------------ one entry

    async def _begin(self, frames: tuple[VideoFrame, ...], out: Outputs) -> Work | None:
        """Make pictures ready, unless nothing has moved: then the last drawing is shown again."""
        assert self._rows is not None
        pool, last = self.ctx.pool(), frames[-1]
        deadline = min(f.deadline for f in frames) if self.ctx.realtime else NEVER
        if deadline == NEVER and self.ctx.realtime:
            deadline = last.pts + LATE
        thumb = await pool.call(_look, last, deadline=deadline)
        if self._seen != NEVER and last.pts - self._seen > CUT:
            self._forget = True
        self._seen = last.pts
        stream = await self._prepared(last)
        if stream is None:
            self._pass(frames, out)
            return None
        noise = self._motion.update(thumb) if self.params.follow_motion else 0.5
        shown = self._shown
        if self.params.skip_still and self._filter.skip(thumb) and shown is not None:
            same = (shown.height, shown.width) == (last.height, last.width)
            if same and self._flying <= 1:  # itself
                self.skipped += len(frames)
                for frame in frames:
                    out.post("video", with_rgb(frame, shown.image))
                return None
        self._entered += 1
        wanted = self._rows.model.chunk(self._entered - 1)
        images = [frame.image for frame in frames]
        if any(image.shape != images[-1].shape for image in images):
            images = [images[-1]] * len(images)  # a camera that changes its size within a chunk
        images += [images[-1]] * (wanted - len(images))
        return Work(Entry(tuple(images), frames, noise), frames, stream, stream.settings.steps, deadline)

    async def _prepared(self, frame: VideoFrame) -> Stream | None:
        """The stream as it must be for this picture: its size, the present settings, its scene; None while it is made."""
        assert self._rows is not None
        pool, model, quality = self.ctx.pool(), self._rows.model, self.ctx.pool().quality
        size = self.options.size(frame.height, frame.width, quality.scale, model.multiple)
        if not self._rows.slots.ready(size):  # nobody has had it yet
            making = self._preparing
            if making is None:
                work = pool.call(
                    self._rows.slots.prepare, size, self.params.settings(MAX_STEPS), pool.max_rows, 1
                )
                making = self._preparing = asyncio.ensure_future(work)
            if self.ctx.realtime and not making.done():
                return None
            self._preparing = None
            await making  # raises what it failed of
            return await self._prepared(frame)
        settings = self.params.settings(at_most=max(1, self.params.steps - quality.steps_less))
        stream = self._stream
        if stream is None or stream.size != size:
            self._leave()
            stream = self._stream = await pool.call(self._rows.stream, size, settings)
            self._begin_scene()
        elif self._forget:
            stream.forget(model)
            self._begin_scene()
        if stream.settings != settings:
            await pool.call(stream.adjust, model, settings)
            self._filter.reset()
        return stream

    def _pass(self, frames: Sequence[VideoFrame], out: Outputs) -> None:
        """Show the camera's pictures as they are."""
        self._forget = True
        for frame in frames:
            out.post("video", frame)

    def _begin_scene(self) -> None:
        self._forget = False
        self._entered = 0
        self._shown = None
        self._filter.reset()
        self._motion.reset()

    def _post(self, work: Work, finished: Sequence[Finished], out: Outputs) -> None:
        for done in finished:
            frame: VideoFrame = done.tag
            now = self.ctx.clock.now()
            if self.params.paused or self._forget or work.stream is not self._stream:
                self.dropped += 1
            elif self.ctx.realtime and now > work.deadline:
                self.late += 1
            elif self._shown is not None and frame.pts <= self._shown.pts:
                self.dropped += 1  # a newer one with fewer steps came first
            else:
                self._shown = with_rgb(frame, done.picture)
                out.post("video", self._shown)

    # ------------------------------------------------------------ files: every picture, in order

    async def _draw_file(self, frame: VideoFrame, out: Outputs) -> None:
        assert self._rows is not None
        self._mail.append(frame)
        if len(self._mail) >= self._rows.model.chunk(self._entered):
            await self._draw_chunk(out)

    async def _draw_chunk(self, out: Outputs) -> None:
        frames, self._mail = tuple(self._mail), []
        work = await self._begin(frames, out)
        if work is not None:
            self._post(work, await self._run(work), out)
