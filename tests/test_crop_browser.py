"""A real Chromium sends what matters as a track of its own; the graph gets whole pictures that are sharp there."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from browser import BROWSER
from client import serving
from harness.chromium import chromium
from harness.fine import fine_camera, likeness
from penstock.pipeline import registry
from penstock.pipeline.compiler import load
from penstock.pipeline.frame import Frame, VideoFrame
from penstock.pipeline.stage import In, Outputs, Ports, Stage

pytestmark = BROWSER

GRAPH = """
penstock: 1
graph: crop
nodes:
  cam: {use: webrtc.in, video: 320x240@15}
  eye: {use: test.crop_eye, in: 'cam.video|every(200ms)'}
"""
BOX = (0.5, 4 / 9, 0.5, 4 / 9)  # what the model names


class Eye(Stage):
    """Tells where it looks while `tells`, and keeps what it is shown."""

    ports = Ports({"video": In(VideoFrame)}, {})
    seen: list[VideoFrame] = []  # noqa: RUF012 - of the only one
    tells = True

    def process(self, port: str, frame: Frame, out: Outputs) -> None:
        assert isinstance(frame, VideoFrame)
        Eye.seen = [*Eye.seen[-30:], frame]
        if Eye.tells:
            self.ctx.emit("importance", boxes=[BOX], confidence=0.9, ttl_ms=3000, source="boxes")
        else:
            self.ctx.emit("importance", boxes=[(0, 0, 1, 1)], confidence=0.0, ttl_ms=0, source="boxes")


@contextlib.contextmanager
def in_a_thread(graph: Path) -> Generator[Any]:
    """The server on a loop of its own: Playwright's calls block, and a stage of the test is to see the pictures."""
    ready, end = threading.Event(), asyncio.Event()
    found: list[Any] = []

    async def main() -> None:
        async with serving({"crop": load(graph)}) as server:
            found.extend((server, asyncio.get_running_loop()))
            ready.set()
            await end.wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()), name="server")
    thread.start()
    try:
        assert ready.wait(30)
        yield found[0]
    finally:
        found[1].call_soon_threadsafe(end.set)
        thread.join(20)


@pytest.mark.parametrize("way", ["worker", "canvas"])
def test_what_matters_comes_as_a_track_of_its_own(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(registry.EXTRA, "test.crop_eye", Eye)
    Eye.seen, Eye.tells = [], True
    (graph := tmp_path / "crop.yaml").write_text(GRAPH)
    true = fine_camera(tmp_path / "camera.y4m")
    with in_a_thread(graph) as server, chromium(camera=tmp_path / "camera.y4m") as browser:
        page = browser.pages[0]
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        if way == "canvas":
            page.add_init_script("delete window.MediaStreamTrackProcessor")
        page.goto(server.url)
        page.click("#start")
        page.wait_for_selector("body[data-state=live]", timeout=30_000)

        def wait(what: str, condition: Any) -> None:
            for _ in range(200):
                if condition():
                    return
                page.wait_for_timeout(100)
            (live,) = server.sessions.live.values()
            raise AssertionError(f"{what}: {live.stats()['transport']} {page.inner_text('#gaze-words')}")

        def focus() -> dict[str, Any]:
            (live,) = server.sessions.live.values()
            return live.stats()["transport"]["focus"]

        wait("no picture", lambda: Eye.seen)
        assert Eye.seen[-1].sharp is None
        page.select_option("#gaze-way", "crop")
        wait("no crop came", lambda: Eye.seen[-1].sharp is not None)
        wait("cut otherwise", lambda: page.get_attribute("#gaze-words", "data-way") == f"crop by {way}")

        def together() -> bool:
            frame = Eye.seen[-1]
            left = (0.0, 0.0, 0.3, 1.0)
            return (
                frame.sharp is not None
                and likeness(frame, true, frame.sharp) > 0.7  # in its place, to the pixel
                and likeness(frame, true, left) < likeness(frame, true, frame.sharp) - 0.2
            )

        wait("the parts do not fit together", together)
        x, y, w, h = Eye.seen[-1].sharp or BOX
        assert x <= BOX[0]
        assert y <= BOX[1] + 1e-6
        assert x + w >= BOX[0] + BOX[2] - 1e-6
        assert y + h >= BOX[1] + BOX[3] - 1e-6
        wait("the server is not told", lambda: focus()["cropping"] and focus()["sender_kbps"] > 0)
        wait(
            "its tracks are not divided",
            lambda: [t["track"] for t in focus()["tracks"]] == ["crop", "context"],
        )
        wait("the page does not say it", lambda: "Inside the frame" in page.inner_text("#gaze-words"))
        wait(
            "the page does not explain it",
            lambda: "Granted: crop" in (page.text_content("#gaze-figures") or ""),
        )
        # nothing matters any more: the whole picture again
        Eye.tells = False
        wait(
            "the crop goes on", lambda: Eye.seen[-1].sharp is None and likeness(Eye.seen[-1], true, BOX) > 0.7
        )
        wait("it still crops", lambda: not focus()["cropping"])
        assert focus()["refused"] == 0
        assert not faults
