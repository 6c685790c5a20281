"""Ctrl-C during a file run, before its stages are ready."""

from __future__ import annotations

import asyncio
import os
import signal

import graphs
import pytest
from graphs import AudioSource, compile_test
from penstock.pipeline.cli import app
from penstock.pipeline.file_run import run_files
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


def test_a_second_source_is_refused_and_not_dropped_in_silence() -> None:
    result = CliRunner().invoke(app, ["run", "captions", "--in", "a.mp4", "--in", "b.txt", "--out", "x.vtt"])
    assert result.exit_code == 2
    assert "one is taken, not 2" in result.output
