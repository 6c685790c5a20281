import asyncio
from typing import Any

import numpy as np
import pytest
from fakes import Collected, FakeContext, feed
from hypothesis import given, settings
from hypothesis import strategies as st
from penstock.pipeline.clock import SECOND
from penstock.pipeline.frame import TokenFrame, VideoFrame
from penstock.pipeline.pixels import i420_from_rgb, rgb_from_i420
from penstock.stages.lettering import lay_on, render
from penstock.stages.overlay import CaptionOverlay, OverlayParams

PICTURE = np.full((240, 320, 3), (40, 90, 140), np.uint8)


class Screen:
    """The stage and what it shows."""

    def __init__(self, **params: Any) -> None:
        self.stage = CaptionOverlay(None, OverlayParams(**params))
        self.stage.ctx = FakeContext()
        self.out = Collected()

    def hear(self, source: str, text: str, *, end: bool = True) -> None:
        self.out.source = source
        asyncio.run(feed(self.stage, "text", TokenFrame(pts=0, text=text, end=end), self.out))

    def show(self, at_s: float, i420: bool = False) -> VideoFrame:
        image = i420_from_rgb(PICTURE) if i420 else PICTURE
        frame = VideoFrame(pts=round(at_s * SECOND), image=image, format="i420" if i420 else "rgb24")
        asyncio.run(feed(self.stage, "video", frame, self.out))
        return self.out.of("video")[-1]


def brightest(image: Any) -> int:
    return int(image.min(axis=2).max())


def test_without_words_the_very_frame_passes() -> None:
    screen = Screen()
    frame = VideoFrame(pts=1, image=PICTURE)
    asyncio.run(feed(screen.stage, "video", frame, screen.out))
    assert screen.out.of("video")[0] is frame


def test_committed_words_are_white_and_words_in_doubt_gray() -> None:
    screen = Screen()
    screen.hear("asr.partial", "hello")
    assert 150 < brightest(screen.show(0).image) < 200
    screen.hear("asr.commit", "hello")
    shown = screen.show(0.1)
    assert brightest(shown.image) > 240
    assert (shown.pts, shown.format) == (SECOND // 10, "rgb24")
    assert np.array_equal(shown.image[:100], PICTURE[:100]), "only the strip is touched"


def test_a_commit_takes_its_partial_s_place() -> None:
    screen = Screen()
    screen.hear("asr.partial", "hello wor")
    screen.hear("asr.commit", "hello world")
    both = screen.show(0).image
    alone = Screen()
    alone.hear("asr.commit", "hello world")
    assert np.array_equal(both, alone.show(0).image)


def test_deltas_grow_and_end_white() -> None:
    screen = Screen()
    for delta in ("It is ", "ten "):
        screen.hear("agent.say", delta, end=False)
    assert brightest(screen.show(0).image) < 200
    screen.hear("agent.say", "o'clock.")
    whole = Screen()
    whole.hear("agent.say", "It is ten o'clock.")
    assert np.array_equal(screen.show(0).image, whole.show(0).image)


def test_a_caption_holds_then_fades_then_is_gone() -> None:
    screen = Screen(hold=2)
    screen.hear("asr.commit", "hello")
    full = screen.show(10).image
    assert np.array_equal(screen.show(12).image, full)
    fading = screen.show(12.3).image
    assert brightest(PICTURE) < brightest(fading) < brightest(full)
    assert np.array_equal(screen.show(12.6).image, PICTURE)
    screen.hear("asr.commit", "again")
    alone = Screen()
    alone.hear("asr.commit", "again")
    assert np.array_equal(screen.show(13).image, alone.show(0).image), "what has faded does not come back"


def test_the_strip_is_rendered_once_per_change() -> None:
    screen = Screen()
    calls: list[object] = []

    class Counting:
        async def call(self, fn: Any, *args: Any, deadline: int = 0) -> Any:
            calls.append(args)
            return fn(*args)

    screen.stage.ctx.pool = lambda name=None: Counting()  # type: ignore[method-assign]
    screen.hear("asr.commit", "hello")
    for n in range(10):
        screen.show(n / 30)
    assert len(calls) == 1


def test_position_and_show_are_live() -> None:
    screen = Screen(position="top")
    screen.hear("asr.commit", "hello")
    image = screen.show(0).image
    assert not np.array_equal(image[:100], PICTURE[:100])
    assert np.array_equal(image[140:], PICTURE[140:])
    screen.stage.params = OverlayParams(show=False)
    assert screen.show(0.1).image is PICTURE


def test_both_formats_show_the_same() -> None:
    screen = Screen()
    screen.hear("asr.commit", "Příliš žluťoučký kůň")
    rgb = screen.show(0).image
    i420 = screen.show(0, i420=True)
    assert i420.format == "i420"
    assert np.abs(rgb_from_i420(i420.image).astype(int) - rgb).mean() < 2


@given(
    st.text(max_size=120),
    st.text(max_size=40),
    st.integers(1, 200),
    st.integers(1, 200),
    st.floats(0.02, 0.15),
)
@settings(max_examples=60, deadline=None)
def test_any_text_on_any_size_is_drawn_inside_the_picture(
    committed: str, partial: str, width: int, height: int, size: float
) -> None:
    strip = render(committed, partial, width, height, size)
    if strip is None:
        return
    image = np.zeros((height, width, 3), np.uint8)
    assert strip.alpha.shape[0] <= height
    assert strip.alpha.shape[1] <= width
    assert lay_on(image, "rgb24", strip, "bottom", 1.0).shape == image.shape
    assert not image.any(), "the picture itself is never written to"


@pytest.mark.parametrize("text", ["Ελλάδα", "Привет", "žluťoučký", "naïve — “quoted”…"])
def test_letters_beyond_ascii_have_glyphs(text: str) -> None:
    pytest.importorskip("PIL")
    from penstock.stages import lettering

    font = lettering._font_for(text, 24)  # pyright: ignore[reportPrivateUsage]
    if "DejaVu" not in str(font.getname()):
        pytest.skip("needs the font DejaVu Sans (fonts-dejavu-core)")
    index = lettering._fonts(24).index(font)  # pyright: ignore[reportPrivateUsage]
    assert all(lettering._has(index, 24, c) for c in text if c != " ")  # pyright: ignore[reportPrivateUsage]


def test_a_long_speech_shows_its_last_two_lines() -> None:
    words = " ".join(f"word{n}" for n in range(60))
    two, last = render(words, "", 320, 240, 0.06), render("word58 word59", "", 320, 240, 0.06)
    assert two is not None
    assert last is not None
    assert 1.5 < two.alpha.shape[0] / last.alpha.shape[0] < 2.2
