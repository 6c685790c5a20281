from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from penstock.pipeline import process_pool
from penstock.pipeline.clock import MS, SECOND, MonotonicClock
from penstock.pipeline.errors import LastingError
from penstock.pipeline.pool_threads import ThreadDriver
from penstock.pipeline.process_pool import ProcessBackend
from penstock.pipeline.row_pool import RowPool
from penstock.pipeline.rows import DeadlineMissed, ModelSpec, PoolFailed, Row
from penstock.pipeline.shared_arrays import create, flatten, layout, release, restore, views, write
from penstock.pipeline.stage import StageError
from penstock.pipeline.thread_pool import ThreadPool
from penstock.pipeline.worker_process import WorkerProcess

ONES = np.ones((2, 3), np.float32)


async def with_pool(
    use: Callable[[RowPool, ProcessBackend], Awaitable[Any]], *, workers: int = 1, hang: int = SECOND
) -> Any:
    """A pool of real processes with `Remote` under "m"; everything is gone afterwards."""
    clock = MonotonicClock()
    threads = ThreadPool("p", 2, clock)
    backend = ProcessBackend("p", workers, hang=hang, clock=clock)
    pool = RowPool("p", clock, backend, ThreadDriver(threads, workers, clock), workers=workers)
    try:
        await pool.load(ModelSpec("m", "row_models:remote", {"gain": 2.0}))
        async with asyncio.timeout(60):
            return await use(pool, backend)
    finally:
        pool.close()
        threads.close()


def row(session: str = "a", state: dict[str, Any] | None = None, **fields: Any) -> Row:
    payload = {"x": fields.pop("x", ONES)} | {
        k: fields.pop(k) for k in ("do", "wide", "again") if k in fields
    }
    return Row(payload, state={} if state is None else state, session=session, epoch=0, **fields)


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


async def warmed(pool: RowPool) -> None:
    """Past the first forwards, which may take long."""
    for _ in range(3):
        await pool.run("m", row("warm"))


# ---------------------------------------------------------------- working


def test_rows_run_in_another_process_with_their_state() -> None:
    async def use(pool: RowPool, backend: ProcessBackend) -> None:
        state: dict[str, Any] = {}
        held = state
        first = await pool.run("m", row("a", state))
        second = await pool.run("m", row("a", state))
        assert first["pid"] == second["pid"] == backend.workers[0].process.pid != os.getpid()
        assert np.array_equal(first["sum"], ONES * 2)
        assert np.array_equal(second["sum"], ONES * 4), "the state went along"
        assert held is state
        assert held["count"] == 2
        assert first["session"] == "a"

    asyncio.run(with_pool(use))


def test_rows_of_several_shapes_and_sessions_do_not_mix() -> None:
    async def use(pool: RowPool, backend: ProcessBackend) -> None:
        xs = [np.full((i % 3 + 1, 2), i, np.float32) for i in range(12)]
        got = await asyncio.gather(*(pool.run("m", row(f"s{i}", x=x)) for i, x in enumerate(xs)))
        for i, (x, result) in enumerate(zip(xs, got, strict=True)):
            assert result["session"] == f"s{i}"
            assert np.array_equal(result["sum"], x * 2)

    asyncio.run(with_pool(use, workers=2))


def test_a_result_larger_than_the_block_gets_a_larger_one() -> None:
    async def use(pool: RowPool, backend: ProcessBackend) -> None:
        for nbytes in (10, 300_000, 2_000_000, 5):
            got = await pool.run("m", row("a", wide=nbytes, x=np.zeros((nbytes, 1), np.float32)))
            assert got["wide"].nbytes == nbytes

    asyncio.run(with_pool(use))


def test_a_row_can_go_again_in_another_process() -> None:
    async def use(pool: RowPool, backend: ProcessBackend) -> None:
        state: dict[str, Any] = {}
        got = await pool.run("m", row("a", state, again=True))
        assert np.array_equal(got["sum"], ONES * 6)  # 2·1, then 2·2 + 2
        assert state["count"] == 2

    asyncio.run(with_pool(use))


def test_what_cannot_be_sent_is_named() -> None:
    async def use(pool: RowPool, backend: ProcessBackend) -> None:
        with pytest.raises(PoolFailed, match=r"the row\['payload'\]\['do'\] is a set"):
            await pool.run("m", row(do={1}))
        with pytest.raises(StageError, match="name the factory of 'f' as"):
            await pool.load(ModelSpec("f", lambda: None))  # type: ignore[arg-type,return-value]
        with pytest.raises(StageError, match="cannot be loaded: AttributeError"):
            await pool.load(ModelSpec("g", "row_models:nothing"))
        assert (await pool.run("m", row()))["sum"][0, 0] == 2, "the process is as good as before"

    asyncio.run(with_pool(use))


# ---------------------------------------------------------------- failing


def test_a_broken_checkpoint_is_told_once_and_not_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_pool, "RELOADS", (MS,))
    file = tmp_path / "weights"
    file.write_text("garbage")
    spec = ModelSpec("c", "row_models:checkpoint", {"path": str(file)})
    why = f"{file} is no checkpoint"

    async def use(pool: RowPool, backend: ProcessBackend) -> None:
        with pytest.raises(LastingError, match=f"^model 'c' cannot be loaded: {why}$"):
            await pool.load(spec)
        file.write_text("weights")
        await pool.load(spec)
        first = await pool.run("c", row())
        file.write_text("garbage")
        replaced, loop = asyncio.Event(), asyncio.get_running_loop()
        backend.attach(lambda: loop.call_soon_threadsafe(replaced.set))
        os.kill(first["pid"], signal.SIGKILL)
        await replaced.wait()
        assert (await pool.run("m", row()))["pid"] != first["pid"], "other models are not held up"
        for _ in range(3):
            with pytest.raises(LastingError, match=f"model 'c' cannot be loaded: {why}"):
                await pool.run("c", row())
        with pytest.raises(LastingError, match=why):
            await pool.load(spec)
        assert backend.restarts == 1
        told = [r.getMessage() for r in caplog.records if why in r.getMessage()]
        assert told == [f"pool p: model c cannot be loaded again: {why}"]
        file.write_text("weights")
        await pool.load(spec)
        assert (await pool.run("c", row()))["sum"][0, 0] == 1, "mended, the next session has it"

    asyncio.run(with_pool(use))


def test_rows_go_to_the_processes_that_have_their_model_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_pool, "RELOADS", (MS,))
    file = tmp_path / "weights"
    file.write_text("weights")

    async def use(pool: RowPool, backend: ProcessBackend) -> None:
        await pool.load(ModelSpec("c", "row_models:checkpoint", {"path": str(file)}))
        pids = [worker.process.pid for worker in backend.workers]
        file.write_text("garbage")
        replaced, loop = asyncio.Event(), asyncio.get_running_loop()
        backend.attach(lambda: loop.call_soon_threadsafe(replaced.set))
        os.kill(pids[0], signal.SIGKILL)
        await replaced.wait()
        assert backend.workers[0].broken
        got = await asyncio.gather(*(pool.run("c", row(f"s{i}")) for i in range(6)))
        assert {end["pid"] for end in got} == {pids[1]}

    asyncio.run(with_pool(use, workers=2))


def test_rows_wait_while_the_file_of_their_model_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process_pool, "RELOADS", (20 * MS,) * 1000)
    file = tmp_path / "weights"
    file.write_text("weights")

    async def use(pool: RowPool, backend: ProcessBackend) -> None:
        await pool.load(ModelSpec("c", "row_models:checkpoint", {"path": str(file)}))
        first = await pool.run("c", row())
        file.write_text("half of it")
        tried, load = asyncio.Event(), WorkerProcess.load
        loop = asyncio.get_running_loop()

        def told(worker: WorkerProcess, spec: ModelSpec) -> None:
            try:
                load(worker, spec)
            except LastingError:
                loop.call_soon_threadsafe(tried.set)
                raise

        monkeypatch.setattr(WorkerProcess, "load", told)
        os.kill(first["pid"], signal.SIGKILL)
        await tried.wait()
        waits = asyncio.create_task(pool.run("c", row()))
        file.write_text("weights")
        assert (await waits)["pid"] != first["pid"]

    asyncio.run(with_pool(use))


def test_an_error_there_fails_its_row_and_keeps_the_process() -> None:
    async def use(pool: RowPool, backend: ProcessBackend) -> None:
        state: dict[str, Any] = {"last": ONES}
        with pytest.raises(PoolFailed, match="ValueError: told to raise"):
            await pool.run("m", row("a", state, do="raise"))
        assert state == {"last": ONES} or list(state) == ["last"]
        await pool.run("m", row("b"))
        assert backend.restarts == 0

    asyncio.run(with_pool(use))


@pytest.mark.parametrize(
    "how",
    ["die", pytest.param("stop", marks=pytest.mark.slow), pytest.param("hang", marks=pytest.mark.slow)],
)
def test_a_process_that_dies_or_hangs_mid_row_is_replaced(how: str) -> None:
    async def use(pool: RowPool, backend: ProcessBackend) -> None:
        await warmed(pool)
        pid = backend.workers[0].process.pid
        states: dict[str, dict[str, Any]] = {name: {} for name in "abc"}
        await pool.run("m", row("b", states["b"]))
        guilty = asyncio.create_task(pool.run("m", row("a", states["a"], do=how)))
        others = [asyncio.create_task(pool.run("m", row(name, states[name]))) for name in "bc"]
        with pytest.raises(PoolFailed, match=r"WorkerLost: the process of pool 'p' (died|hung)"):
            await guilty
        b, c = await asyncio.gather(*others)
        assert np.array_equal(b["sum"], ONES * 4), "its state from before the crash was kept"
        assert np.array_equal(c["sum"], ONES * 2)
        assert states["a"] == {}
        assert b["pid"] != pid
        assert backend.restarts >= 1
        assert gone(pid), "reaped"

    asyncio.run(with_pool(use))


def test_live_rows_do_not_wait_for_a_new_process() -> None:
    async def use(pool: RowPool, backend: ProcessBackend) -> None:
        await warmed(pool)
        with pytest.raises(PoolFailed):
            await pool.run("m", row("a", do="die"))
        clock = MonotonicClock()
        with pytest.raises(DeadlineMissed):
            await pool.run("m", row("b", deadline=clock.now() + 30 * MS))
        assert (await pool.run("m", row("b")))["sum"][0, 0] == 2

    asyncio.run(with_pool(use))


def test_a_process_killed_while_idle_is_replaced() -> None:
    async def use(pool: RowPool, backend: ProcessBackend) -> None:
        pid = (await pool.run("m", row()))["pid"]
        replaced = asyncio.Event()
        loop = asyncio.get_running_loop()
        backend.attach(lambda: loop.call_soon_threadsafe(replaced.set))
        os.kill(pid, signal.SIGKILL)
        await replaced.wait()
        assert backend.restarts == 1
        assert (await pool.run("m", row()))["pid"] != pid

    asyncio.run(with_pool(use))


@pytest.mark.slow
def test_memory_returns() -> None:
    def blocks() -> set[str]:
        return set(os.listdir("/dev/shm"))

    before = blocks()
    pids: list[int] = []

    async def use(pool: RowPool, backend: ProcessBackend) -> None:
        await warmed(pool)
        for _ in range(2):
            with pytest.raises(PoolFailed):
                await pool.run("m", row(do="die", x=np.zeros((500_000, 1), np.float32)))
            await pool.run("m", row(x=np.zeros((500_000, 1), np.float32)))
        assert len(blocks() - before) == 2, "one for requests and one for responses"
        pids.extend(worker.process.pid for worker in backend.workers)

    if not Path("/dev/shm").is_dir():
        pytest.skip("no /dev/shm to look into")
    asyncio.run(with_pool(use))
    gc.collect()
    assert not blocks() - before
    assert all(map(gone, pids))


DAEMON = """
import asyncio, os, sys
from penstock.pipeline.clock import MonotonicClock
from penstock.pipeline.process_pool import ProcessBackend
from penstock.pipeline.rows import ModelSpec
backend = ProcessBackend("p")
backend.load(ModelSpec("m", "row_models:remote"))
print(backend.workers[0].process.pid, flush=True)
os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
def test_workers_end_with_a_daemon_that_was_killed() -> None:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    told = subprocess.run(
        [sys.executable, "-c", DAEMON], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    pid = int(told.stdout)
    ended = threading.Event()
    for _ in range(300):
        if gone(pid) or "State:\tZ" in Path(f"/proc/{pid}/status").read_text():
            return
        ended.wait(0.1)
    pytest.fail(f"worker {pid} still lives 30 s after its daemon")


# ---------------------------------------------------------------- arrays

arrays = hnp.arrays(
    st.sampled_from([np.uint8, np.int16, np.int64, np.float16, np.float32, np.bool_]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**40), 2**40), st.floats(allow_nan=False), st.text(), arrays
)
trees = st.recursive(
    leaves,
    lambda t: st.one_of(
        st.lists(t, max_size=3), st.tuples(t, t), st.dictionaries(st.sampled_from("xyz"), t, max_size=3)
    ),
    max_leaves=8,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return (
            isinstance(b, np.ndarray)
            and a.dtype == b.dtype
            and a.shape == b.shape
            and a.tobytes() == b.tobytes()
        )
    if isinstance(a, dict):
        return isinstance(b, dict) and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(trees)
@settings(max_examples=80, deadline=None)
def test_a_tree_comes_out_as_it_went_in(tree: Any) -> None:
    parts: list[Any] = []
    flat = flatten(tree, parts)
    specs, nbytes = layout(parts)
    block = create(nbytes)
    try:
        write(block, parts, specs)
        out = restore(flat, [view.copy() for view in views(block, specs)])
        assert same(tree, out)
    finally:
        release(block, unlink=True)


def test_marks_and_objects_are_refused() -> None:
    for tree, said in (
        ({"#": 1}, "has the key '#'"),
        ({1: 2}, "has the key 1"),
        ([object()], r"it\[0\] is a object"),
    ):
        with pytest.raises(TypeError, match=said):
            flatten(tree, [])
    with pytest.raises(TypeError, match="array of Python objects"):
        flatten(np.array([None]), [])
