"""Streaming VLMs in a pool: pictures and answers of many sessions as rows, earliest deadline first."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Any

from ..models.toy_model import ToyModel
from ..models.vlm_model import StreamingVlm
from ..models.vlm_session import Result, Runner, Say, Take
from ..pipeline.rows import Again, Row
from ..pipeline.stage import Pool, StageError


class VlmRows:
    """`RowModel`: a row's payload is a `Take` or a `Say`, which name their session.

    A picture goes in by chunks, and an answer word by word, each a row of its own: neither holds up the other
    for longer than one pass. What a pass wrote counts only after `commit`, so a row may be run again or dropped.
    """

    def __init__(self, model: StreamingVlm, chunk: int = 256) -> None:
        self.model = model
        self.runner = Runner(model, chunk)
        self._lock = threading.Lock()  # a session's cache is read by its answers while pictures go in

    def batch_key(self, row: Row) -> Hashable:
        job: Take | Say = row.payload
        if isinstance(job, Say):
            return "say", 1 if len(job.ids) == 1 else 2
        size = None if job.image is None else tuple(job.image.shape)
        return "take", size, job.x is None, job.share

    def forward(self, rows: Sequence[Row]) -> Sequence[Any]:
        with self._lock:
            return self.runner.forward([row.payload for row in rows])

    def commit(self, row: Row, result: Result) -> Any:
        with self._lock:
            return result if self.runner.commit(row.payload, result) else Again(row.payload, lane=row.lane)


_loading = threading.Lock()


@lru_cache(maxsize=8)
def _hub(model: str, device: str, dtype: str, tokens: int, system: str, chunk: int) -> VlmRows:
    from ..models import vlm_hub  # needs the hub extra only when a model is named

    folder = vlm_hub.fetch(model)
    return VlmRows(vlm_hub.HubVlm(folder, device=device, dtype=dtype, tokens=tokens, system=system), chunk)


def hub_rows(model: str, device: str, dtype: str, tokens: int, system: str, chunk: int) -> VlmRows:
    """A checkpoint's rows: the same object for all sessions. Blocking. Raises: ValueError in words."""
    with _loading:
        return _hub(model, device, dtype, tokens, system, chunk)


@lru_cache(maxsize=1)
def _toy() -> VlmRows:
    return VlmRows(ToyModel())


def toy_rows() -> VlmRows:
    """The toy's rows. Blocking. Raises: FileNotFoundError without its weights."""
    with _loading:
        return _toy()


async def load(pool: Pool, name: str, rows: VlmRows) -> None:
    """Hand the rows to the pool, once for all sessions. Raises: StageError where the pool is another process."""
    try:
        await pool.load(name, lambda: rows)
    except StageError as e:
        words = "a streaming VLM keeps its sessions in this process's memory: give it a pool of kind thread"
        raise StageError(f"{e}; {words}") from e
