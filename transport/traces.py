"""Flight recorder traces of a server's sessions: on request, and of every session in which a stage failed."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
from datetime import UTC, datetime
from pathlib import Path

from aiohttp import web

from ..pipeline import trace as traces
from ..pipeline.clock import SECOND, Clock
from ..pipeline.owned_tasks import of_nobody
from ..pipeline.session import SessionEvent
from ..pipeline.stage import StageError
from .desk import Desk
from .headless import HeadlessSession
from .live_session import LiveSession

log = logging.getLogger(__name__)

FAULTS = ("restart", "failed")
APART = 30 * SECOND  # at least, between two traces of one session: the ring holds no more
MOST = 50  # files kept


async def answer(desk: Desk, session_id: str) -> web.Response:
    """`POST /sessions/{id}/trace`: what its recorder holds, as a file for Perfetto."""
    trace = traces.take(desk.find(session_id).session)
    # off the loop: some megabytes of JSON
    body = await asyncio.to_thread(lambda: json.dumps(traces.perfetto(trace), separators=(",", ":")).encode())
    name = f"attachment; filename={_stem(trace.shape.graph, session_id)}.json"
    return web.Response(body=body, content_type="application/json", headers={"Content-Disposition": name})


class FaultTraces:
    """Writes a trace into `folder` when a stage of a session fails; the oldest of too many are deleted."""

    def __init__(self, folder: Path, desk: Desk, clock: Clock) -> None:
        self.folder = folder
        self.written = 0
        self._clock = clock
        self._last: dict[str, int] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise StageError(f"traces cannot be kept in {folder}: {e.strerror}") from e
        if not os.access(folder, os.W_OK):
            raise StageError(f"traces cannot be kept in {folder}: it may not be written to")
        desk.on_opened.append(self._watch)
        desk.on_closed.append(self._forget)

    def _forget(self, live: LiveSession | HeadlessSession) -> None:
        self._last.pop(live.id, None)

    def _watch(self, live: LiveSession | HeadlessSession) -> None:
        def told(event: SessionEvent) -> None:
            if event.name in FAULTS:
                self._keep(live, f"{event.node} {event.name}")

        live.session.listen(told)

    def _keep(self, live: LiveSession | HeadlessSession, reason: str) -> None:
        now = self._clock.now()
        if live.session.recorder is None or now - self._last.get(live.id, -APART) < APART:
            return
        self._last[live.id] = now
        trace = traces.take(live.session, reason)
        stamp = datetime.fromtimestamp(self._clock.wall() / SECOND, UTC).strftime("%Y%m%dT%H%M%S")
        path = self.folder / f"{_stem(trace.shape.graph, live.id)}-{stamp}.json.gz"
        task = of_nobody(self._write(trace, path), f"{live.id}/trace")  # the stage's own end must not end it
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _write(self, trace: traces.Trace, path: Path) -> None:
        try:
            await asyncio.to_thread(self._save, trace, path)
        except OSError as e:
            log.error("the trace of session %s could not be written: %s", trace.session, e)
        else:
            self.written += 1
            log.info("session %s: %s; trace in %s", trace.session, trace.reason, path)

    def _save(self, trace: traces.Trace, path: Path) -> None:
        traces.save(trace, path)
        path.chmod(0o600)
        kept = sorted(self.folder.glob("*.json.gz"), key=lambda p: p.stat().st_mtime)
        for old in kept[:-MOST]:
            old.unlink(missing_ok=True)


def _stem(graph: str, session_id: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", f"{graph}-{session_id[:10]}")
