"""What an edge client cuts out: by the map, no more often another size than it must, and stamped so that it is put back."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from penstock.pipeline.clock import MS, SECOND, ManualClock
from penstock.pipeline.frame import VideoFrame
from penstock.pipeline.pixels import i420_from_rgb, i420_planes
from penstock.transport.crop_track import STRIP, Cells, Stamp, pasted, pixels_of, read_stamp
from penstock.transport.edge_crop import choose, context_of, crop_of, follow
from penstock.transport.edge_sender import EdgeSender
from penstock.transport.importance import GRID_H, GRID_W, Box, ImportanceMap, Source, grid_of
from penstock.transport.rt_messages import Caps, Imp, Rate, parse

W, H = 640, 480


def map_of(box: Box, confidence: float = 0.9, source: Source = Source.boxes) -> ImportanceMap:
    return ImportanceMap(grid_of([box]), confidence, 0, source=source)


def frame(pts: int = 0, width: int = W, height: int = H) -> VideoFrame:
    rgb = np.random.default_rng(2).integers(0, 255, (height, width, 3)).astype(np.uint8)
    return VideoFrame(pts=pts, image=i420_from_rgb(rgb), format="i420")


def test_the_cells_that_matter_are_chosen_and_no_fewer_than_hold_a_stamp() -> None:
    assert choose(None, map_of((0.25, 1 / 3, 0.5, 1 / 3)), 0, W, H) == (4, 3, 8, 3)
    assert choose(None, map_of((15 / 16, 8 / 9, 1 / 16, 1 / 9)), 0, W, H) == (12, 8, 4, 1)  # 160 px
    assert choose(None, map_of((15 / 16, 8 / 9, 1 / 16, 1 / 9)), 0, 100, 80) is None  # too small for a stamp


@pytest.mark.parametrize(
    ("found", "now"),
    [
        (None, 0),
        (map_of((0, 0, 0.5, 0.5), confidence=0.5), 0),  # 5 steps: a guess
        (map_of((0, 0, 0.5, 0.5), source=Source.detector), 0),
        (map_of((0, 0, 0.5, 0.5)), 30 * SECOND),  # faded
        (map_of((0, 0, 0.9, 0.9)), 0),  # nearly all of it
    ],
)
def test_else_the_whole_picture_is_sent(found: ImportanceMap | None, now: int) -> None:
    assert choose(None, found, now, W, H) is None


BOXES = st.integers(1, GRID_W).flatmap(
    lambda w: st.integers(1, GRID_H).flatmap(
        lambda h: st.tuples(st.integers(0, GRID_W - w), st.integers(0, GRID_H - h), st.just(w), st.just(h))
    )
)


@given(st.none() | BOXES, BOXES)
def test_a_crop_holds_what_is_wanted_and_stays_in_the_picture(last: Cells | None, wanted: Cells) -> None:
    got = follow(last, wanted)
    if got is None:
        assert wanted[2] * wanted[3] > 0.6 * GRID_W * GRID_H
        return
    x, y, w, h = got
    assert 0 <= x <= wanted[0]
    assert 0 <= y <= wanted[1]
    assert wanted[0] + wanted[2] <= x + w <= GRID_W
    assert wanted[1] + wanted[3] <= y + h <= GRID_H
    assert w * h <= 2 * wanted[2] * wanted[3] or got == wanted


@given(BOXES.filter(lambda cells: cells[2] >= 4), st.sampled_from([(640, 480), (854, 480), (1280, 720)]))
def test_what_is_cut_out_is_put_back_to_the_pixel(cells: Cells, size: tuple[int, int]) -> None:
    whole = frame(5, *size)
    cut = crop_of(whole, cells)
    assert (cut.pts, cut.format) == (5, "i420")
    stamp = read_stamp(cut.image[: cut.height])
    assert stamp == Stamp(cells, cut.height - STRIP)
    assert stamp is not None
    planes = i420_planes(cut.image)
    above = [plane[: stamp.rows // half] for plane, half in zip(planes, (1, 2, 2), strict=True)]
    crop = np.concatenate([p.reshape(-1) for p in above]).reshape(stamp.rows * 3 // 2, cut.width)
    base = np.full_like(whole.image, 7)
    together = i420_planes(pasted(base, crop, cells, "i420"))
    left, top, right, bottom = pixels_of(cells, *size)
    for plane, true, half in zip(together, i420_planes(whole.image), (1, 2, 2), strict=True):
        inside = np.zeros(plane.shape, bool)
        inside[top // half : bottom // half, left // half : right // half] = True
        assert (plane == np.where(inside, true, 7)).all()


def test_a_context_is_small_and_says_so() -> None:
    small = context_of(frame())
    assert (small.width, small.height) == (160, 120 + STRIP)
    assert read_stamp(small.image[: small.height]) == Stamp(None, 120)


def test_what_was_granted_is_divided_among_both_tracks() -> None:
    clock = ManualClock()
    sender = EdgeSender("h264", 30, clock, lambda data: None, most_bps=100_000)
    sender.crops = True
    told: list[bool] = []
    sender.on_crop = told.append
    sender.receive(Rate(seq=1, kbps=80, fps=5).pack())
    sender.picture(frame())
    assert sender.cells is None
    assert sender.out.fps == 5
    sender.receive(Imp(grid_of([(0, 0, 0.5, 0.5)]), 0.9, seq=1, ttl_ms=1500, source=Source.user).pack())
    sender.picture(frame(SECOND))
    assert sender.cells is not None
    assert (sender.crop_out.fps, sender.out.fps) == (5, 1)
    assert sender.out.limit_bps + sender.crop_out.limit_bps <= 80_000
    caps = parse(sender.caps().pack())
    assert isinstance(caps, Caps)
    assert (caps.crop, caps.cropping, caps.dqp) == (True, True, 24)
    sender.receive(Rate(seq=2, kbps=40, fps=2, context_kbps=8, context_fps=0.5).pack())
    assert (sender.crop_out.fps, sender.out.fps) == (2, 0.5)
    assert 30_000 < sender.crop_out.limit_bps <= 40_000
    assert 6_000 < sender.out.limit_bps <= 8_000
    sender.receive(
        Rate(seq=3, kbps=0, fps=2).pack()
    )  # all that the path carries, but for the context and the user's limit
    assert sender.crop_out.beside_bps == sender.out.limit_bps > 0
    assert sender.crop_out.limit_bps + sender.out.limit_bps <= 100_000
    sender.receive(Imp(grid_of([(0, 0, 0.5, 0.5)]), 0.0, seq=2, ttl_ms=1500).pack())
    sender.picture(frame(2 * SECOND + 500 * MS))
    assert sender.cells is None
    assert (sender.out.fps, sender.out.limit_bps) == (2, 100_000)
    assert told == [False], "5 s at least between two words"
    clock.time += 5 * SECOND
    sender.receive(Imp(grid_of([(0, 0, 0.5, 0.5)]), 0.9, seq=3, ttl_ms=1500, source=Source.user).pack())
    sender.picture(frame(8 * SECOND))
    assert told == [False, True]
