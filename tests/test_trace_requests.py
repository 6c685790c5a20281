"""Traces of a server's sessions: over HTTP, by the command line, and of those where a stage failed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest
from client import serving, until
from graphs import compile_test
from penstock.pipeline import trace as traces
from penstock.pipeline.clock import MonotonicClock
from penstock.pipeline.inspect_commands import fetch
from penstock.pipeline.stage import StageError
from penstock.transport.traces import FaultTraces
from typer.testing import CliRunner

pytestmark = pytest.mark.net

GRAPH = """
penstock: 1
graph: steady
nodes:
  mic:  {use: test.audio, frames: 100000}
  work: {use: test.work, in: mic.audio, fail_at: %d}
  out:  {use: test.sink, in: work.audio}
"""


def test_a_trace_isfetched_and_replayed(tmp_path: Path) -> None:
    async def main() -> bytes:
        async with serving({"steady": compile_test(GRAPH % -1)}) as server:
            async with aiohttp.ClientSession(server.url) as http:
                await http.post("/sessions", json={"graph": "steady"})
                async with http.post("/sessions/h-none/trace") as answer:
                    assert answer.status == 404
            (live,) = server.desk.running()
            await until(lambda: live.session.runners["out"].processed > 10)
            with pytest.raises(StageError, match="0 sessions begin with 'nothing': name one of: h-"):
                await fetch(server.url, "", "nothing")
            name, content = await fetch(server.url, "", "h-")
            assert name == live.id
            return content

    path = tmp_path / "t.json"
    path.write_bytes(asyncio.run(main()))
    assert traces.load(path).shape.graph == "steady"
    from penstock.pipeline.cli import app

    again = tmp_path / "again.json.gz"
    result = CliRunner().invoke(app, ["replay", str(path), "--out", str(again)])
    assert "mic.audio->work.audio" in result.output
    assert len(traces.load(again).events) > 20


def test_a_failing_stage_leaves_a_trace(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving({"steady": compile_test(GRAPH % 5)}) as server:
            keeper = FaultTraces(tmp_path, server.desk, MonotonicClock())
            async with aiohttp.ClientSession(server.url) as http:
                await http.post("/sessions", json={"graph": "steady"})
            await until(lambda: keeper.written > 0)

    asyncio.run(main())
    (path,) = tmp_path.glob("*.json.gz")
    trace = traces.load(path)
    assert trace.reason == "work restart"
    assert "restart" in trace.names
    assert path.stat().st_mode & 0o077 == 0


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    async def main() -> None:
        async with serving({"steady": compile_test(GRAPH % -1)}) as server:
            FaultTraces(tmp_path / "file" / "under", server.desk, MonotonicClock())

    with pytest.raises(StageError, match="traces cannot be kept in"):
        asyncio.run(main())
