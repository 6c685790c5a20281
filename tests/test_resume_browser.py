"""The page keeps its session over a change of network and a reload of the tab, in a real Chromium."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from typing import TYPE_CHECKING, Any

from browser import BROWSER
from harness.chromium import chromium, until
from harness.serve import serving

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext, Page

pytestmark = BROWSER

LIVE = "document.body.dataset.state === 'live'"
LINES = "[...document.querySelectorAll('#talk li')].map((li) => li.textContent)"
BOTH = f"{LINES}.filter((t) => t.startsWith('remember me')).length"


def live_page(context: BrowserContext, url: str) -> Page:
    """A page that is connected, with a line said and one answered."""
    page = context.new_page()
    page.goto(url)
    until(page, "!document.getElementById('start').disabled && document.getElementById('graph').value")
    page.click("#start")
    until(page, LIVE)
    page.fill("#chat-line", "remember me")
    page.press("#chat-line", "Enter")
    until(page, f"{BOTH} === 2")
    return page


def test_the_page_keeps_its_session_over_a_change_of_network_and_a_reload():
    with serving("loopback") as served, chromium(size=(1280, 800)) as context:

        def sessions() -> list[dict[str, Any]]:
            with urllib.request.urlopen(f"{served.url}sessions") as answer:
                return json.load(answer)["sessions"]

        page = live_page(context, served.url)
        (session,) = sessions()

        # another network: the browser says so, and the page goes on at once over a new connection
        page.evaluate("window.first = document.getElementById('remote').srcObject")
        context.set_offline(True)
        context.set_offline(False)
        until(page, f"{LIVE} && document.getElementById('remote').srcObject !== window.first")
        (now,) = sessions()
        assert now["id"] == session["id"]
        page.fill("#chat-line", "remember me too")
        page.press("#chat-line", "Enter")
        until(page, f"{BOTH} === 4")
        assert page.evaluate(f"{LINES}.length") == 4, "nothing is told twice"

        # the tab is loaded again: it starts by itself, with what was said
        page.reload()
        until(page, LIVE)
        until(page, f"{BOTH} === 4")
        (now,) = sessions()
        assert now["id"] == session["id"]
        with urllib.request.urlopen(f"{served.url}session/{session['id']}/stats") as answer:
            assert json.load(answer)["transport"]["resumes"] == 2
        until(page, "document.getElementById('remote').getVideoPlaybackQuality().totalVideoFrames > 5")

        # leaving by the button ends it
        page.click("#leave")
        until(page, "document.body.dataset.state === 'idle'")
        for _ in range(50):
            if not sessions():
                break
            page.wait_for_timeout(100)
        assert sessions() == []
        page.reload()
        page.wait_for_timeout(500)
        assert page.evaluate("document.body.dataset.state") == "idle"


def test_the_page_comes_back_by_itself_after_a_silence():
    with serving("loopback") as served, chromium(size=(1280, 800)) as context:

        def session() -> dict[str, Any]:
            with urllib.request.urlopen(f"{served.url}sessions") as answer:
                (row,) = json.load(answer)["sessions"]
                return row

        page = live_page(context, served.url)
        before = session()["id"]
        os.kill(served.process.pid, signal.SIGSTOP)  # nothing comes through any more
        try:
            until(page, f"!({LIVE})")
            assert page.evaluate("document.getElementById('welcome').hidden")
            assert page.evaluate(f"{BOTH}") == 2, "what was said stays in sight"
        finally:
            os.kill(served.process.pid, signal.SIGCONT)
        until(page, LIVE, 40)
        assert session()["id"] == before
        page.fill("#chat-line", "remember me too")
        page.press("#chat-line", "Enter")
        until(page, f"{BOTH} === 4")
        assert page.evaluate(f"{LINES}.length") == 4
