"""The scene reporter on video of known truth: right, wrong, or "I cannot know"; and memory by age.

Rendered: squares on plain grounds. Photographs: a camera that stands or pans before them, a thing that is carried through,
a sensor's noise, H.264 in between (tests/photo_video.py). No footage may be fetched where this was developed.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from penstock.models.event_log import Event, EventLog
from penstock.models.scene_reporter import SceneReporter
from penstock.pipeline.clock import SECOND
from penstock.pipeline.frame import VideoFrame
from penstock.stages.vlm import Measure
from report import line

sys.path.append(str(Path(__file__).parent.parent / "tests"))
EVERY = SECOND // 4


@dataclass(slots=True)
class Truth:
    """What is known of the last picture of a rendered scene."""

    moving: bool
    faint: bool  # less than 40 levels between what moves and the ground, in every channel
    side: str  # left, right or middle; "" where motion is in no one place
    luma: float  # 0-1
    state: str  # live, black, frozen, gone


def scene(rng: np.random.Generator) -> tuple[list[NDArray[np.uint8]], Truth]:
    """Eight pictures 240×320 with sensor noise: a square that may move on a plain ground, or a failing camera."""
    ground = rng.integers(20, 235, 3)
    square = rng.integers(0, 256, 3)
    moving, state = bool(rng.integers(2)), str(rng.choice(["live"] * 7 + ["black", "frozen", "gone"]))
    side = str(rng.choice(["left", "right", "middle"]))
    x0 = {"left": 30, "right": 230, "middle": 130}[side]
    y, sigma = int(rng.integers(40, 200)), float(rng.uniform(0.5, 5))
    pictures = []
    for step in range(8):
        image = np.empty((240, 320, 3))
        image[:] = ground
        x = x0 + (step * 8 if moving else 0)
        image[y - 20 : y + 20, x - 20 : x + 20] = square
        pictures.append(np.clip(image + rng.normal(0, sigma, image.shape), 0, 255).astype(np.uint8))
    if state == "black":
        pictures += [np.zeros_like(pictures[0])] * 4
    if state == "frozen":
        pictures += [pictures[-1]] * 10
    last = pictures[-1].reshape(-1, 3).astype(float)
    faint = bool(np.abs(square - ground).max() < 40)
    return pictures, Truth(moving, faint, side, float(last.mean(0) @ (0.299, 0.587, 0.114)) / 255, state)


def judge_motion(text: str, truth: Truth) -> str:
    if truth.state != "live":
        return "wrong"  # any claim is
    claims = "moves or changes" in text or "all over" in text
    if truth.moving and truth.faint and not claims:
        return "missed_faint"
    return "right" if claims == truth.moving else "wrong"


def judge_side(text: str, truth: Truth) -> str:
    if not truth.side:
        return judge_motion(text, truth)
    other = {"left": "right", "right": "left"}.get(truth.side)
    places = ["on the left", "on the right"] if other is None else [f"on the {other}"]
    return "wrong" if any(p in text for p in places) else judge_motion(text, truth)


def judge_light(text: str, truth: Truth) -> str:
    found = re.search(r"brightness (\d+) percent", text)
    return "right" if found and abs(int(found[1]) / 100 - truth.luma) < 0.02 else "wrong"


def judge_health(text: str, truth: Truth) -> str:
    words = {
        "live": "not black and not frozen",
        "black": "black. The",
        "frozen": "frozen",
        "gone": "No: the last",
    }
    return "right" if words[truth.state] in text else "wrong"


JUDGES: dict[str, Callable[[str, Truth], str]] = {
    "is anything moving?": judge_motion,
    "where is the motion?": judge_side,
    "how bright is it?": judge_light,
    "does the camera work?": judge_health,
    "is the dog moving?": lambda text, truth: "wrong",  # any claim is wrong
    "who is there?": lambda text, truth: "wrong",
}


Scenes = Iterator[tuple[list[NDArray[np.uint8]], Truth]]


def rendered(count: int) -> Scenes:
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield scene(rng)


def photographs(count: int) -> Scenes:
    from photo_video import KINDS, shot

    rng = np.random.default_rng(1)
    for i in range(count):
        its = shot(rng, KINDS[i % len(KINDS)])
        state = its.kind if its.kind in ("black", "frozen", "gone") else "live"
        side = its.side if its.kind == "object" else ""
        yield its.pictures, Truth(its.moving, its.faint, side, 0.0 if state == "black" else its.luma, state)


def table(video: str, scenes: Scenes) -> Counter[str]:
    tally: dict[str, Counter[str]] = {q: Counter() for q in JUDGES}
    count = 0
    for pictures, truth in scenes:
        count += 1
        reporter, measure, now = SceneReporter(), Measure(), 0
        for image in pictures:
            now += EVERY
            reporter.see(measure(VideoFrame(pts=now, image=image)))
        if truth.state == "gone":
            now += 10 * SECOND
        for question, judge in JUDGES.items():
            answer = reporter.ask(question, now)
            result = judge(answer.text, truth) if answer.known else "cannot_know"
            tally[question][result] += 1
    whole: Counter[str] = Counter()
    for question, counts in tally.items():
        results = {k: counts[k] for k in ("right", "wrong", "cannot_know", "missed_faint")}
        line(scene_question=question, video=video, scenes=count, **results)
        whole += counts
    return whole


def needle(hours: int) -> float:
    """Happenings at known times, then "when was the last of this kind": right within a second, by age and memory.

    recent-only keeps the events of the newest F pictures; random keeps as many, chosen by chance; the log is `EventLog`
    with room for that many whole events.
    """
    rng = np.random.default_rng(1)
    total = hours * 3600
    kinds = [f"kind {i}" for i in range(40)]
    at = np.sort(rng.uniform(0, total, 40 * hours * 4)).tolist()
    what = [kinds[int(rng.integers(40) * rng.random())] for _ in at]  # some are rare: their last one is old
    log = {n: EventLog(n) for n in (64, 256)}
    for t, kind in zip(at, what, strict=True):
        for each in log.values():
            each.add(Event(round(t * SECOND), "came", kind))
    truth = {kind: max(t for t, w in zip(at, what, strict=True) if w == kind) for kind in set(what)}
    worst = 1.0
    for low, high in ((0, 60), (60, 600), (600, 3600), (3600, 4 * 3600)):
        asked = [k for k, t in truth.items() if low <= total - t < high]
        if not asked:
            continue
        for budget, each in log.items():
            found = [each.last("came", k) for k in asked]
            right = sum(
                e is not None and abs(e.at / SECOND - truth[k]) < 1 for e, k in zip(found, asked, strict=True)
            )
            chosen = set(rng.choice(len(at), min(len(at), budget), replace=False).tolist())
            chance = sum(
                any(i in chosen and what[i] == k and at[i] == truth[k] for i in range(len(at))) for k in asked
            )
            recent = sum(truth[k] >= at[max(0, len(at) - budget)] for k in asked)
            worst = min(worst, right / len(asked))
            line(needle="event_log", hours=hours, age_s=f"{low}-{high}", budget=budget, asked=len(asked),
                 event_log=round(right / len(asked), 3), recent_only=round(recent / len(asked), 3),
                 random=round(chance / len(asked), 3))  # fmt: skip
    return worst


def main() -> dict[str, object]:
    drawn, seen = table("rendered", rendered(120)), table("photographs", photographs(70))
    worst = needle(4)
    return {
        "scene_right": drawn["right"], "scene_wrong": drawn["wrong"], "scene_cannot_know": drawn["cannot_know"],
        "scene_missed_faint": drawn["missed_faint"], "scene_photo_right": seen["right"],
        "scene_photo_wrong": seen["wrong"], "scene_photo_cannot_know": seen["cannot_know"],
        "scene_photo_missed_faint": seen["missed_faint"], "event_log_worst_age": round(worst, 3),
    }  # fmt: skip
