"""Streaming VLMs in a pool: pictures and answers of many sessions as rows, earliest deadline first."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from typing import Any

from ..models.vlm_model import StreamingVlm
from ..models.vlm_session import Result, Runner, Say, Take
from ..pipeline.rows import Again, Row


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
        return "take", job.image is not None, job.x is None, job.share

    def forward(self, rows: Sequence[Row]) -> Sequence[Any]:
        with self._lock:
            return self.runner.forward([row.payload for row in rows])

    def commit(self, row: Row, result: Result) -> Any:
        with self._lock:
            return result if self.runner.commit(row.payload, result) else Again(row.payload, lane=row.lane)
