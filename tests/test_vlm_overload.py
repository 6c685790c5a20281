"""More pictures than the device can take, for a while: what is given up, how late what remains is, and the way back."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
from tiny_vlms import write_checkpoint
from vlm_overload import FPS, PICTURE, Run, Slow, overload

pytest.importorskip("transformers", reason="the package transformers is not installed")

SECONDS, FROM, UNTIL = 26, 4, 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    where: Path = tmp_path_factory.mktemp("qwen")
    write_checkpoint(where, "qwen2_5_vl", layers=1)
    return str(where)


def accounted(run: Run) -> int:
    counts = run.counts
    return counts.seen + counts.skipped + counts.replaced + counts.merged + counts.missed


@pytest.mark.parametrize("late", ["drop", "merge"])
def test_a_slow_device_gets_fewer_tokens_then_fewer_pictures_never_older_ones(
    folder: str, late: Literal["drop", "merge"]
) -> None:
    run = overload(folder, late, Slow(FROM, UNTIL, 6), SECONDS)  # a whole picture takes 216 ms, every 100
    # before: every picture, whole, at once
    before = run.between(0, FROM)
    assert len(before) == FPS * FROM
    assert {t.tokens for t in before} == {PICTURE + 1}  # and its marker
    # half of the tokens first (HiRED), then half of the pictures, then back: one rung at a time
    levels = [level for _, level in run.rungs]
    assert levels[0] == 1
    assert run.rungs[0][0] < FROM + 2
    assert max(levels) in (1, 2)
    assert levels[-1] == 0
    assert run.rungs[-1][0] < UNTIL + 13
    during = run.between(FROM + 2, UNTIL)
    assert {t.tokens for t in during} == {PICTURE // 2 + 1}
    assert len(during) >= 0.4 * FPS * (UNTIL - FROM - 2), "it goes on watching"
    # what is taken in is never older than a wait of one pass, its own, and one word of an answer
    assert max(t.lag for t in run.taken) < 0.3
    assert run.waiting <= 2
    if late == "merge":
        assert any(t.merged for t in during)
        assert run.counts.merged > 0
    else:
        assert run.counts.replaced > 0
        assert not run.counts.merged
    # afterwards: as before
    after = run.between(SECONDS - 1, SECONDS)
    assert len(after) >= FPS - 1
    assert {t.tokens for t in after} == {PICTURE + 1}
    assert accounted(run) == FPS * SECONDS, "each picture is taken in or counted as lost"
    assert len(run.answers) == run.counts.answered == (SECONDS - 1) // 3
    assert max(run.answers) < 2


def test_a_device_that_is_hopelessly_slow_is_tried_again_and_found_free(folder: str) -> None:
    run = overload(folder, "drop", Slow(FROM, UNTIL, 60), SECONDS + 14)  # 2 s a picture
    assert max(level for _, level in run.rungs) == 3, "the whole ladder"
    assert run.counts.missed > 10, "pictures are given up at the entrance"
    assert run.waiting <= 2
    assert run.rungs[-1][1] == 0
    assert {t.tokens for t in run.between(SECONDS + 13, SECONDS + 14)} == {PICTURE + 1}
    assert accounted(run) == FPS * (SECONDS + 14)
