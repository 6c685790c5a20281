from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch
from fakes import Collected, FakeContext
from penstock.models.ring_kv import RingLayer
from penstock.models.rolling_kv import Budget, RollingKv
from penstock.models.toy_model import WINDOW, ToyModel
from penstock.models.toy_questions import Moment, encode, moment, question
from penstock.models.toy_vlm import ToyVlm
from penstock.models.toy_world import COLOURS, DIRECTIONS, Happening, World
from penstock.models.vlm_memory import Memory
from penstock.models.vlm_session import Runner, Take, VlmSession
from penstock.pipeline.clock import SECOND
from penstock.pipeline.units import Nanoseconds
from penstock.pipeline.virtual_loop import run_virtual
from penstock.stages.world import SyntheticWorld, WorldFrame, WorldOptions

torch.set_num_threads(1)


def test_a_world_is_the_same_for_the_same_seed_and_bounded() -> None:
    a, b = World(3), World(3)
    for _ in range(50):
        x, y = a.step(), b.step()
        assert np.array_equal(x.image, y.image)
        assert x.things == y.things
        assert len(x.things) <= 3
        assert len({t.colour for t in x.things}) == len(x.things)


@pytest.mark.parametrize("seed", range(5))
def test_what_comes_is_there_and_what_leaves_is_gone(seed: int) -> None:
    world = World(seed, rate=0.5)
    names = {t.name for t in world.step().things}
    for _ in range(60):
        tick = world.step()
        now = {t.name for t in tick.things}
        if tick.happening is None:
            assert now == names
        elif tick.happening.what == "came":
            assert now - names == {tick.happening.name}
        else:
            assert names - now == {tick.happening.name}
        names = now


def test_directions_are_those_that_things_move_in() -> None:
    world = World(1, rate=0)
    before = {t.colour: t for t in world.step().things}
    for _ in range(40):
        for t in world.step().things:
            dx, dy = t.x - before[t.colour].x, t.y - before[t.colour].y
            way = (
                "still"
                if not (dx or dy)
                else ("left" if dx < 0 else "right")
                if dx
                else ("up" if dy < 0 else "down")
            )
            assert DIRECTIONS[t.direction] == way
            before[t.colour] = t


def test_questions_have_answers_in_the_toys_own_words() -> None:
    rng = np.random.default_rng(0)
    kinds: set[str] = set()
    for seed in range(30):
        world, last, past = World(seed, rate=0.5), None, list[Happening]()
        for _ in range(8):
            tick = world.step()
            now: Moment = moment(tick, last)
            last = tick.image
            past += [tick.happening] if tick.happening else []
            kind, q, a = question(rng, now, past)
            kinds.add(kind)
            assert encode(q)
            assert encode(a)
            if kind == "left":
                gone = [h.name for h in past if h.what == "left"]
                assert a == (gone[-1] if gone else "nothing")
    assert len(kinds) == 12
    with pytest.raises(ValueError, match="does not know the word 'are'") as refused:
        encode("how many shapes are there")
    examples = str(refused.value).split("'")[3::2]
    assert len(examples) == 2
    assert all(encode(e) for e in examples), "it understands what it proposes"


def test_the_decoder_says_the_same_in_one_pass_and_token_by_token_in_the_rolling_cache() -> None:
    torch.manual_seed(0)
    decoder = ToyVlm().decoder.eval().requires_grad_(False)
    x = torch.randn(1, 20, 128) * 0.5
    whole = decoder(x, torch.arange(20))
    cache = RollingKv(decoder.rope, [RingLayer(40) for _ in decoder.blocks], Budget(40))
    parts = [
        decoder(x[:, a : a + n], cache.reserve("frame", n)[0], cache=cache)
        for a, n in ((0, 7), (7, 1), (8, 12))
    ]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-4)


def test_an_untrained_stream_is_bounded() -> None:
    torch.manual_seed(0)
    model = ToyModel(ToyVlm().eval().requires_grad_(False))
    runner, session = Runner(model), VlmSession(model, Memory(120, 24, pictures=WINDOW))
    world = World(0)
    sizes: set[int] = set()
    for i in range(60):
        take = Take(session, image=torch.from_numpy(world.step().image).permute(2, 0, 1), at=i)
        (result,) = runner.forward([take])
        assert runner.commit(take, result)
        assert result.silence is not None
        if i % 4 == 0:
            words = Take(session, ids=torch.tensor(encode("red circle left")))
            runner.commit(words, runner.forward([words])[0])
        sizes.add(session.nbytes)
        assert sum(s.kind == "frame" for s in session.cache.window) <= WINDOW
        assert session.cache.visible <= 120
    assert len(sizes) <= 10, "the text tier fills, then nothing grows"


def test_the_source_sends_pictures_and_the_truth() -> None:
    stage, out = (
        SyntheticWorld(WorldOptions(duration=Nanoseconds(10 * SECOND), scale=4, rate=0.5)),
        Collected(),
    )
    stage.ctx = FakeContext(realtime=False)
    run_virtual(stage.run(out))
    frames = out.of("video")
    assert [f.pts for f in frames] == [i * SECOND // 2 for i in range(20)]
    assert all(isinstance(f, WorldFrame) and f.image.shape == (192, 192, 3) for f in frames)
    truth = out.of("truth")
    assert truth
    assert all(e.name in ("came", "left") and e.fields["thing"].split()[0] in COLOURS for e in truth)


def test_in_a_file_run_the_world_has_an_end() -> None:
    stage, out = SyntheticWorld(WorldOptions(scale=1)), Collected()
    stage.ctx = FakeContext(realtime=False)
    run_virtual(stage.run(out))
    assert [f.pts for f in out.of("video")] == [i * SECOND // 2 for i in range(20)]


def test_in_real_time_it_keeps_its_beat() -> None:
    stage, out = SyntheticWorld(WorldOptions(duration=Nanoseconds(3 * SECOND))), Collected()
    context = FakeContext()
    stage.ctx = context
    asyncio.run(stage.run(out))
    assert context.clock.now() == 5 * SECOND // 2
