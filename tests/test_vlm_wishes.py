"""Standing questions to `vlm.stream` without a model: told when true, taken as meant, refused where it cannot know."""

from __future__ import annotations

import pytest
from penstock.models.scene_reporter import SceneReporter
from penstock.pipeline.stage import StageError
from scene_camera import Camera, Picture, ball, noisy, plain, still, walk


@pytest.mark.parametrize(
    ("wish", "pictures", "says"),
    [
        ("when something moves on the left", walk(30, 100), "something moves or changes on the left"),
        ("when it gets dark", noisy([plain(10, 10, 10)] * 6), "it gets dark"),
        ("if the camera freezes", [ball(160, 120)] * 12, "the picture freezes"),
        ("when the picture goes black", [plain(0, 0, 0)] * 2, "the picture goes black"),
        ("when nothing moves for 3 seconds", walk(30, 100) + still(20), "nothing moves for 3 seconds"),
    ],
)  # fmt: skip
def test_standing_questions_are_answered_once_and_only_when_true(
    wish: str, pictures: list[Picture], says: str
) -> None:
    camera = Camera()
    camera.show(*still(4))
    assert camera.ask(f"Tell me {wish}.") == f"I will tell you when {says}."
    before = len(camera.said)
    camera.show(*still(4))
    assert len(camera.said) == before
    camera.show(*pictures, *pictures)
    assert camera.said[before:] == [f"You asked me to tell you: {says}."]


def test_standing_questions_of_the_graph_file_are_asked_again_and_again_or_refused_at_the_start() -> None:
    camera = Camera(tell=("something moves on the left",))
    camera.show(*still(4))
    for _ in range(2):
        camera.show(*walk(30, 100), *still(50))
    assert camera.said == ["You asked me to tell you: something moves or changes on the left."] * 2
    for wish in ("the postman comes", "so what"):
        with pytest.raises(StageError, match=f"tell: '{wish}': I cannot watch for that"):
            Camera(tell=(wish,))


@pytest.mark.parametrize(
    ("wish", "told"),
    [
        ("it gets dark again", "it gets dark"),
        ("something moves again", "something moves or changes"),
        ("you can see again", "the picture comes back"),
        ("the picture comes back", "the picture comes back"),
        ("it is not black again", "the picture comes back"),
        ("it is not dark", "it is no longer dark"),
        ("it is not moving", "nothing moves for 5 seconds"),
        ("nothing happens for 9 seconds", "nothing moves for 9 seconds"),
        ("it stops moving", "nothing moves for 5 seconds"),
        ("its size changes", "the size changes"),
    ],
)
def test_a_wish_is_taken_as_it_is_meant(wish: str, told: str) -> None:
    assert Camera().ask(f"tell me when {wish}") == f"I will tell you when {told}."


def test_motion_elsewhere_is_not_motion_on_the_left() -> None:
    camera = Camera()
    camera.show(*still(4))
    camera.ask("tell me whenever something moves on the left")
    camera.show(*walk(230, 300))
    assert len(camera.said) == 1
    camera.show(*still(50), *walk(30, 100))
    assert camera.said[1:] == ["You asked me to tell you: something moves or changes on the left."]


def test_a_wish_it_cannot_grant_is_refused_and_watching_can_be_stopped() -> None:
    camera = Camera()
    assert "I know nothing of 'postman'" in camera.ask("tell me when the postman comes")
    camera.ask("tell me when something moves")
    assert camera.ask("stop telling me that") == "I have stopped watching for that."
    camera.show(*walk(30, 100))
    assert len(camera.said) == 3


def test_a_thousand_questions_in_a_row_are_all_answered_and_cost_no_memory() -> None:
    reporter = SceneReporter()
    camera = Camera()
    camera.show(*still(4))
    questions = [
        "what do you see",
        "tell me when something moves",
        "is it dark",
        "tell me when it gets dark",
        "who?",
    ]
    for i in range(1_000):
        assert camera.ask(questions[i % len(questions)])
        assert reporter.ask(f"tell me whenever nothing moves for {i} seconds", 0).text
    assert len(camera.out.of("answer")) == 1_000
    assert len(camera.stage._reporter.standing.rules) == 2  # pyright: ignore[reportPrivateUsage]
    assert len(reporter.standing.rules) <= 8
