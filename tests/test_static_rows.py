"""Fixed batch sizes: filled up, cut back, split; what captures do on a GPU needs one."""

from __future__ import annotations

import pytest
import torch
from penstock.models.static_rows import StaticRows
from penstock.models.stream_model import rgb_levels, rgb_of
from penstock.pipeline.pixels import i420_from_rgb
from torch import Tensor

torch.set_num_threads(1)


def doubled(seen: list[int]) -> StaticRows:
    def fn(x: Tensor, add: Tensor) -> Tensor:
        seen.append(len(x))
        return 2 * x + add[:, None]

    return StaticRows(fn, sizes=(1, 2, 4))


@pytest.mark.parametrize(
    ("rows", "sizes"), [(1, [1]), (2, [2]), (3, [4]), (4, [4]), (7, [4, 4]), (9, [4, 4, 1])]
)
def test_rows_run_at_fixed_sizes_and_come_back_as_they_were(rows: int, sizes: list[int]) -> None:
    seen: list[int] = []
    x, add = torch.randn(rows, 3), torch.randn(rows)
    out = doubled(seen)(x, add)
    assert seen == sizes
    assert torch.equal(out, 2 * x + add[:, None])


@pytest.mark.parametrize(("most", "sizes"), [(1, [1]), (3, [1, 2, 4]), (9, [1, 2, 4])])
def test_warming_runs_every_size_that_may_be_needed(most: int, sizes: list[int]) -> None:
    seen: list[int] = []
    rows = doubled(seen)
    rows.warm(torch.zeros(1, 3), torch.zeros(1), most=most)
    assert seen == sizes
    known = set(rows.shapes)
    rows(torch.randn(min(most, 4), 3), torch.randn(min(most, 4)))
    assert rows.shapes == known


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_captures_replay_with_new_inputs() -> None:
    rows = doubled([])
    first, second = (torch.randn(3, 3, device="cuda") for _ in range(2))
    add = torch.zeros(3, device="cuda")
    a = rows(first, add)
    b = rows(second, add)
    assert len(rows.shapes) == 1
    assert torch.equal(a, 2 * first)  # the second call did not overwrite it
    assert torch.equal(b, 2 * second)


def test_colour_on_the_device_is_colour_on_the_cpu() -> None:
    rgb = torch.randint(0, 256, (6, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    i420 = i420_from_rgb(rgb.repeat_interleave(4, 0).repeat_interleave(4, 1).numpy())
    expected = torch.from_numpy(rgb_of(i420)).permute(2, 0, 1).float()
    assert float((rgb_levels(torch.from_numpy(i420)) - expected).abs().max()) <= 2
