"""The scene reporter on photographs behind a noisy sensor and H.264: right or "I cannot know", never wrong."""

from __future__ import annotations

import re

import numpy as np
import pytest
from penstock.models.scene_reporter import SceneReporter
from penstock.models.sights import SECOND, Sight
from penstock.pipeline.frame import VideoFrame
from penstock.stages.vlm_scene import Measure
from photo_video import KINDS, Shot, shot


def watched(its: Shot) -> tuple[SceneReporter, int]:
    reporter, measure, now = SceneReporter(), Measure(), 0
    for image in its.pictures:
        now += SECOND // 4
        reporter.see(measure(VideoFrame(pts=now, image=image)))
    return reporter, now + (10 * SECOND if its.kind == "gone" else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_what_it_says_of_photographs_is_true(kind: str) -> None:
    for seed in range(3):
        its = shot(np.random.default_rng((5, seed)), kind)
        reporter, now = watched(its)
        motion, light = reporter.ask("is anything moving?", now), reporter.ask("how bright is it?", now)
        health = reporter.ask("does the camera work?", now)
        if kind == "still":
            assert motion.text == "I see nothing move."
        elif kind == "object":
            other = {"left": "right", "right": "left"}.get(its.side, "left or right")
            assert "moves or changes" in motion.text or its.faint
            assert f"on the {other}" not in motion.text
        elif kind == "pan":
            assert "moves or changes" in motion.text or "all over" in motion.text
        else:
            assert not motion.known, motion.text
        assert health.text.startswith("No: ") == (kind == "gone")
        assert ("frozen" in health.text and "not frozen" not in health.text) == (kind == "frozen")
        if kind != "gone":
            found = re.search(r"brightness (\d+) percent", light.text)
            assert found
            assert abs(int(found[1]) / 100 - (0 if kind == "black" else its.luma)) < 0.02
        assert not reporter.ask("is the cat asleep?", now).known


def test_a_file_whose_first_picture_comes_at_zero_is_answered_about_all_of_it() -> None:
    reporter = SceneReporter()
    for at, motion in ((0, 0.0), (2, 0.1), (4, 0.0), (5, 0.0)):
        reporter.see(
            Sight(at * SECOND, 0.5, {"gray": 1.0}, motion, "centre" if motion else "", 0.0, 320, 240, False)
        )
    now = 6 * SECOND
    assert "motion started" in reporter.ask("what happened", now).text
    often = reporter.ask("how often did something move", now).text
    assert often == "Something moved once since my first picture, 6 seconds ago."
    assert reporter.ask("when did it get dark", now).text == "Not since my first picture, 6 seconds ago."
