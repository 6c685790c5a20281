"""The page in a real Chromium asks for the devices that a graph takes, and for no others."""

from __future__ import annotations

from browser import BROWSER
from harness.chromium import chromium, until
from harness.serve import serving

pytestmark = BROWSER

PROBE = """
const get = MediaDevices.prototype.getUserMedia;
window.asked = [];
MediaDevices.prototype.getUserMedia = function (wish) {
    window.asked.push(Object.keys(wish).filter((kind) => wish[kind]).sort().join());
    return get.call(this, wish);
};
"""
LIVE = "body[data-state=live]"


def test_the_camera_is_opened_only_for_graphs_that_take_pictures() -> None:
    with serving("world", "loopback") as server, chromium() as browser:
        page = browser.pages[0]
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.add_init_script(PROBE)
        page.goto(f"{server.url}?graph=wurld")
        until(page, "document.getElementById('notes').textContent.includes('no graph \"wurld\"')")
        page.goto(f"{server.url}?graph=loopback")
        until(page, "document.getElementById('graph').value === 'loopback'")
        page.goto(f"{server.url}?graph=world")
        until(page, "document.getElementById('graph').value === 'world'")
        assert page.is_hidden("#captions"), "it hears, and recognises nothing"
        assert page.is_visible("#chat")
        assert page.inner_text("#goes-where").startswith("Your microphone goes")
        page.click("#start")
        page.wait_for_selector(LIVE, timeout=30_000)
        until(page, "document.getElementById('remote').videoWidth > 0")
        page.keyboard.press("v")
        assert page.evaluate("window.asked") == ["audio"]
        for hidden in ("#cam", "#gaze", "#gaze-box", "#own"):
            assert not page.is_visible(hidden), hidden
        assert page.is_visible("#mic")
        page.select_option("#graph", "loopback")
        page.wait_for_selector("#own", state="visible", timeout=30_000)
        page.wait_for_selector(LIVE, timeout=30_000)
        assert page.evaluate("window.asked") == ["audio", "video"]
        for shown in ("#cam", "#gaze-box"):
            assert page.is_visible(shown), shown
        page.select_option("#graph", "world")
        page.wait_for_selector("#own", state="hidden", timeout=30_000)
        page.wait_for_selector(LIVE, timeout=30_000)
        assert page.evaluate("window.asked") == ["audio", "video"]
        assert not faults
