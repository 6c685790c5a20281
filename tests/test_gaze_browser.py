"""A real Chromium as the sender: pointing, stills out of its last seconds, its rate, and the held background."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from browser import BROWSER
from harness.chromium import chromium
from harness.serve import serving

pytestmark = BROWSER

GRAPH = """
penstock: 1
graph: gaze
nodes:
  cam: {use: webrtc.in, video: 320x240@15}
  focus: {use: focus.detect, fetch: true, in: {video: 'cam.video|every(500ms)', ask: cam.text}}
  out: {use: webrtc.out, in: {video: cam.video}}
"""


def test_a_browser_points_answers_fetch_and_holds_its_background(tmp_path: Path) -> None:
    graph = tmp_path / "gaze.yaml"
    graph.write_text(GRAPH)
    with serving(str(graph)) as server, chromium() as browser:
        page = browser.pages[0]
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(server.url)
        page.click("#start")
        page.wait_for_selector("body[data-state=live]", timeout=30_000)

        def focus() -> dict[str, Any]:
            with urllib.request.urlopen(f"{server.url}sessions", timeout=10) as answer:
                sessions = json.loads(answer.read())
            session = (sessions["sessions"] if isinstance(sessions, dict) else sessions)[0]["id"]
            with urllib.request.urlopen(f"{server.url}session/{session}/stats", timeout=10) as answer:
                return json.loads(answer.read())["transport"]["focus"]

        def wait(what: str, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for _ in range(150):
                found = focus()
                if condition(found):
                    return found
                page.wait_for_timeout(100)
            raise AssertionError(f"{what}: {found}")

        wait("no CAPS", lambda f: f["sender"] == "canvas")
        box = page.locator("#gaze").bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] * 0.45, box["y"] + box["height"] * 0.4)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.6, steps=4)
        page.mouse.up()
        assert wait("no LOOK", lambda f: f["source"] == "user")["dqp"] == 24
        page.select_option("#gaze-way", "held")
        wait("the background is not held", lambda f: f["sender_dqp"] == 24)
        assert "you pointed there" in page.inner_text("#gaze-words")
        page.fill("#chat-line", "What does the sign say?")
        page.press("#chat-line", "Enter")
        found = wait("no still", lambda f: f["stills"] >= 1)
        assert 0 < found["still_bytes"] <= 12_000
        page.dblclick("#gaze")
        wait("it still points", lambda f: f["source"] != "user")
        wait("the background is still held", lambda f: f["sender_dqp"] == 0)
        assert focus()["refused"] == 0
        assert not faults
