"""The studio in a real Chromium with fake devices, against the real server: what a person gets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import BROWSER
from harness.chromium import chromium, missing, render_camera, render_silence, speak, until
from harness.serve import Served, serving

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = BROWSER

# Runs before the page's scripts: keeps what the server says, measures pixels and sound.
PROBE = """
const make = RTCPeerConnection.prototype.createDataChannel;
window.said = [];
RTCPeerConnection.prototype.createDataChannel = function (...args) {
    const channel = make.apply(this, args);
    channel.addEventListener('message', ({data}) => {
        if (typeof data !== 'string') return;
        const message = JSON.parse(data);
        window.said.push(message);
        if (message.kind === 'commit') window.heardBefore ??= window.heard;
    });
    return channel;
};

// mean red, green and blue of the upper part (captions are drawn on the lower), and the luma's deviation
window.pixels = () => {
    const video = document.getElementById('remote');
    if (!video.videoWidth) return null;
    const pen = new OffscreenCanvas(64, 48).getContext('2d');
    pen.drawImage(video, 0, 0, video.videoWidth, video.videoHeight * 0.7, 0, 0, 64, 48);
    const {data} = pen.getImageData(0, 0, 64, 48);
    const sum = [0, 0, 0];
    let luma = 0, square = 0;
    for (let i = 0; i < data.length; i += 4) {
        for (let c = 0; c < 3; c++) sum[c] += data[i + c];
        const y = 0.299 * data[i] + 0.587 * data[i + 1] + 0.114 * data[i + 2];
        luma += y;
        square += y * y;
    }
    const n = data.length / 4;
    return [...sum.map((s) => s / n), Math.sqrt(square / n - (luma / n) ** 2)];
};
window.apart = (other) => {
    const now = window.pixels();
    return now ? Math.max(...now.map((x, i) => Math.abs(x - other[i]))) : 0;
};

// the loudest sample of the remote sound so far, and of the last moment, 0 to 1
window.heard = window.loud = 0;
window.listen = () => {
    const context = new AudioContext();
    const analyser = context.createAnalyser();
    context.createMediaStreamSource(document.getElementById('voice').srcObject).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    setInterval(() => {
        analyser.getFloatTimeDomainData(samples);
        window.loud = samples.reduce((top, x) => Math.max(top, Math.abs(x)), 0);
        window.heard = Math.max(window.heard, window.loud);
    }, 20);
};
"""

MY_LAST = "[...document.querySelectorAll('#talk li.me')].at(-1)?.textContent"
ITS_LAST = "[...document.querySelectorAll('#talk li.it:not(.open)')].at(-1)?.textContent"


@pytest.fixture(scope="module")
def studio() -> Iterator[Served]:
    with serving() as served:
        yield served


@pytest.fixture(scope="module")
def camera(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("camera") / "cam.y4m"
    render_camera(path)
    return path


@pytest.fixture(scope="module")
def silence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("microphone") / "silence.wav"
    render_silence(path)
    return path


def visit(page: Page, url: str) -> list[str]:
    """Open the page with the probe in it. Returns the list that the page's script errors go to."""
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.add_init_script(PROBE)
    page.goto(url)
    page.wait_for_selector("#graph option", state="attached")
    return faults


def go_live(page: Page, url: str) -> list[str]:
    faults = visit(page, url)
    page.click("#start")
    page.wait_for_selector("body[data-state=live]", timeout=30_000)
    return faults


def picture(page: Page) -> Any:
    until(
        page, "document.getElementById('remote').videoWidth > 0 && !document.getElementById('remote').hidden"
    )
    return page.evaluate("window.pixels()")


def count_sessions(page: Page) -> None:
    """Keep `window.sessions` at what the server says it has."""
    page.evaluate(
        """setInterval(async () => {
            window.sessions = (await (await fetch('health')).json()).sessions;
        }, 100)"""
    )


def test_a_picture_that_does_not_come_is_told(studio: Served, camera: Path) -> None:
    with chromium(camera=camera) as browser:
        page = browser.pages[0]
        faults = go_live(page, studio.url)
        picture(page)
        assert page.is_hidden("#veil")
        page.evaluate(
            "document.getElementById('remote').getVideoPlaybackQuality = () => ({totalVideoFrames: 7})"
        )
        until(page, "/^No picture for [345] s: ./.test(document.getElementById('veil').textContent)")
        assert page.is_visible("#veil")
        assert page.is_visible("#remote"), "the last picture stays"
        assert page.is_hidden("#orb")
        page.evaluate(  # a trickle
            "document.getElementById('remote').getVideoPlaybackQuality ="
            " () => ({totalVideoFrames: Math.floor(performance.now() / 2000)})"
        )
        until(page, "/^Hardly any pictures for \\d+ s: ./.test(document.getElementById('veil').textContent)")
        page.evaluate("delete document.getElementById('remote').getVideoPlaybackQuality")
        until(page, "document.getElementById('veil').hidden")
        assert not faults


@pytest.mark.skipif(bool(missing(voice=True)), reason=missing(voice=True))
def test_a_spoken_command_is_captioned_obeyed_and_answered(
    studio: Served, camera: Path, tmp_path: Path
) -> None:
    voice = tmp_path / "mic.wav"
    speak("neon", voice, lead_s=5.0, tail_s=6.0)
    with chromium(camera=camera, microphone=voice) as browser:
        page = browser.pages[0]
        faults = go_live(page, studio.url)
        page.evaluate("window.listen()")
        plain = picture(page)
        until(page, "/neon/i.test(document.getElementById('committed').textContent)", 30)
        assert page.evaluate("window.heardBefore") < 0.01, "sound came back before the command was understood"
        until(page, f"/neon/i.test({MY_LAST})")
        until(page, "window.heard > 0.05")
        until(page, f"/neon/i.test({ITS_LAST})")
        until(page, "document.querySelector('input[type=radio][value=neon]').checked")
        until(page, f"window.apart({plain}) > 25")
        kinds = page.evaluate("window.said.filter((m) => m.type === 'text').map((m) => m.kind)")
        assert {"commit", "delta"} <= set(kinds)
        assert not faults


def test_a_written_line_and_a_changed_parameter_change_the_picture(
    studio: Served, camera: Path, silence: Path
) -> None:
    with chromium(camera=camera, microphone=silence) as browser:
        page = browser.pages[0]
        faults = go_live(page, studio.url)
        plain = picture(page)
        page.fill("#chat-line", "neon")
        page.keyboard.press("Enter")
        until(page, f"{MY_LAST} === 'neon'")
        until(page, f"/neon/i.test({ITS_LAST})")
        until(page, f"window.apart({plain}) > 25")

        strength = page.get_by_role("slider", name="Strength")
        strength.press("Home")
        until(page, f"window.apart({plain}) < 8")
        strength.press("End")
        until(page, f"window.apart({plain}) > 25")
        page.get_by_role("radio", name="none", exact=True).press("Space")
        until(page, f"window.apart({plain}) < 8")
        changed = page.evaluate(
            "window.said.filter((m) => m.type === 'params').map((m) => [m.node, m.values])"
        )
        assert ["restyle", {"strength": 0}] in changed
        assert changed[-1] == ["restyle", {"style": "none"}]
        assert not page.evaluate("window.said.filter((m) => m.type === 'error')")
        assert not faults


def test_interrupt_silences_the_reply(studio: Served, camera: Path, silence: Path) -> None:
    with chromium(camera=camera, microphone=silence) as browser:
        page = browser.pages[0]
        go_live(page, studio.url)
        page.evaluate("window.listen()")
        picture(page)
        page.fill("#chat-line", "what do you see")  # the longest answer
        page.keyboard.press("Enter")
        until(page, "window.loud > 0.05")
        page.click("#interrupt")
        # the whole answer takes seconds
        until(page, "window.quiet = window.loud < 0.005 ? (window.quiet ?? 0) + 1 : 0, window.quiet > 8", 1.5)


def test_the_camera_goes_off_and_on(studio: Served, camera: Path, silence: Path) -> None:
    with chromium(camera=camera, microphone=silence) as browser:
        page = browser.pages[0]
        faults = go_live(page, studio.url)
        picture(page)
        page.keyboard.press("v")
        until(page, "document.getElementById('remote').hidden")
        assert page.inner_text("#veil") == "Your camera is off"
        assert page.is_hidden("#own")
        page.keyboard.press("v")
        picture(page)
        assert page.is_visible("#own")
        assert page.get_attribute("body", "data-state") == "live"
        assert not faults


def test_without_permission_the_page_says_so_and_still_works(studio: Served) -> None:
    with chromium(permission=False) as browser:
        page = browser.pages[0]
        faults = go_live(page, studio.url)
        assert "No permission" in page.inner_text("#notes")
        assert page.get_attribute("#cam", "aria-pressed") == "false"
        page.fill("#chat-line", "what time is it")
        page.keyboard.press("Enter")
        until(page, f"{ITS_LAST}?.length > 3")
        assert not faults


def test_a_client_that_vanishes_leaves_the_other_alone(studio: Served, camera: Path, silence: Path) -> None:
    with chromium(camera=camera, microphone=silence) as browser:
        doomed = browser.new_page()
        go_live(doomed, studio.url)
        page = browser.new_page()
        faults = go_live(page, studio.url)
        count_sessions(page)
        until(page, "window.sessions === 2")
        with pytest.raises(Exception, match="crash"):
            doomed.goto("chrome://crash")  # no goodbye of any kind
        until(page, "window.sessions === 1", 10)

        frames = page.evaluate("document.getElementById('remote').getVideoPlaybackQuality().totalVideoFrames")
        until(
            page,
            f"document.getElementById('remote').getVideoPlaybackQuality().totalVideoFrames > {frames} + 20",
        )
        assert page.get_attribute("body", "data-state") == "live"
        assert page.evaluate("window.said.every((m) => m.type !== 'error')")
        assert not faults


def test_leaving_the_page_ends_its_session_at_once(studio: Served, camera: Path, silence: Path) -> None:
    with chromium(camera=camera, microphone=silence) as browser:
        leaving = browser.new_page()
        go_live(leaving, studio.url)
        page = browser.new_page()
        visit(page, studio.url)
        count_sessions(page)
        until(page, "window.sessions === 1")
        leaving.goto("about:blank")
        until(page, "window.sessions === 0", 1.5)  # sooner than a lost client is noticed


def test_a_token_is_asked_for_and_taken_from_the_address(camera: Path, silence: Path) -> None:
    with (
        serving("loopback", token="sesame") as served,
        chromium(camera=camera, microphone=silence) as browser,
    ):
        page = browser.pages[0]
        page.goto(served.url)
        page.wait_for_selector("#trouble:not([hidden])")
        assert "token" in page.inner_text("#trouble").lower()

        page.goto("about:blank")
        go_live(page, served.url + "#token=sesame")
        assert "sesame" not in page.url, "the token stays out of the address bar"
        picture(page)


def test_a_server_that_went_away_is_noticed_and_found_again(camera: Path, silence: Path) -> None:
    with chromium(camera=camera, microphone=silence) as browser:
        page = browser.pages[0]
        with serving("loopback") as first:
            go_live(page, first.url)
            port = first.url.rstrip("/").rpartition(":")[2]
            first.process.kill()
            page.wait_for_selector("body[data-state=waiting]", timeout=15_000)
            assert "server" in page.inner_text("#trouble").lower()
            assert page.is_enabled("#retry")
        with serving("loopback", port=int(port)):
            page.wait_for_selector("body[data-state=live]", timeout=30_000)
            picture(page)


def test_every_control_has_a_name_and_is_reached_by_tab(studio: Served, camera: Path, silence: Path) -> None:
    with chromium(camera=camera, microphone=silence) as browser:
        page = browser.pages[0]
        go_live(page, studio.url)
        page.wait_for_selector("#params details", state="attached")
        page.evaluate("document.querySelectorAll('#params details').forEach((d) => { d.open = true; })")
        tree = browser.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
        roles = (
            "button",
            "textbox",
            "combobox",
            "slider",
            "radio",
            "checkbox",
            "switch",
            "spinbutton",
            "link",
        )
        controls = [n for n in tree if not n.get("ignored") and n["role"]["value"] in roles]
        assert len(controls) > 12
        nameless = [n for n in controls if not n.get("name", {}).get("value", "").strip()]
        assert not nameless

        wanted = page.evaluate(
            """() => [...document.querySelectorAll('a[href], button, input, select, summary, [tabindex="0"]')]
                .filter((e) => e.checkVisibility() && !e.disabled && !e.closest('dialog'))
                .filter((e) => e.type !== 'radio' || e.checked)
                .map((e, i) => (e.dataset.stop = String(i)))"""
        )
        page.evaluate("document.activeElement.blur()")
        reached: set[str] = set()
        for _ in range(len(wanted) + 8):
            page.keyboard.press("Tab")
            stop = page.evaluate("document.activeElement?.dataset.stop ?? ''")
            reached.add(stop)
        assert reached >= set(wanted)


CONTRAST = """() => {
    const parse = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return [m[0], m[1], m[2], m[3] ?? 1]; };
    const lin = (x) => (x /= 255) <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
    const lum = ([r, g, b]) => 0.2126 * lin(r) + 0.7152 * lin(g) + 0.0722 * lin(b);
    const back = (e) => {
        for (; e; e = e.parentElement) {
            const c = parse(getComputedStyle(e).backgroundColor);
            if (c[3] === 1) return c;
        }
        return [255, 255, 255, 1];
    };
    const poor = [];
    for (const e of document.querySelectorAll('body *')) {
        if (!e.checkVisibility() || e.closest('.unseen, .skip, :disabled')) continue;
        if (![...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim())) continue;
        const [a, b] = [lum(parse(getComputedStyle(e).color)), lum(back(e))].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) poor.push(`${e.tagName}.${e.className}: ${e.textContent.slice(0, 20)} ${ratio.toFixed(2)}`);
    }
    return poor;
}"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_stands_out_in_both_themes(studio: Served, camera: Path, silence: Path, dark: bool) -> None:
    with chromium(camera=camera, microphone=silence, dark=dark) as browser:
        page = browser.pages[0]
        visit(page, studio.url)
        assert page.evaluate(CONTRAST) == []
        page.click("#start")
        page.wait_for_selector("body[data-state=live]", timeout=30_000)
        page.wait_for_selector("#params details", state="attached")
        assert page.evaluate(CONTRAST) == []


def test_the_page_asks_no_other_host(studio: Served, camera: Path, silence: Path) -> None:
    with chromium(camera=camera, microphone=silence) as browser:
        page = browser.pages[0]
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        go_live(page, studio.url)
        assert asked
        assert [url for url in asked if not url.startswith(studio.url)] == []
