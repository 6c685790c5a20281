"""Runs a graph from files to files, as fast as the machine allows, with a progress bar."""

from __future__ import annotations

import asyncio
import importlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from .clock import SECOND, MonotonicClock
from .graph import Plan
from .session import Binding, Session
from .stage import StageError
from .stopping import completed

_ROOT = __name__.split(".")[0]


@dataclass(frozen=True, slots=True)
class Report:
    """What a file run did."""

    media_s: float  # length of the media that went in
    wall_s: float
    frames: int  # that reached the sinks
    written: tuple[str, ...]  # sinks that got something
    missing: tuple[str, ...]  # sinks that did not
    failed: tuple[str, ...]  # nodes that were given up, each with its reason
    stopped: bool  # by a signal, before the media ended
    stats: dict[str, Any]

    @property
    def speed(self) -> float:
        """Times real time."""
        return self.media_s / self.wall_s if self.wall_s else 0.0


def live_ends(
    plan: Plan, source: str | None, sinks: list[str], progress: Callable[[int, int], None], chat: str = ""
) -> dict[str, Binding]:
    """Stand files in for a graph's live ends. progress(pts, duration): ns, duration 0 when unknown.

    Raises: StageError when the graph has no such end, or an end is left without a file.
    """
    bindings: dict[str, Binding] = {}
    has_in, has_out = plan.find("webrtc.in"), plan.find("webrtc.out")
    if has_in and not source:
        raise StageError(
            f"graph {plan.name!r} reads a live client: give --in FILE, URL, device or synthetic:10s"
        )
    if source and not has_in:
        raise StageError(f"graph {plan.name!r} has no webrtc.in for --in to stand in for")
    if has_out and not sinks:
        raise StageError(
            f"graph {plan.name!r} feeds a live client: give --out FILE (.mp4 .mkv .wav .vtt .srt .jsonl)"
        )
    if sinks and not has_out:
        raise StageError(f"graph {plan.name!r} has no webrtc.out for --out to stand in for")
    for sink in sinks:
        if source and _same_file(source, sink):
            raise StageError(f"--out {sink} is the file of --in: writing would destroy what is read")
    if chat and not (source and has_in and plan.uses_port(has_in.name, "text")):
        raise StageError(f"--chat {chat}: graph {plan.name!r} reads no chat from a live client")
    ends = importlib.import_module(f"{_ROOT}.transport.file_ends")
    if source:
        bindings["webrtc.in"] = ends.source(source, progress, chat)
    if sinks:
        bindings["webrtc.out"] = ends.sink(sinks)
    return bindings


def _same_file(a: str, b: str) -> bool:
    try:
        return os.path.samefile(a, b)
    except (OSError, ValueError):  # one is no file, or not yet
        return False


def _is_written(sink: str) -> bool:
    """A URL is taken at its word; a file must be there."""
    return "://" in sink or Path(sink).exists()


async def run_files(
    plan: Plan, source: str | None, sinks: list[str], console: Console, chat: str = ""
) -> Report:
    """Run to the end of the media, or to Ctrl-C. chat: a text file, typed meanwhile. Raises: StageError in words."""
    clock = MonotonicClock()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[at]}"),
    )
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(plan.name, total=None, at="")
        seen = 0

        def progress(pts: int, duration: int) -> None:
            nonlocal seen
            seen = max(seen, pts)
            total = duration / SECOND if duration else None
            bar.update(task, completed=pts / SECOND, total=total, at=f"{pts / SECOND:.1f} s")

        bindings = live_ends(plan, source, sinks, progress, chat)
        session = Session(plan, "run", clock, bindings=bindings, realtime=False)
        loop = asyncio.get_running_loop()
        stopped = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stopped.set)
        start = clock.now()
        stop = asyncio.create_task(stopped.wait(), name="run/stop")
        starting = asyncio.create_task(session.start(), name="run/start")
        await asyncio.wait([starting, stop], return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():  # models take seconds to load
            starting.cancel()
            await asyncio.wait([starting])
            raise KeyboardInterrupt
        await starting
        ended = asyncio.create_task(session.wait(), name="run/wait")
        await asyncio.wait([ended, stop], return_when=asyncio.FIRST_COMPLETED)
        interrupted = not ended.done()
        if interrupted:
            console.print("stopping; what was written so far is kept", highlight=False)
            await session.close("stopped by a signal")
            await ended
            await asyncio.to_thread(completed)  # a long file's end takes longer than a session's close may
        stop.cancel()
    if session.failure:
        raise StageError(session.failure)
    sinks_frames = sum(r.processed for r in session.runners.values() if not r.plan.cls.ports.outputs)
    return Report(
        media_s=seen / SECOND,
        wall_s=(clock.now() - start) / SECOND,
        frames=sinks_frames,
        written=tuple(s for s in sinks if _is_written(s)),
        missing=tuple(s for s in sinks if not _is_written(s)),
        failed=tuple(f"{n}: {r.error}" for n, r in session.runners.items() if r.state == "failed"),
        stopped=interrupted,
        stats=session.stats(),
    )
