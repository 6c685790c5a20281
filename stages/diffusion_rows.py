"""`diffusion.stream`'s models as a pool sees them: rows of many streams and steps, one forward, a commit each."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..models import stream_models
from ..models.devices import pick
from ..models.stream_model import Entry, Finished, Settings
from ..pipeline.errors import LastingError, one_line
from ..pipeline.frame import VideoFrame
from ..pipeline.rows import Again, Row
from ..pipeline.stage import Pool
from .diffusion_slots import AnyModel, slots_of


@dataclass(slots=True)
class Stream:
    """One stream's state in a pool. `lock` keeps commits, on the pool's threads, from its owner's changes."""

    state: Any  # the model's
    size: tuple[int, int]  # the model's (height, width)
    settings: Settings
    scene: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def forget(self, model: AnyModel) -> None:
        """Another scene begins: what is on its way will change nothing any more."""
        with self.lock:
            self.scene += 1
            model.reset(self.state)

    def adjust(self, model: AnyModel, settings: Settings) -> None:
        """Other settings, from the next picture on. Blocks, but no commit meanwhile: a prompt takes its time."""
        model.adjust(self.state, settings)
        self.settings = settings


@dataclass(frozen=True, slots=True)
class Step:
    """A row's payload: new pictures, or those on their way before their next step."""

    work: Any  # an Entry, or the model's own
    scene: int


@dataclass(frozen=True, slots=True)
class Work:
    """Pictures to draw, ready for the pool."""

    entry: Entry
    frames: tuple[VideoFrame, ...]
    stream: Stream
    steps: int
    deadline: int


class DiffusionRows:
    """A StreamModel as a RowModel."""

    def __init__(self, model: AnyModel, *, one_thread: bool = False) -> None:
        """one_thread: operators use no further threads, as a pool runs forwards side by side on a CPU."""
        self.model = model
        self.slots = slots_of(model)
        self._one_thread = one_thread
        self._told = threading.local()

    def stream(self, size: tuple[int, int], settings: Settings) -> Stream:
        """One that waits, or a new one. Blocks: prompts are encoded, caches made."""
        return Stream(self.slots.take(size, settings), size, settings)

    def leave(self, stream: Stream) -> None:
        """Its session needs it no more, and none of its pictures is on its way."""
        with stream.lock:
            stream.scene += 1
        self.slots.give_back(stream.size, stream.state)

    def batch_key(self, row: Row) -> Hashable:
        """Pictures of one size share a forward, whatever their steps and prompts."""
        return row.state.size

    def forward(self, rows: Sequence[Row]) -> list[tuple[Any, Any]]:
        """Each row's step and its result. Changes no state."""
        if self._one_thread and not hasattr(self._told, "one"):
            # OpenMP keeps this number per thread, and oneDNN asks OpenMP: told elsewhere it does not count here
            torch.set_num_threads(1)
            self._told.one = True
        steps: list[Any] = []
        for row in rows:
            state, work = row.state.state, row.payload.work
            flight = self.model.enter(state, work) if isinstance(work, Entry) else work
            steps.append(self.model.row(state, flight))
        return list(zip(steps, self.model.forward(steps), strict=True))

    def commit(self, row: Row, result: tuple[Any, Any]) -> list[Finished] | Again:
        """After success: the next step, or the pictures that are finished; none when their scene is over."""
        stream: Stream = row.state
        with stream.lock:
            if row.payload.scene != stream.scene:
                return []
            after = self.model.advance(stream.state, *result)
        return after if isinstance(after, list) else Again(Step(after, row.payload.scene))


async def load(pool: Pool, name: str, args: Mapping[str, Any]) -> DiffusionRows:
    """The model in the pool, under that name. Raises: LastingError in words of the checkpoint, StageError."""
    try:
        await pool.load(name, "penstock.stages.diffusion_rows:make", args)
        return await pool.call(lambda: make(**args))  # the same weights, from this process's cache
    except LastingError as e:
        raise LastingError(str(e.__cause__ or e)) from e  # without our name for the model
    except ValueError as e:
        raise LastingError(one_line(e)) from e


def make(model: str, weights: str | None, **how: Any) -> DiffusionRows:
    """A pool's factory; `how` as in `stream_models.How`. Raises: ValueError in words."""
    path = None if weights is None else Path(weights)
    # two threads each, under contention, take three times as long as one
    loaded = stream_models.load(model, path, stream_models.How(**how))
    return DiffusionRows(loaded, one_thread=pick(how.get("device", "auto")) == "cpu")
