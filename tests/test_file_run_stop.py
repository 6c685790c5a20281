"""Ctrl-C during a file run, before its stages are ready."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from typing import ClassVar

import graphs
import pytest
from graphs import AudioSource, Sink, compile_test
from penstock.pipeline.cli import app
from penstock.pipeline.file_run import run_files
from penstock.pipeline.stage import Outputs
from penstock.pipeline.stopping import completing
from rich.console import Console
from typer.testing import CliRunner

GRAPH = """
penstock: 1
graph: g
nodes:
  mic: {use: test.slow}
  out: {use: test.sink, in: {audio: mic.audio}}
"""


class SlowStart(AudioSource):
    """Loads its model for a minute."""

    closed = 0

    async def setup(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)

    async def close(self) -> None:
        type(self).closed += 1


def test_ctrl_c_does_not_wait_for_models_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(graphs.STAGES, "test.slow", SlowStart)
    plan = compile_test(GRAPH)

    async def within() -> None:
        async with asyncio.timeout(20):
            await run_files(plan, None, [], Console(stderr=True))

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(within())
    assert SlowStart.closed == 1


class Interrupted(AudioSource):
    """Ctrl-C comes while it runs."""

    async def run(self, out: Outputs) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)


class LongEnd(Sink):
    """Writes the end of its file for longer than it may close."""

    ended: ClassVar[list[str]] = []

    async def close(self) -> None:
        begun = threading.Event()

        def end() -> None:
            with completing():
                begun.set()
                time.sleep(0.05)
                self.ended.append("whole")

        threading.Thread(target=end).start()
        begun.wait()


def test_what_was_written_is_told_when_files_have_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(graphs.STAGES, "test.slow", Interrupted)
    monkeypatch.setitem(graphs.STAGES, "test.long", LongEnd)
    plan = compile_test(GRAPH.replace("test.sink", "test.long"))
    report = asyncio.run(run_files(plan, None, [], Console(stderr=True)))
    assert report.stopped
    assert LongEnd.ended == ["whole"]


def test_a_second_source_is_refused_and_not_dropped_in_silence() -> None:
    result = CliRunner().invoke(app, ["run", "captions", "--in", "a.mp4", "--in", "b.txt", "--out", "x.vtt"])
    assert result.exit_code == 2
    assert "one is taken, not 2" in result.output
