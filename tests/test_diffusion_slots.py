"""Sizes and streams that are ready before pictures come: nothing is compiled or captured under a live session."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from diffusion_rig import Rig, picture, play, random_weights
from fakes import InlinePool
from penstock.models.static_rows import StaticRows
from penstock.models.stream_model import Entry, Settings
from penstock.models.tiny_restyle import TinyRestyle, load_net
from penstock.pipeline.clock import NEVER
from penstock.pipeline.rows import Row
from penstock.stages.diffusion_params import DiffusionOptions
from penstock.stages.diffusion_rows import DiffusionRows, Step
from penstock.stages.diffusion_slots import slots_of
from pydantic import ValidationError

torch.set_num_threads(1)
T = TypeVar("T")
SIZE = (48, 64)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_weights(tmp_path_factory.mktemp("weights"))


def capturing(weights: Path) -> tuple[TinyRestyle, StaticRows]:
    """The model as on a GPU, but that the CPU stands in for its graphs: fixed numbers of rows, each counted."""
    net = load_net(weights)
    static = StaticRows(net)
    return TinyRestyle(net, forward=static), static


def drawn(rows: DiffusionRows, streams: list[Any], count: int) -> list[Any]:
    results: list[Any] = []
    for t in range(count):
        work = [Row(Step(Entry((picture(t),), (t,)), s.scene), state=s) for s in streams]
        results += [rows.commit(r, out) for r, out in zip(work, rows.forward(work), strict=True)]
    return results


def test_a_prepared_size_asks_for_no_new_capture_whoever_comes(weights: Path) -> None:
    model, static = capturing(weights)
    rows = DiffusionRows(model)
    assert model.captures
    assert not rows.slots.ready(SIZE)
    rows.slots.prepare(SIZE, Settings("neon"), most=4, count=2)
    assert rows.slots.ready(SIZE)
    known = set(static.shapes)
    assert sorted(shape[0][0][0] for shape in known) == [
        1,
        2,
        3,
        4,
        6,
        8,
    ]  # each of four rows with a negative
    wishes = [
        Settings("oil", steps=1),
        Settings("pencil", steps=1, guidance=2.0, negative_prompt="neon"),
        Settings("comic", steps=1, seed=5),
        Settings("sepia", steps=1, guidance=2.0, negative_prompt="oil"),
    ]
    for count in range(1, 5):
        drawn(rows, [rows.stream(SIZE, w) for w in wishes[:count]], 2)
    assert static.shapes == known


def test_a_stream_that_was_left_draws_for_the_next_session_as_a_new_one(weights: Path) -> None:
    model, _ = capturing(weights)
    rows = DiffusionRows(model)
    rows.slots.prepare(SIZE, Settings("neon"), most=1, count=1)
    first = rows.stream(SIZE, Settings("oil", steps=1))
    assert rows.slots.idle == {SIZE: 0}
    drawn(rows, [first], 3)
    rows.leave(first)
    assert rows.slots.idle == {SIZE: 1}
    again = rows.stream(SIZE, Settings("pencil", steps=1))
    assert again.state is first.state
    fresh = DiffusionRows(capturing(weights)[0])
    expected = drawn(fresh, [fresh.stream(SIZE, Settings("pencil", steps=1))], 3)
    for (a,), (b,) in zip(drawn(rows, [again], 3), expected, strict=True):
        assert np.array_equal(a.picture, b.picture)


def test_what_was_on_its_way_when_a_session_left_reaches_nobody(weights: Path) -> None:
    model, _ = capturing(weights)
    rows = DiffusionRows(model)
    rows.slots.prepare(SIZE, Settings("neon"), most=1, count=1)
    old = rows.stream(SIZE, Settings("oil", steps=1))
    row = Row(Step(Entry((picture(1),), ("old",)), old.scene), state=old)
    result = rows.forward([row])[0]
    rows.leave(old)
    new = rows.stream(SIZE, Settings("oil", steps=1))
    assert rows.commit(row, result) == []
    assert not new.state.previous


def test_no_more_streams_wait_than_were_asked_for(weights: Path) -> None:
    model, _ = capturing(weights)
    rows = DiffusionRows(model)
    rows.slots.prepare(SIZE, Settings(), most=1, count=1)
    streams = [rows.stream(SIZE, Settings()) for _ in range(3)]
    for stream in streams:
        rows.leave(stream)
    rows.leave(rows.stream((16, 16), Settings()))  # of a size that nobody asked for
    assert rows.slots.idle == {SIZE: 1, (16, 16): 0}


def test_slots_are_one_models_own_and_go_with_it(weights: Path) -> None:
    a, b = (capturing(weights)[0] for _ in range(2))
    rows = DiffusionRows(a)
    assert slots_of(a) is rows.slots
    assert slots_of(b) is not rows.slots
    gone = weakref.ref(a)
    del a, rows
    gc.collect()
    assert gone() is None


class HeldPool(InlinePool):
    """What prepares a size waits in a thread until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    async def call(self, fn: Callable[..., T], *args: object, deadline: int = NEVER) -> T:
        if getattr(fn, "__name__", "") != "prepare":
            return fn(*args)

        def held() -> T:
            self.gate.wait(10)
            return fn(*args)

        return await asyncio.to_thread(held)


async def until(check: Callable[[], bool]) -> None:
    for _ in range(1000):
        if check():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come")


def test_pictures_of_a_new_size_pass_through_until_it_is_ready(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = capturing(weights)
    monkeypatch.setattr("penstock.models.stream_models.load", MagicMock(return_value=model))

    async def scenario() -> None:
        pool = HeldPool()
        pool.gate.set()
        rig = Rig(weights, pool=pool, prompt="neon")
        rig.stage.options = DiffusionOptions(side=64, device="cpu", prepare=("64x48",))
        await rig.start()
        await until(lambda: bool(rig.ctx.events))
        await rig.show(picture(0, 48, 64))
        assert not np.array_equal(rig.shown[-1].image, picture(0, 48, 64))  # ready from the start
        pool.gate.clear()
        for _ in range(3):
            await rig.show(picture(1, 64, 32))
            assert np.array_equal(rig.shown[-1].image, picture(1, 64, 32))
        pool.gate.set()
        await until(lambda: slots_of(model).ready((64, 32)))
        for _ in range(2):  # the first one may still find the other thread at its end
            await rig.show(picture(1, 64, 32))
            await asyncio.sleep(0.05)
        assert not np.array_equal(rig.shown[-1].image, picture(1, 64, 32))
        assert rig.shown[-1].image.shape == (64, 32, 3)
        await rig.stage.close()

    asyncio.run(scenario())


def test_a_file_waits_for_its_size(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = capturing(weights)
    monkeypatch.setattr("penstock.models.stream_models.load", MagicMock(return_value=model))
    rig = play(Rig(weights, realtime=False, prompt="neon"), lambda r: r.show(picture(2, 32, 32)))
    assert len(rig.shown) == 1
    assert not np.array_equal(rig.shown[0].image, picture(2, 32, 32))


def test_sizes_to_prepare_are_read_and_refused_in_words() -> None:
    options = DiffusionOptions(side=256, prepare=("640x480", "1280x720", "640x480"))
    assert options.sizes([0.5, 1.0], 16) == [(224, 288), (112, 144), (192, 336), (96, 176)]
    with pytest.raises(ValidationError, match="'640' is no size of a camera; write WIDTHxHEIGHT"):
        DiffusionOptions(prepare=("640",))
