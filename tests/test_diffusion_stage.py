"""diffusion.stream: live parameters, mailbox, warming, overload, pause, and what cameras can do wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import MagicMock

import numpy as np
import pytest
import torch
from diffusion_rig import Rig, picture, play, random_weights
from diffusion_sessions import Fixed
from fakes import InlinePool, feed
from penstock.pipeline.clock import MS, NEVER, SECOND
from penstock.pipeline.degrade import parse_ladder
from penstock.pipeline.frame import Gap, VideoFrame
from penstock.pipeline.pixels import i420_from_rgb
from penstock.pipeline.rows import Admission, Demand, Row, RowModel
from penstock.pipeline.stage import DeadlineMissed, StageError
from penstock.stages.diffusion import DiffusionStream
from penstock.stages.diffusion_params import DiffusionOptions
from pydantic import ValidationError

torch.set_num_threads(1)
T = TypeVar("T")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_weights(tmp_path_factory.mktemp("weights"))


def test_pictures_come_out_drawn_with_their_own_times(weights: Path) -> None:
    async def scenario(rig: Rig) -> None:
        for i in range(4):
            await rig.show(picture(i))

    rig = play(Rig(weights, prompt="neon"), scenario)
    assert [f.pts for f in rig.shown] == [33 * MS * i for i in range(1, 5)]
    assert all(f.image.shape == (48, 64, 3) for f in rig.shown)
    assert not np.array_equal(rig.shown[0].image, picture(0))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_new_prompt_shows_within_two_frames_without_a_stall(weights: Path, steps: int) -> None:
    def run(prompt: str) -> list[VideoFrame]:
        async def scenario(rig: Rig) -> None:
            for _ in range(4):
                await rig.show(picture())
            await rig.set(prompt=prompt)
            for _ in range(4):
                await rig.show(picture())

        return play(Rig(weights, prompt="pencil", steps=steps), scenario).shown

    kept, changed = run("pencil"), run("neon cyan")
    assert len(kept) == len(changed) == 8
    differ = [not np.array_equal(a.image, b.image) for a, b in zip(kept, changed, strict=True)]
    assert differ[:4] == [False] * 4
    assert all(differ[5:])  # the second picture after the change at the latest


@pytest.mark.parametrize(
    "change",
    [
        {"negative_prompt": "oil"},
        {"strength": 0.3},
        {"steps": 3},
        {"guidance": 2.0},
        {"seed": 9},
        {"blend_prompt": "oil", "blend": 0.5},
    ],
)
def test_every_parameter_changes_the_picture_while_it_runs(weights: Path, change: dict[str, Any]) -> None:
    async def scenario(rig: Rig) -> None:
        for _ in range(6):
            await rig.show(picture())
        await rig.set(**change)
        for _ in range(4):
            await rig.show(picture())

    rig = play(Rig(weights, prompt="neon", guidance=1.5, steps=2), scenario)
    assert len(rig.shown) == 10
    assert not np.array_equal(rig.shown[5].image, rig.shown[9].image)


def test_strength_zero_gives_the_camera_picture_back(weights: Path) -> None:
    rig = play(Rig(weights, prompt="neon", strength=0.0), lambda r: r.show(picture(3)))
    assert np.array_equal(rig.shown[0].image, picture(3))


class SlowPool(InlinePool):
    """Work waits until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()

    async def call(self, fn: Callable[..., T], *args: object, deadline: int = NEVER) -> T:
        await self.gate.wait()
        return fn(*args)

    async def run(self, model: str | RowModel, row: Row) -> Any:
        await self.gate.wait()
        return await super().run(model, row)


def test_pictures_pass_through_while_the_model_warms_up(weights: Path) -> None:
    async def run() -> None:
        pool = SlowPool()
        rig = Rig(weights, pool=pool, prompt="neon")
        await rig.start()
        await rig.show(picture(1))
        assert np.array_equal(rig.shown[0].image, picture(1))
        pool.gate.set()
        await rig.rest()
        await rig.show(picture(1))
        assert not np.array_equal(rig.shown[1].image, picture(1))
        assert [e for e, _ in rig.ctx.events] == ["diffusion.ready"]
        await rig.stage.close()

    asyncio.run(run())


def test_the_mailbox_keeps_the_newest_only(weights: Path) -> None:
    async def run() -> None:
        pool = SlowPool()
        pool.gate.set()
        rig = Rig(weights, pool=pool, prompt="neon")
        await rig.start()
        pool.gate.clear()
        for i in range(10):  # 120 fps, say, while one picture is being drawn
            await rig.show(picture(i), step_ms=8)
        pool.gate.set()
        await rig.rest()
        assert [f.pts for f in rig.shown] == [8 * MS, 80 * MS]
        assert rig.stage.replaced == 8
        await rig.stage.close()

    asyncio.run(run())


class LadderPool(InlinePool):
    """Stands on a level of its ladder as told; keeps what it was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = parse_ladder(DiffusionStream.degrade)
        self.asked: list[Demand] = []
        self.sizes: list[tuple[int, int]] = []
        self.further: list[int] = []

    def stand(self, level: int) -> None:
        self.quality = self.levels[level]

    def admit(self, demand: Demand) -> Admission:
        self.asked.append(demand)
        return Admission("granted")

    async def run(self, model: str | RowModel, row: Row) -> Any:
        self.sizes.append(row.state.size)
        self.further.append(row.further)
        return await super().run(model, row)


def test_each_rung_does_less_and_the_way_back_does_more(weights: Path) -> None:
    pool = LadderPool()
    assert len(pool.levels) == 8

    async def scenario(rig: Rig) -> None:
        async def run_for(level: int, frames: int = 8) -> int:
            pool.stand(level)
            before = len(rig.shown)
            for _ in range(frames):
                await rig.show(picture())
            return len(rig.shown) - before

        assert await run_for(0) == 8
        assert (pool.sizes[-1], pool.further[-1]) == ((48, 64), 1)
        assert await run_for(1) == 6  # three pictures of four
        assert await run_for(2) == 6
        assert pool.further[-1] == 0  # one step
        await run_for(4)
        assert pool.sizes[-1] == (48, 48)
        assert await run_for(5) == 4
        assert await run_for(6) == 4
        assert pool.sizes[-1] == (32, 32)
        drawn = len(pool.sizes)
        assert await run_for(7) == 8  # all pass through
        assert len(pool.sizes) == drawn
        assert all(np.array_equal(f.image, picture()) for f in rig.shown[-8:])
        assert await run_for(0) == 8
        assert (pool.sizes[-1], pool.further[-1]) == ((48, 64), 1)
        assert not any(np.array_equal(f.image, picture()) for f in rig.shown[-8:])

    play(Rig(weights, pool=pool, prompt="neon", steps=2), scenario)


def test_the_pool_is_asked_for_the_measured_rate_and_the_steps(weights: Path) -> None:
    pool = LadderPool()

    async def scenario(rig: Rig) -> None:
        for _ in range(61):
            await rig.show(picture(0, 16, 16), step_ms=100)
        await rig.set(steps=3)
        await rig.set(prompt="neon")

    play(Rig(weights, pool=pool, prompt="oil", skip_still=True), scenario)
    assert [(round(d.rate_hz), d.forwards) for d in pool.asked] == [(10, 1), (10, 3)]


def test_a_model_of_chunks_asks_for_chunks(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = LadderPool()
    model = Fixed()

    def chunk(entered: int) -> int:
        return 4 if entered else 1

    monkeypatch.setattr(model, "chunk", chunk)
    monkeypatch.setattr("penstock.models.stream_models.load", MagicMock(return_value=model))

    async def scenario(rig: Rig) -> None:
        for _ in range(20):
            await rig.show(picture(0, 16, 16), step_ms=50)

    play(Rig(weights, pool=pool, prompt="oil", steps=2), scenario)
    assert [(round(d.rate_hz, 1), d.forwards) for d in pool.asked] == [(5.0, 2)]  # 20 pictures a second


class MissingPool(InlinePool):
    """Misses every deadline while told to."""

    late = False

    async def run(self, model: str | RowModel, row: Row) -> Any:
        if self.late:
            raise DeadlineMissed("late")
        return await super().run(model, row)


def test_a_missed_picture_leaves_no_trace(weights: Path) -> None:
    pool = MissingPool()

    async def scenario(rig: Rig) -> None:
        await rig.show(picture(1))
        pool.late = True
        for i in range(5):
            await rig.show(picture(50 + i), deadline=rig.clock.now() + SECOND)
        pool.late = False
        await rig.show(picture(2))
        assert rig.stage.late == 5

    async def without(rig: Rig) -> None:
        await rig.show(picture(1))
        await rig.show(picture(2))

    rig = play(Rig(weights, pool=pool, prompt="neon", steps=2), scenario)
    same = play(Rig(weights, prompt="neon", steps=2), without)
    assert [np.array_equal(a.image, b.image) for a, b in zip(rig.shown, same.shown, strict=True)] == [
        True
    ] * 2


def test_a_late_picture_is_not_shown(weights: Path) -> None:
    async def run() -> None:
        pool = SlowPool()
        pool.gate.set()
        rig = Rig(weights, pool=pool, prompt="neon")
        await rig.start()
        pool.gate.clear()
        await rig.show(picture(), deadline=rig.clock.now() + 100 * MS)
        rig.clock.time += SECOND
        pool.gate.set()
        await rig.rest()
        assert rig.shown == []
        assert rig.stage.late == 1
        await rig.stage.close()

    asyncio.run(run())


def test_after_a_pause_nothing_old_is_shown(weights: Path) -> None:
    async def scenario(rig: Rig) -> None:
        for i in range(3):
            await rig.show(picture(i))
        await rig.set(paused=True)
        for i in range(3, 6):
            await rig.show(picture(i))
        assert len(rig.shown) == 3
        await rig.set(paused=False)
        await rig.show(picture(9))

    rig = play(Rig(weights, prompt="oil", steps=2), scenario)
    fresh = play(Rig(weights, prompt="oil", steps=2), lambda r: r.show(picture(9)))
    assert len(rig.shown) == 4
    assert np.array_equal(rig.shown[3].image, fresh.shown[0].image)  # nor does anything old shine through


def test_a_still_scene_rests_and_new_parameters_wake_it(weights: Path) -> None:
    async def scenario(rig: Rig) -> None:
        for _ in range(6):
            await rig.show(picture())
        assert rig.stage.skipped == 5
        assert np.array_equal(rig.shown[0].image, rig.shown[5].image)
        await rig.set(prompt="neon")
        await rig.show(picture())
        assert not np.array_equal(rig.shown[5].image, rig.shown[6].image)

    rig = play(Rig(weights, prompt="oil", skip_still=True), scenario)
    assert len(rig.shown) == 7


def test_odd_sizes_and_a_size_that_changes(weights: Path) -> None:
    sizes = [(48, 64), (47, 63), (1, 1), (720, 16), (33, 100), (48, 64)]

    async def scenario(rig: Rig) -> None:
        for height, width in sizes:
            await rig.show(picture(0, height, width))

    rig = play(Rig(weights, prompt="neon", steps=2), scenario)
    assert [(f.height, f.width) for f in rig.shown] == sizes


def test_black_pictures_one_fps_and_i420(weights: Path) -> None:
    async def scenario(rig: Rig) -> None:
        for _ in range(3):
            await rig.show(np.zeros((48, 64, 3), np.uint8), step_ms=1000)
        rig.clock.time += 33 * MS
        frame = VideoFrame(pts=rig.clock.now(), image=i420_from_rgb(picture()), format="i420")
        await feed(rig.stage, "video", frame, rig.out)
        await rig.rest()

    rig = play(Rig(weights, prompt="oil", steps=4), scenario)
    assert len(rig.shown) == 4  # at 1 fps too, each picture is finished before the next comes
    assert rig.shown[3].image.shape == (48, 64, 3)


@pytest.mark.parametrize("port", ["video", "prompt"])
def test_a_long_gap_of_pictures_forgets_the_scene_before(weights: Path, port: str) -> None:
    async def scenario(rig: Rig) -> None:
        for i in range(4):
            await rig.show(picture(i))
        now = rig.clock.now()
        rig.stage.gap(port, Gap(pts=now, until=now + 10 * SECOND), rig.out)
        await rig.show(picture(9))

    rig = play(Rig(weights, prompt="oil"), scenario)
    fresh = play(Rig(weights, prompt="oil"), lambda r: r.show(picture(9)))
    assert np.array_equal(rig.shown[4].image, fresh.shown[0].image) == (port == "video")


def test_ten_thousand_characters_of_prompt(weights: Path) -> None:
    long = play(Rig(weights, prompt="neon glow " * 1000), lambda r: r.show(picture()))
    short = play(Rig(weights, prompt="neon glow"), lambda r: r.show(picture()))
    assert np.array_equal(long.shown[0].image, short.shown[0].image)


def test_in_a_file_run_every_picture_is_drawn_in_order(weights: Path) -> None:
    async def scenario(rig: Rig) -> None:
        for i in range(5):
            await rig.show(picture(i))
        await rig.stage.finish(rig.out)

    rig = play(Rig(weights, realtime=False, prompt="oil", steps=3), scenario)
    assert [f.pts for f in rig.shown] == [33 * MS * i for i in range(1, 6)]


def test_a_broken_checkpoint_is_told_in_words_to_the_supervisor(weights: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(weights.read_bytes()[:5000])

    async def run() -> None:
        rig = Rig(broken, prompt="oil")
        await rig.start()
        with pytest.raises(StageError, match=r"^\S*broken\.safetensors is no readable safetensors file"):
            await rig.show(picture())
        await rig.stage.close()
        rig = Rig(broken, realtime=False)
        with pytest.raises(StageError, match="broken"):
            await rig.start()
        await rig.stage.close()

    asyncio.run(run())


def test_unknown_models_and_impossible_combinations_are_named(weights: Path) -> None:
    with pytest.raises(ValidationError, match="unknown model 'dreamer'; there are: tiny-restyle"):
        DiffusionOptions(model="dreamer")
    rig = Rig(weights, realtime=False)
    rig.stage.options = DiffusionOptions(engine="onnx", precision="bf16")
    with pytest.raises(StageError, match="engine onnx runs fp32 on the cpu"):
        asyncio.run(rig.stage.setup())
